"""One's own account: password, API keys, what is kept about oneself, and its end."""

from functools import partial

import pandas as pd
import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.text import moment, plain_markdown
from services.ui.views import acts, erasing, once, password

_SCOPE = {"user": "ask", "admin": "admin", "auditor": "audit"}
_NEW_KEY = "new-key"


def show(gateway: Gateway, me: Json) -> None:
    """Who one is, a form for the password, the keys."""
    st.title("Account")
    password.show(gateway)
    acts.show_refusal()
    st.write(f"**{plain_markdown(me['name'])}**, {me['role']}; answers are written for a {me['audience']}.")
    st.caption(f"This log-in ends at {moment(me['session']['expires_at'])} UTC at the latest.")
    _password(gateway)
    _keys(gateway, _SCOPE[me["role"]])
    _own_data(gateway)
    erasing.by_name(
        "Erase my account",
        "Your account ends, and all your conversations are destroyed: nobody can read them again, neither "
        "you nor auditors. **This cannot be undone.** The log keeps that you were here, without your words. "
        "Backups taken before hold them until they are deleted.",
        me["name"],
        gateway.erase_oneself,
        key="erase-me",
    )


def _own_data(gateway: Gateway) -> None:
    st.subheader("Your data")
    st.caption(
        "What is kept about you, to read and for programs: account, conversations, ratings, log-ins, what "
        "was made of your conversations and who might read them unmasked, and what the log says about you. "
        "Left out are what the guard kept back, what others wrote, and their names; the file says so too."
    )
    if not st.button("Put my data together", icon=":material/folder_zip:"):
        return
    with st.spinner("Reading what is kept about you …"):
        data = acts.attempt(gateway.own_data)
    if data is None:
        st.rerun()  # what is refused is told at the top
    st.download_button(
        f"Download ({len(data) / 1000:,.0f} kB)",
        data,
        "medichat-my-data.zip",
        "application/zip",
        on_click="ignore",
        type="primary",
        icon=":material/download:",
    )


def _password(gateway: Gateway) -> None:
    with st.form("password", clear_on_submit=True):
        st.subheader("Change your password")
        current = st.text_input("Current password", type="password", autocomplete="current-password")
        new = st.text_input("New password", type="password", autocomplete="new-password")
        again = st.text_input("New password again", type="password", autocomplete="new-password")
        st.caption("You will be logged out everywhere and log in again.")
        if not st.form_submit_button("Change password"):
            return
    if new != again:
        st.error("The two new passwords differ; nothing was changed.")
        return
    try:
        gateway.change_password(current, new)
    except GatewayError as error:
        st.error(error.detail)
        return
    st.rerun()


def _keys(gateway: Gateway, scope: str) -> None:
    st.subheader("API keys")
    asks = " Clients of OpenAI's API use it at the gateway's `/v1`." if scope == "ask" else ""
    st.caption(f"For programs that work in your name.{asks} A key is shown once.")
    with st.form("key", clear_on_submit=True):
        name = st.text_input("What is it for?", max_chars=100, placeholder="ward tablet")
        days = st.number_input("Days until it ends", 1, 365, 90)
        if st.form_submit_button("Make a key"):
            try:
                st.session_state[_NEW_KEY] = gateway.create_api_key(name, scope, int(days))["key"]
            except GatewayError as error:
                st.error(error.detail)
    with once.shown(_NEW_KEY) as made:
        if made:
            st.success("Copy it now; it is not shown again.")
            st.code(made, language=None)
        keys = [key for key in gateway.api_keys() if key["revoked_at"] is None]
    if not keys:
        st.caption("No keys.")
        return
    table = [
        {
            "name": key["name"],
            "begins with": key["hint"],
            "made": moment(key["created_at"]),
            "until": moment(key["expires_at"]),
            "last used": moment(key["last_used_at"]) or "never",
        }
        for key in keys
    ]
    st.dataframe(pd.DataFrame(table), hide_index=True)
    chosen = st.selectbox("Key", keys, format_func=lambda key: f"{key['name']} ({key['hint']}…)")
    st.button("Revoke this key", on_click=partial(_revoke, gateway, chosen["id"]))


def _revoke(gateway: Gateway, key_id: str) -> None:
    try:
        gateway.revoke_api_key(key_id)
        st.toast("The key no longer works.")
    except GatewayError as error:
        st.toast(error.detail, icon=":material/error:")
