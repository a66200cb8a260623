"""Asks before something is destroyed, and says afterwards what had seen it. It knows no page."""

from collections.abc import Callable

import streamlit as st

from services.ui.client import Json
from services.ui.text import plain_markdown
from services.ui.views import acts

_OUTCOME = "erasure-outcome"


def by_name(label: str, question: str, name: str, act: Callable[[str], Json], *, key: str) -> None:
    """A button that acts once the name of what is to be destroyed was typed."""
    with st.popover(label, icon=":material/person_remove:", key=acts.fresh(key), on_change="rerun"):
        st.write(question)
        typed = st.text_input(f"Type **{plain_markdown(name)}** to go on", key=acts.fresh(f"{key}-name"))
        st.button(
            "Erase for good",
            f"{key}-yes",
            type="primary",
            icon=":material/delete_forever:",
            disabled=typed.strip().lower() != name.lower(),
            on_click=_erase,
            args=(act, typed.strip()),
        )


def note(outcome: Json) -> None:
    """Keep what the gateway said of an erasure until `show_outcome` tells it."""
    st.session_state[_OUTCOME] = outcome


def show_outcome() -> None:
    """What was erased, and which adapters had been trained on it: those go on to answer."""
    outcome = st.session_state.pop(_OUTCOME, None)
    if outcome is None:
        return
    talks = outcome["conversations"]
    told = f"Erased for good: {talks} conversation{'' if talks == 1 else 's'}."
    if outcome["datasets"]:
        told += f" {len(outcome['datasets'])} of the datasets can be read and trained on no more."
    if outcome["conversations_left"]:
        told += f" {outcome['conversations_left']} more follow within the next minutes."
    st.success(told, icon=":material/check:")
    if outcome["adapters"]:
        names = ", ".join(
            f"**{plain_markdown(each['name'])}** {each['version']} ({each['status']})"
            for each in outcome["adapters"]
        )
        st.warning(
            f"Adapters were trained on rows of it before: {names}. An admin can recall them, so that they "
            "answer no more, and train others without these rows.",
            icon=":material/extension:",
        )


def _erase(act: Callable[[str], Json], name: str) -> None:
    outcome = acts.attempt(lambda: act(name))
    if outcome is not None:
        note(outcome)
