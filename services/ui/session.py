"""Says which log-in the browser holds, and whose this session is. It checks nothing: the gateway does."""

import streamlit as st

#: Set by the gateway's own log-in page; scripts of a page cannot read it, this server can.
COOKIE = "medichat_session"


def token() -> str | None:
    """The token in the browser's cookie."""
    return st.context.cookies.get(COOKIE)


def belong_to(person_id: str) -> None:
    """Forget what the page keeps when another person has logged in in the same browser."""
    if st.session_state.get("person", person_id) != person_id:
        st.session_state.clear()
    st.session_state["person"] = person_id


def draw_by_itself() -> None:
    """Remember that the page is drawn next without anybody's doing."""
    st.session_state["drawn-by-itself"] = True


def drawn_by_itself() -> bool:
    """Whether nobody asked for the drawing that begins: what it asks for is no use of the log-in. Once."""
    return bool(st.session_state.pop("drawn-by-itself", False))
