"""Says which log-in the browser holds. It checks nothing: the gateway does."""

import streamlit as st

#: Set by the gateway's own log-in page; scripts of a page cannot read it, this server can.
COOKIE = "medichat_session"


def token() -> str | None:
    """The token in the browser's cookie."""
    return st.context.cookies.get(COOKIE)
