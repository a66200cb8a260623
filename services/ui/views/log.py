"""The audit log, for auditors: read only. Each look is itself an event of the log."""

import json
from datetime import UTC, datetime, time, timedelta

import pandas as pd
import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.finding import Finding
from services.ui.text import moment, plain_markdown
from services.ui.views import acts, exporting, once, password, set_passwords

_PAGE = 50
_APPROVED = "log-approved"


def show(gateway: Gateway, me: Json) -> None:
    """Filters, events, one in full; new auditors who wait for a yes; passwords that others set."""
    st.title("Log")
    st.caption("Newest first, times in UTC. What you look at here is itself logged.")
    password.show(gateway)
    acts.show_refusal()
    with once.shown(_APPROVED) as approved:
        if approved:
            _show_approved(approved)
        _pending(gateway)
        if me["set_passwords_used"]:
            set_passwords.section(gateway)
        _events(gateway)


def _events(gateway: Gateway) -> None:
    filters = _filters()
    if st.session_state.get("log-filters") != filters:
        st.session_state["log-filters"], st.session_state["log-cursors"] = filters, [None]
    cursors = st.session_state["log-cursors"]
    page = gateway.audit_events(**filters, limit=_PAGE, cursor=cursors[-1])
    if not page["items"]:
        st.info("No event matches.")
        return
    exporting.show(Finding(gateway), "events", {name: value for name, value in filters.items() if value})
    table = [
        {
            "time": moment(event["occurred_at"]),
            "who": event["actor_name"] or event["actor"],
            "what": event["action"],
            "outcome": event["outcome"],
            "on": event["object"],
            "reason": event["reason"],
        }
        for event in page["items"]
    ]
    chosen = st.dataframe(
        pd.DataFrame(table), hide_index=True, width="stretch", on_select="rerun", selection_mode="single-row"
    )
    newer, older, _ = st.columns([0.2, 0.2, 0.6])
    if newer.button("Newer", disabled=len(cursors) == 1):
        cursors.pop()
        st.rerun()
    if older.button("Older", disabled=page["next_cursor"] is None):
        cursors.append(page["next_cursor"])
        st.rerun()
    rows = chosen["selection"]["rows"]
    if rows:
        st.subheader("Event")
        st.code(json.dumps(page["items"][rows[0]], indent=2, ensure_ascii=False), language="json")
    else:
        st.caption("Select a row to see all of an event.")


def _filters() -> dict[str, str | None]:
    what, who, outcome = st.columns(3)
    action = what.text_input("What", placeholder="question.asked", key="action").strip()
    actor = who.text_input("Who (name or id)", key="actor").strip()
    ended = outcome.selectbox("Outcome", ("any", "done", "denied", "failed"), key="outcome")
    on, when = st.columns(2)
    object = on.text_input("On", placeholder="conversation:…", key="object").strip()
    days = when.date_input("Days", value=(), key="days")
    since = until = None
    if isinstance(days, tuple) and days:
        since = datetime.combine(days[0], time(), UTC).isoformat()
        until = (datetime.combine(days[-1], time(), UTC) + timedelta(days=1)).isoformat()
    return {
        "action": action or None,
        "actor": actor or None,
        "object": object or None,
        "outcome": None if ended == "any" else ended,
        "since": since,
        "until": until,
    }


def _pending(gateway: Gateway) -> None:
    for person in gateway.pending_auditors():
        with st.container(border=True):
            st.write(
                f"**{plain_markdown(person['name'])}** waits to become an auditor "
                f"(asked {moment(person['created_at'])})."
            )
            if st.button("Say yes", key=f"approve-{person['id']}"):
                try:
                    new = gateway.approve(person["id"])
                except GatewayError as error:
                    st.error(error.detail)
                else:
                    st.session_state[_APPROVED] = {"name": person["name"], "password": new}
                    st.rerun()


def _show_approved(approved: Json) -> None:
    st.success(
        f"{plain_markdown(approved['name'])} is an auditor. Hand them this password yourself; it is "
        "shown only now, and the one that an admin knows no longer works."
    )
    st.code(approved["password"], language=None)
