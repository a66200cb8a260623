"""Passwords that somebody else set: told to their owner, and to auditors once somebody logged in with one."""

from typing import Any

import pandas as pd
import streamlit as st

from services.ui.client import Gateway, Json
from services.ui.text import moment

_WHO = {"admin": "an admin", "auditor": "an auditor", "operator": "the operator of this installation"}


def notice(me: Json, page: Any) -> None:
    """Ask the person to change a password that another set; nothing when they set it themselves."""
    if me["password_set_at"] is None:
        return
    who = _WHO.get(me["password_set_by"], "somebody else")
    with st.container(border=True):
        st.warning(
            f"**Your password was set by {who}** at {moment(me['password_set_at'])} UTC, who may know it. "
            "Change it; API keys made until then end with it. If you did not ask for it, tell an auditor.",
            icon=":material/key:",
        )
        st.page_link(page, label="Change it", icon=":material/arrow_forward:")


def banner(used: int, page: Any) -> None:
    """Tell an auditor how many such passwords were used, with the way there; nothing when there is none."""
    if not used:
        return
    were = "1 account was" if used == 1 else f"{used} accounts were"
    with st.container(border=True):
        st.warning(f"**{were} logged in to with a password that somebody else set.**", icon=":material/key:")
        st.page_link(page, label="Look whose", icon=":material/arrow_forward:")


def section(gateway: Gateway) -> None:
    """Which accounts they are, for auditors."""
    st.subheader("Passwords set by others")
    st.caption(
        "Somebody logged in to these with a password that another set: the person themselves, or whoever set "
        "it. Ask them. An account leaves the list when its owner changes the "
        "password, or another is set; one that is disabled stays, and is not counted."
    )
    table = [
        {
            "account": each["user_name"],
            "set by": each["set_by"],
            "set (UTC)": moment(each["set_at"]),
            "newest log-in (UTC)": moment(each["logged_in_at"]),
        }
        for each in gateway.set_passwords()
    ]
    st.dataframe(pd.DataFrame(table), hide_index=True, width="stretch")
