"""Counts down to the end of an access, and has the page drawn anew then. It asks no gateway."""

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial

import streamlit as st

from services.ui import session

TICK_S = 1


def show(until: str, over: Callable[[], None]) -> None:
    """How long it is open; `until` is a moment in ISO 8601.

    At its end `over` has the page ask for no more than is still allowed, and then the page is drawn anew.
    """
    st.fragment(partial(_tick, until, over, itertools.count()), run_every=TICK_S)()


def _tick(until: str, over: Callable[[], None], looks: Iterator[int]) -> None:
    """The first look is never the end: by the gateway's clock, which may be behind, it was just open."""
    left = (datetime.fromisoformat(until) - datetime.now(UTC)).total_seconds()
    if next(looks) and left < 0:
        over()
        session.draw_by_itself()
        st.rerun()
    minutes, seconds = divmod(max(int(left), 0), 60)
    st.markdown(f":orange-badge[:material/timer: open for {minutes}:{seconds:02} more]")
