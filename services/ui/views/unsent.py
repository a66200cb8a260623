"""Questions that did not reach the gateway: kept in this session until they do. It sends nothing."""

from collections.abc import Callable

import streamlit as st

from services.ui.client import GatewayError, Json
from services.ui.text import plain_markdown


def keep(question: Json, error: GatewayError) -> None:
    """Keep a question that was not taken, and why; one under the same key is kept once."""
    told = f"Your question was not sent. {error.detail}"
    if error.code in ("unavailable", "no-answer"):
        told = "It is not known whether your question arrived. Send it again: it is never asked twice."
    _all()[question["key"]] = {**question, "detail": told}


def forget(question: Json) -> None:
    """It was sent, or is not wanted any more."""
    _all().pop(question["key"], None)


def of(conversation_id: str | None) -> list[Json]:
    """Those that belong to this conversation, or to none yet; the oldest first."""
    return [question for question in _all().values() if question["conversation_id"] == conversation_id]


def show(conversation_id: str | None, send: Callable[[Json], None]) -> None:
    """Offer those of this conversation for another try, or to be forgotten."""
    for number, question in enumerate(of(conversation_id)):
        st.error(question["detail"], icon=":material/error:")
        st.markdown(plain_markdown(question["query"]))
        again, discard = st.columns(2)
        again.button(
            "Send again", type="primary", key=f"send-again-{number}", on_click=send, args=(question,)
        )
        discard.button("Discard", key=f"discard-{number}", on_click=forget, args=(question,))


def tell(what_next: str) -> None:
    """All of them, where nothing can be sent now, and what becomes of them."""
    if not _all():
        return
    st.warning(f"**Not sent yet.** {what_next}", icon=":material/schedule_send:")
    for question in _all().values():
        st.markdown(plain_markdown(question["query"]))


def _all() -> dict[str, Json]:
    kept: dict[str, Json] = st.session_state.setdefault("unsent", {})
    return kept
