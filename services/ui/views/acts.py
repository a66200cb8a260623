"""Buttons that do something, and forms that ask before they do. It knows no page."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from services.ui.client import GatewayError
from services.ui.text import plain_markdown
from services.ui.views import password


def attempt(act: Callable[[], Any], done: str | None = None) -> Any:
    """Do it and return what comes of it; None when the gateway refuses, and then `show_refusal` says why."""
    try:
        made = act()
    except GatewayError as error:
        if error.code == password.CODE:
            password.want()
        else:
            st.session_state["refusal"] = error.detail
        return None
    st.session_state["acts-done"] = _done() + 1
    if done is not None:
        st.toast(done)
    return made


def fresh(key: str) -> str:
    """The key under another name once something was done, so that what was open or filled in is anew."""
    return f"{key}-{_done()}"


def _done() -> int:
    return int(st.session_state.get("acts-done", 0))


def show_refusal() -> None:
    """What the gateway refused at the last click."""
    detail = st.session_state.pop("refusal", None)
    if detail is not None:
        st.error(plain_markdown(detail), icon=":material/error:")


def confirm(label: str, question: str, act: Callable[[], Any], *, key: str, done: str, icon: str) -> None:
    """A button that asks once more before it acts."""
    with st.popover(label, icon=icon, key=fresh(key), on_change="rerun"):
        st.write(question)
        _yes(label, act, key=key, done=done)


def with_reason(
    label: str,
    question: str,
    act: Callable[[str], Any],
    *,
    key: str,
    done: str,
    icon: str,
    sealed: bool = False,
) -> None:
    """A button that asks for a reason, which is kept for auditors; encrypted, where it is `sealed`."""
    with st.popover(label, icon=icon, key=fresh(key), on_change="rerun"):
        st.write(question)
        if not sealed:
            st.caption("The reason is kept unencrypted: name no patient in it.")
        reason = st.text_area("Reason (kept for auditors)", key=fresh(f"{key}-reason"), max_chars=500).strip()
        _yes(label, lambda: act(reason), key=key, done=done, disabled=not reason)


def _yes(label: str, act: Callable[[], Any], *, key: str, done: str, disabled: bool = False) -> None:
    # a callback, for with what is new the button may not be drawn any more
    pressed = st.button(
        f"Yes: {label.lower()}",
        f"{key}-yes",
        type="primary",
        disabled=disabled,
        on_click=attempt,
        args=(act, done),
    )
    if pressed and "refusal" in st.session_state:  # only a fragment was drawn, and it shows no refusal
        st.rerun()
