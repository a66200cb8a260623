"""Asks for the password again, where the gateway does. It knows no page, and keeps no password."""

import streamlit as st

from services.ui.client import Gateway, GatewayError
from services.ui.text import plain_markdown

#: What the gateway answers where the password must be typed again.
CODE = "password-required"
_WANTED = "password-wanted"


def want() -> None:
    """Something was refused until the password is typed."""
    st.session_state[_WANTED] = True


def show(gateway: Gateway) -> None:
    """A form, if something was refused for want of the password; a page draws it above what it refuses."""
    if not st.session_state.get(_WANTED):
        return
    with st.form("password-again", clear_on_submit=True):
        st.write("Type your password again, then repeat what you did. It is asked for once in a while.")
        typed = st.text_input("Your password", type="password", autocomplete="current-password")
        if not st.form_submit_button("Go on"):
            return
    try:
        gateway.reauthenticate(typed)
    except GatewayError as error:
        st.error(plain_markdown(error.detail))
        return
    del st.session_state[_WANTED]
    st.toast("Thank you. Now repeat what you did.")
    st.rerun()
