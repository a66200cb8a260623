"""Keeps what is shown only now until the page that shows it was drawn whole. It does not know what it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import streamlit as st


@contextmanager
def shown(key: str) -> Iterator[Any]:
    """What is kept under this key, None if nothing is, while the page is drawn; forgotten once it is.

    It stays when the drawing stops before, whatever stops it: the page is then drawn anew by itself.
    """
    yield st.session_state.get(key)
    st.session_state.pop(key, None)
