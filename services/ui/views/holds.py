"""Legal holds: what must be kept for a case. A page of its own for auditors, a part of People for admins."""

from functools import partial

import pandas as pd
import streamlit as st

from services.ui.client import Gateway, Json
from services.ui.text import moment
from services.ui.views import acts

_KINDS = {"conversation": "a conversation", "user": "a person"}


def show(gateway: Gateway, me: Json) -> None:
    """The page of an auditor, who knows people and conversations by the ids of the log."""
    st.title("Holds")
    acts.show_refusal()
    section(gateway, None)


def section(gateway: Gateway, people: list[Json] | None) -> None:
    """The holds that count now, a form for another, and the way to lift one."""
    if people is not None:
        st.subheader("Legal holds")
    st.caption(
        "What is held for a case cannot be erased, and no period of retention ends it. Placing, lifting and "
        "reading holds is logged. Times in UTC."
    )
    page = gateway.holds()
    holds = page["items"]
    while page["next_cursor"]:
        page = gateway.holds(page["next_cursor"])
        holds += page["items"]
    _place(gateway, people)
    if not holds:
        st.info("Nothing is held.", icon=":material/gavel:")
        return
    table = [
        {
            "case": hold["reference"],
            "held": _whom(hold),
            "since": moment(hold["placed_at"]),
            "by": hold["placed_by"],
        }
        for hold in holds
    ]
    st.dataframe(pd.DataFrame(table), hide_index=True, width="stretch")
    chosen = st.selectbox(
        "Hold", holds, format_func=lambda hold: f"{hold['reference']} · {_whom(hold)}", key="hold"
    )
    acts.confirm(
        "Lift the hold",
        "What it held can be erased again, and periods of retention count for it again.",
        partial(gateway.lift_hold, chosen["id"]),
        key=f"lift-{chosen['id']}",
        done="Lifted.",
        icon=":material/lock_open:",
    )


def _place(gateway: Gateway, people: list[Json] | None) -> None:
    with st.form(acts.fresh("new-hold"), clear_on_submit=False):
        if people is None:
            kind = st.radio("Hold", list(_KINDS), format_func=_KINDS.get, horizontal=True)
            id = st.text_input("Its id, as the log has it", max_chars=36, key=acts.fresh("hold-id")).strip()
        else:
            kind = "user"
            person = st.selectbox("Hold", people, format_func=lambda each: each["name"], key="hold-person")
            id = person["id"]
        reference = st.text_input(
            "Number of the case",
            max_chars=64,
            key=acts.fresh("hold-reference"),
            placeholder="2026-C-0417",
            help="Letters, digits and . / _ : - without blanks. It is kept in the log: no names.",
        ).strip()
        if not st.form_submit_button("Place the hold", icon=":material/gavel:"):
            return
    if not id or not reference:
        st.error("Name what is to be held, and the case.")
        return
    acts.attempt(partial(gateway.place_hold, f"{kind}:{id}", reference), "Held.")
    st.rerun()


def _whom(hold: Json) -> str:
    kind, _, id = hold["subject"].partition(":")
    return f"{hold['subject_name']} (with all conversations)" if kind == "user" else f"conversation {id}"
