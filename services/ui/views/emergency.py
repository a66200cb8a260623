"""Emergency access: an admin reads one conversation for a while; auditors see who did, and why.

The address names the access that is read (`?grant=ID`), so that a reload loses nothing.
"""

from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.reading import Reading
from services.ui.text import moment, plain_markdown
from services.ui.views import acts, countdown, password, transcript

_CURSORS = "emergency-cursors"
_RAN_OUT = "emergency-ran-out"


def show(gateway: Gateway, me: Json) -> None:
    """What is open, a form for another one, and what was."""
    st.title("Emergency access")
    acts.show_refusal()
    password.show(gateway)
    reading, auditor = Reading(gateway), me["role"] == "auditor"
    if st.session_state.pop(_RAN_OUT, False):
        st.info("The emergency access is over.", icon=":material/lock:")
    if auditor:
        st.caption("What admins opened in an emergency. What you look at here is itself logged.")
    else:
        st.caption(
            "Only when somebody's health depends on it. Every auditor is told at once, and what you read is "
            "logged each time."
        )
        _form(reading)
    cursors = st.session_state.setdefault(_CURSORS, [None])
    page = reading.accesses(cursors[-1])
    if not page["items"]:
        st.info("No conversation was opened in an emergency.")
    for access in page["items"]:
        if auditor or access["open"]:
            _access(reading, access, auditor=auditor)
    if not auditor:
        _over([access for access in page["items"] if not access["open"]])
    _turn_pages(cursors, page["next_cursor"])
    if not auditor and st.query_params.get("grant"):
        _read(reading, st.query_params["grant"])


def banner(waiting: int, page: Any) -> None:
    """Tell an auditor what no auditor has acknowledged, with the way there; nothing when there is none."""
    if not waiting:
        return
    was = "conversation was" if waiting == 1 else "conversations were"
    with st.container(border=True):
        st.error(
            f"**{waiting} {was} opened by an admin in an emergency**, and no auditor has acknowledged it.",
            icon=":material/emergency_home:",
        )
        st.page_link(page, label="Look at who, why and what", icon=":material/arrow_forward:")


def _form(reading: Reading) -> None:
    with st.expander("Break the glass", icon=":material/emergency_home:", expanded=True):
        st.text_input("Id of the conversation", key="glass-id", max_chars=60)
        st.text_area(
            "Reason (10 characters or more; sealed, for auditors)", key="glass-reason", max_chars=500
        )
        st.slider("Minutes", 5, 240, 30, step=5, key="glass-minutes")
        st.button(
            "Open the conversation",
            type="primary",
            on_click=partial(_break, reading),
        )


def _break(reading: Reading) -> None:
    kept = st.session_state
    wish = partial(
        reading.break_glass,
        kept["glass-id"].strip().removeprefix("conversation:"),
        kept["glass-reason"].strip(),
        kept["glass-minutes"],
    )
    made = acts.attempt(wish, "Open; every auditor is told.")
    if made is not None:
        kept["glass-id"] = kept["glass-reason"] = ""
        kept[_CURSORS] = [None]
        st.query_params["grant"] = made["id"]


def _access(reading: Reading, access: Json, *, auditor: bool) -> None:
    with st.container(border=True):
        st.markdown(
            f"**{plain_markdown(access['user_name'])}** may read `{access['conversation_id']}`"
            if access["open"]
            else f"**{plain_markdown(access['user_name'])}** could read `{access['conversation_id']}`"
        )
        if access["open"]:
            countdown.show(access["expires_at"], partial(_run_out, access["id"]))
        st.caption(_when(access))
        if auditor:
            st.text(access["reason"] or "The reason was erased with the conversation.")
        with st.container(horizontal=True, vertical_alignment="center"):
            _buttons(reading, access, auditor=auditor)


def _buttons(reading: Reading, access: Json, *, auditor: bool) -> None:
    grant_id = access["id"]
    if auditor and access["acknowledged_at"] is None:
        st.button(
            "Acknowledge",
            key=f"acknowledge-{grant_id}",
            type="primary",
            icon=":material/done:",
            on_click=acts.attempt,
            args=(partial(reading.acknowledge, grant_id), "Acknowledged."),
        )
    if not auditor:
        st.button(
            "Read", key=f"read-{grant_id}", icon=":material/visibility:", on_click=_choose, args=(grant_id,)
        )
    if access["open"]:
        st.button(
            "End",
            key=f"end-{grant_id}",
            icon=":material/lock:",
            on_click=acts.attempt,
            args=(partial(reading.end, grant_id), "Ended."),
        )
    if auditor:
        st.page_link(
            st.session_state["pages"]["conversation"],
            label="The conversation, masked",
            query_params={"conversation": access["conversation_id"]},
        )


def _choose(grant_id: str) -> None:
    st.query_params["grant"] = grant_id


def _close() -> None:
    st.query_params.pop("grant", None)


def _run_out(grant_id: str) -> None:
    if st.query_params.get("grant") == grant_id:
        _close()
        st.session_state[_RAN_OUT] = True


def _when(access: Json) -> str:
    said = [f"opened {moment(access['granted_at'])}"]
    if access["ended_at"]:
        said.append(f"ended {moment(access['ended_at'])}")
    else:
        said.append(f"{'until' if access['open'] else 'ran out'} {moment(access['expires_at'])}")
    if access["acknowledged_at"]:
        said.append(f"acknowledged by an auditor {moment(access['acknowledged_at'])}")
    else:
        said.append("not acknowledged yet")
    return " · ".join(said) + " (UTC)"


def _over(accesses: list[Json]) -> None:
    if not accesses:
        return
    with st.expander(f"Over ({len(accesses)})"):
        table = [{"conversation": access["conversation_id"], "when": _when(access)} for access in accesses]
        st.dataframe(pd.DataFrame(table), hide_index=True, width="stretch")


def _turn_pages(cursors: list[str | None], more: str | None) -> None:
    if len(cursors) == 1 and more is None:
        return
    newer, older, _ = st.columns([0.2, 0.2, 0.6])
    newer.button("Newer", disabled=len(cursors) == 1, on_click=cursors.pop)
    older.button("Older", disabled=more is None, on_click=cursors.append, args=(more,))


def _read(reading: Reading, grant_id: str) -> None:
    try:
        seen = reading.emergency_conversation(grant_id)
    except GatewayError as error:
        if error.status not in (403, 404, 410, 422):
            raise
        st.error(plain_markdown(error.detail), icon=":material/error:")
        return
    st.divider()
    st.button("Close the conversation", icon=":material/close:", on_click=_close)
    transcript.show(seen, load_image=partial(reading.emergency_image, grant_id))
