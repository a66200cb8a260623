"""The text to accept before the first question."""

import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.views import unsent

_SHOWN = "consent-shown"


def show(gateway: Gateway, me: Json) -> None:
    """Show the text; record the yes, which is one to this version of it only."""
    unsent.help_first()
    st.title("Before you start")
    version = me["consent"]["version"]
    if st.session_state.setdefault(_SHOWN, version) != version:
        st.info("The text has changed since you opened this page. Please read it again.")
    for paragraph in me["consent"]["text"].split("\n\n"):
        st.write(paragraph)
    understood = st.checkbox("I have read and understood this.", key=f"understood-{version}")
    unsent.tell("It is offered again after this.")
    if st.button("Continue", key=f"continue-{version}", type="primary", disabled=not understood):
        try:
            gateway.consent(version)
        except GatewayError as error:
            if error.status != 422:  # it is another text since a moment ago
                raise
            st.toast("The text has just been changed. Please read it again.")
        st.rerun()
