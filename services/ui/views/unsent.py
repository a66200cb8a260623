"""Questions that did not reach the gateway: kept in this session until they do. It sends nothing."""

from collections.abc import Callable, Iterable

import streamlit as st

from services.ui.client import GatewayError, Json
from services.ui.text import answer_markdown, plain_markdown
from services.ui.views import pictures
from shared.prompts import HELP


def keep(question: Json, error: GatewayError) -> None:
    """Keep a question that was not taken, and why; one under the same key is kept once."""
    told = f"Your question was not sent. {error.detail}"
    if error.code in ("unavailable", "no-answer"):
        told = "It is not known whether your question arrived. Send it again: it is never asked twice."
    help = error.help or question.get("help", "")
    _all()[question["key"]] = {**question, "detail": told, "help": help}


def forget(question: Json) -> None:
    """It was sent, or is not wanted any more."""
    _all().pop(question["key"], None)


def of(conversation_id: str | None) -> list[Json]:
    """Those that belong to this conversation, or to none yet; the oldest first."""
    return [question for question in _all().values() if question["conversation_id"] == conversation_id]


def show(conversation_id: str | None, send: Callable[[Json], None]) -> None:
    """Offer those of this conversation for another try, or to be forgotten."""
    for number, question in enumerate(of(conversation_id)):
        _show_help([question])
        st.error(question["detail"], icon=":material/error:")
        st.markdown(plain_markdown(question["query"]))
        pictures.tell_unsent(question["images"])
        again, discard = st.columns(2)
        again.button(
            "Send again", type="primary", key=f"send-again-{number}", on_click=send, args=(question,)
        )
        discard.button("Discard", key=f"discard-{number}", on_click=forget, args=(question,))


def help_first() -> None:
    """Where help is found, if a person in need wrote one of them; for the top of a page."""
    _show_help(_all().values())


def _show_help(questions: Iterable[Json]) -> None:
    for help in dict.fromkeys(question["help"] for question in questions if question["help"]):
        st.error("**The guard answered at once.** No model wrote this.", icon=":material/emergency:")
        st.markdown(answer_markdown(help))


def tell_hidden() -> None:
    """That there are some, where nobody is logged in: who sits there may be another than who wrote them."""
    if _all():
        st.warning(
            "**What you asked last was not sent.** It is not shown to whoever sits here next, and not kept: "
            "log in, and ask it again.",
            icon=":material/schedule_send:",
        )
        st.info(HELP, icon=":material/emergency:")


def tell(what_next: str) -> None:
    """All of them, where nothing can be sent now, and what becomes of them."""
    if not _all():
        return
    st.warning(f"**Not sent yet.** {what_next}", icon=":material/schedule_send:")
    st.info(HELP, icon=":material/emergency:")
    for question in _all().values():
        st.markdown(plain_markdown(question["query"]))
        pictures.tell_unsent(question["images"])


def _all() -> dict[str, Json]:
    kept: dict[str, Json] = st.session_state.setdefault("unsent", {})
    return kept
