"""The text to accept before the first question."""

import streamlit as st

from services.ui.client import Gateway, Json


def show(gateway: Gateway, me: Json) -> None:
    """Show the text; record the yes."""
    st.title("Before you start")
    for paragraph in me["consent"]["text"].split("\n\n"):
        st.write(paragraph)
    understood = st.checkbox("I have read and understood this.")
    if st.button("Continue", type="primary", disabled=not understood):
        gateway.consent(me["consent"]["version"])
        st.rerun()
