"""Counts down to the end of an access, and has the page drawn anew then. It asks no gateway."""

from datetime import UTC, datetime
from functools import partial

import streamlit as st

TICK_S = 1


def show(until: str) -> None:
    """How long it is open; `until` is a moment in ISO 8601."""
    st.fragment(partial(_tick, until), run_every=TICK_S)()


def _tick(until: str) -> None:
    left = (datetime.fromisoformat(until) - datetime.now(UTC)).total_seconds()
    if left < 0:
        st.rerun()
    minutes, seconds = divmod(int(left), 60)
    st.markdown(f":orange-badge[:material/timer: open for {minutes}:{seconds:02} more]")
