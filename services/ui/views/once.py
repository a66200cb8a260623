"""Keeps what is shown only now until its page was drawn whole or left. It does not know what it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import streamlit as st

_KEYS, _PAGE = "shown-once", "page-with-shown-once"


@contextmanager
def shown(key: str) -> Iterator[Any]:
    """What is kept under this key, None if nothing is, while the page is drawn; forgotten once it is.

    It stays when the drawing stops before, whatever stops it, as long as no other page is drawn.
    """
    st.session_state.setdefault(_KEYS, set()).add(key)
    yield st.session_state.get(key)
    st.session_state.pop(key, None)


def page_is(page: str) -> None:
    """Forget what other pages keep: `page` is drawn now."""
    if st.session_state.get(_PAGE, page) != page:
        forget()
    st.session_state[_PAGE] = page


def forget() -> None:
    """Forget all that is kept."""
    for key in st.session_state.pop(_KEYS, set()):
        st.session_state.pop(key, None)
