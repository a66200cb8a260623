"""One logged conversation, for auditors: masked, or revealed for a while with a reason.

The address names it (`?conversation=ID`), so that other pages can lead here and a reload loses nothing. Each
look is an event of the log.
"""

from functools import partial

import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.reading import Reading
from services.ui.reviewing import Reviewing
from services.ui.text import moment, plain_markdown
from services.ui.views import acts, countdown, password, transcript

_REVEALED = "revealed"
_RAN_OUT = "reveal-ran-out"


def show(gateway: Gateway, me: Json) -> None:
    """The conversation that the address names, or a field for its id."""
    st.title("Conversation")
    st.caption("Times in UTC. What you look at here is itself logged.")
    acts.show_refusal()
    password.show(gateway)
    reading, conversation_id = Reading(gateway), st.query_params.get("conversation")
    if not conversation_id:
        _ask_for_one()
        return
    st.button("Another conversation", icon=":material/arrow_back:", on_click=_leave)
    seen = _load(reading, conversation_id)
    if seen is None:
        return
    _identifiers(reading, seen)
    transcript.show(
        seen,
        None if seen["erased"] else partial(_ask_for_review, Reviewing(gateway)),
        None if seen["masked"] else partial(reading.image, conversation_id),
    )
    _accesses(seen["accesses"])


def _ask_for_one() -> None:
    with st.form("which-conversation"):
        written = st.text_input("Id of the conversation", max_chars=60).strip()
        st.caption("Events of the log name it: `conversation:` and its id.")
        if st.form_submit_button("Open", type="primary") and written:
            st.query_params["conversation"] = written.removeprefix("conversation:")
            st.rerun()


def _leave() -> None:
    for name in ("conversation", _REVEALED):
        st.query_params.pop(name, None)


def _load(reading: Reading, conversation_id: str) -> Json | None:
    revealed = _REVEALED in st.query_params
    if st.session_state.pop(_RAN_OUT, False):
        _say_over()
    try:
        return reading.conversation(conversation_id, revealed=revealed)
    except GatewayError as error:
        if revealed and error.status == 403:
            del st.query_params[_REVEALED]
            _say_over()
            return reading.conversation(conversation_id)
        if error.status not in (404, 410, 422):
            raise
        st.error(plain_markdown(error.detail), icon=":material/error:")
        return None


def _identifiers(reading: Reading, seen: Json) -> None:
    """The way to see whom it is about, and back."""
    if seen["erased"]:
        return
    until = seen["revealed_until"]
    if not seen["masked"]:
        st.warning(f"**Identifiers are shown** until {moment(until)} UTC.", icon=":material/visibility:")
        countdown.show(until, _run_out)
        st.button("Mask them again", icon=":material/visibility_off:", on_click=_mask)
    elif until is not None:
        st.button(
            f"Show identifiers (until {moment(until)} UTC)", icon=":material/visibility:", on_click=_unmask
        )
    else:
        acts.with_reason(
            "Reveal identifiers",
            "You see whom this is about for 15 minutes. Your reason and each look are kept for auditors.",
            partial(_reveal, reading, seen["conversation_id"]),
            key="reveal",
            done="Identifiers are shown.",
            icon=":material/visibility:",
            sealed=True,
        )


def _reveal(reading: Reading, conversation_id: str, reason: str) -> Json:
    made = reading.reveal(conversation_id, reason)
    _unmask()
    return made


def _unmask() -> None:
    st.query_params[_REVEALED] = "1"


def _mask() -> None:
    st.query_params.pop(_REVEALED, None)


def _run_out() -> None:
    _mask()
    st.session_state[_RAN_OUT] = True


def _say_over() -> None:
    st.info("The reveal is over: identifiers are masked again.", icon=":material/visibility_off:")


def _ask_for_review(reviewing: Reviewing, turn: Json, number: int) -> None:
    """The button that puts this answer into the queue; what is not kept as a message cannot be reviewed."""
    if turn["message_id"] is None or turn["job_id"] is None:
        return
    st.button(
        "Ask for a review",
        key=f"ask-for-review-{number}-{turn['job_id']}",
        type="tertiary",
        icon=":material/rate_review:",
        help="It joins the reviewers' queue; one that was reviewed is reviewed by one more person.",
        on_click=acts.attempt,
        args=(partial(reviewing.ask_for, turn["job_id"]), "It waits to be reviewed."),
    )


def _accesses(accesses: list[Json]) -> None:
    with st.expander(f"Who could read it unmasked ({len(accesses)})"):
        if not accesses:
            st.caption("Nobody but the person.")
        for access in accesses:
            kind = "in an emergency" if access["kind"] == "break_glass" else "as an auditor"
            st.markdown(
                f"**{plain_markdown(access['user_name'])}** {kind}, from {moment(access['granted_at'])} to "
                f"{moment(access['ended_at'] or access['expires_at'])}"
            )
            st.text(access["reason"] or "The reason was erased with the conversation.")
