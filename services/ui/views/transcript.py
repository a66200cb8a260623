"""Draws a logged conversation: each turn, what wrote it, and what the guard did in place. It asks no gateway.

Nothing that a person or a model wrote works as markup here: it is shown as it was written.
"""

import itertools
import re
from collections.abc import Callable, Iterable

import streamlit as st

from services.ui.client import Json
from services.ui.text import moment, plain_markdown, words
from services.ui.views import pictures

#: Of each act of the guard what it is called, its colour and its sign.
_ACTS = {
    "allow": ("let through", "green", "check"),
    "append": ("added to", "blue", "add_comment"),
    "replace": ("replaced", "orange", "shield"),
    "refuse": ("refused", "red", "block"),
    "crisis": ("help first", "red", "emergency"),
    "escalate": ("flagged for review", "violet", "flag"),
}
#: What a program sent with its question as said before, by whose words it says that it was.
_SENT = {
    "system": "instructions of the program that asked",
    "user": "sent along by the program that asked",
    "assistant": "sent along by the program that asked; whether MediChat wrote it is not known",
}
_STATES = {"queued": "waits for a worker", "running": "is being written", "cancelled": "was stopped"}
_CLOSED = "This text cannot be opened."
_PARAGRAPHS = re.compile(r"\n\s*\n")


def show(
    transcript: Json,
    below_answer: Callable[[Json, int], None] | None = None,
    load_image: Callable[[str], bytes] | None = None,
) -> None:
    """All of a transcript, as the gateway gives it.

    `below_answer` draws what a page has to say of an answer; it gets the turn and its number. `load_image`
    gives the PNG of a picture's id; None where it may not be seen.
    """
    title = "Erased conversation" if transcript["erased"] else transcript["title"] or "Without a title"
    st.subheader(plain_markdown(title))
    st.caption(_about(transcript))
    if transcript["erased"]:
        st.info(
            "**The texts of this conversation were erased**: their key was destroyed; nobody can read them. "
            "What is left says when something was said, what wrote it, and what the guard did.",
            icon=":material/delete_forever:",
        )
    if not transcript["turns"]:
        st.caption("Nothing was said in it.")
    for number, turn in enumerate(transcript["turns"]):
        with st.chat_message("user" if turn["role"] == "user" else "assistant"):
            _turn(turn, number, erased=transcript["erased"])
            _pictures(turn["images"], load_image, erased=transcript["erased"])
            if below_answer is not None and turn["role"] != "user":
                below_answer(turn, number)


def identifiers(counts: dict[str, int]) -> str:
    """How many identifiers of which type were masked, in words; empty when none was."""
    return ", ".join(f"{number} × {words(kind).lower()}" for kind, number in sorted(counts.items()))


def _about(transcript: Json) -> str:
    said = [
        f"Of `{transcript['owner_id']}`",
        f"begun {moment(transcript['created_at'])}",
        f"last changed {moment(transcript['updated_at'])} (UTC)",
    ]
    if transcript["guard_state"] != "none":
        said.append(f"the person was in need: **{words(transcript['guard_state'])}**")
    if transcript["hidden_at"]:
        said.append(f"taken out of the person's history {moment(transcript['hidden_at'])}")
    if not transcript["erased"]:
        said.append("identifiers are masked" if transcript["masked"] else "identifiers are shown")
    return " · ".join(said)


def _turn(turn: Json, number: int, *, erased: bool) -> None:
    who = "Question" if turn["role"] == "user" else "Answer"
    replaced = " · :gray-badge[:material/history: replaced by a later answer]" if turn["replaced"] else ""
    sent = f" · :gray-badge[:material/input: {_SENT[turn['given']]}]" if turn["given"] else ""
    st.markdown(f"**{who}** · {moment(turn['at'])}{replaced}{sent}")
    if turn["sentences"]:
        _sentences(turn["sentences"], erased=erased)
    elif turn["text"]:
        st.markdown(plain_markdown(turn["text"]))
    elif turn["text"] is None:
        st.caption("Erased." if erased else _CLOSED)
    for verdict in turn["verdicts"]:
        st.markdown(_judged(verdict["action"], verdict))
    if turn["masked"]:
        st.caption(f"Masked here: {identifiers(turn['masked'])}")
    if turn["origin"] is not None:
        _ended(turn["origin"])
        _wrote(turn, number)


def _pictures(images: list[Json], load: Callable[[str], bytes] | None, *, erased: bool) -> None:
    if load is not None and not erased:
        pictures.show_stored(images, load)
    elif images:
        count = "1 picture" if len(images) == 1 else f"{len(images)} pictures"
        why = "erased" if erased else "shown only where identifiers are: a picture cannot be masked"
        st.caption(f":material/image: With {count}, {why}.")


def _sentences(sentences: Iterable[Json], *, erased: bool) -> None:
    """What the guard let through as it was read; what it touched in a frame of its own."""
    for untouched, run in itertools.groupby(sentences, lambda each: each["action"] == "allow"):
        if not untouched:
            _touched(run, erased=erased)
            continue
        texts = [sentence["text"] for sentence in run]
        _said("".join(text for text in texts if text), erased=erased)
        if None in texts:
            _said(None, erased=erased)


def _touched(sentences: Iterable[Json], *, erased: bool) -> None:
    for sentence in sentences:
        with st.container(border=True):
            st.markdown(_judged(sentence["action"], sentence["verdict"]))
            _said(sentence["text"], erased=erased)
            if sentence["suppressed"] is not None:
                st.markdown(":gray[The guard replaced:]")
                st.markdown(_struck(sentence["suppressed"]))


def _said(text: str | None, *, erased: bool) -> None:
    if text is None:
        st.caption("Erased." if erased else _CLOSED)
    elif text.strip():
        st.markdown(plain_markdown(text.strip()))


def _struck(text: str) -> str:
    paragraphs = (plain_markdown(each.strip()) for each in _PARAGRAPHS.split(text) if each.strip())
    return "\n\n".join(f":red[~~{each}~~]" for each in paragraphs)


def _judged(action: str, verdict: Json | None) -> str:
    """What the guard did and why, in colour and in words."""
    name, colour, sign = _ACTS[action]
    badge = f":{colour}-badge[:material/{sign}: {name}]"
    if verdict is None:
        return badge
    side = "about the question" if verdict["side"] == "question" else ""
    why = words(verdict["category"]) or "the check itself failed"
    said = [f"**{plain_markdown(why)}**", side, f"severity {verdict['severity']}"]
    said.append(f"{plain_markdown(verdict['layer'])}: {plain_markdown(verdict['source'] or 'nothing named')}")
    said += [f"score {verdict['score']:.2f}", f"policy `{verdict['policy_version']}`"]
    return f"{badge} " + " · ".join(each for each in said if each)


def _ended(origin: Json) -> None:
    if origin["state"] == "failed":
        detail = plain_markdown(origin["error_detail"] or "Nothing more is known.")
        st.error(f"**This answer failed** ({words(origin['error'])}). {detail}", icon=":material/error:")
    elif origin["state"] in _STATES:
        st.caption(f"This answer {_STATES[origin['state']]}.")


def _wrote(turn: Json, number: int) -> None:
    origin = turn["origin"]
    by_guard = origin["state"] == "succeeded" and origin["model_id"] is None
    rows = {
        "model": "none: the guard's own answer" if by_guard else origin["model_id"],
        "revision of the model": origin["model_revision"],
        "adapter": origin["adapter_sha256"]
        or ("none: the base model alone" if origin["model_id"] else "none"),
        "prompt version": origin["prompt_version"],
        "policy version": origin["policy_version"],
        "written for a": origin["audience"],
        "state": origin["state"],
        "ended because of": words(origin["finish_reason"]),
        "job": turn["job_id"],
        "message": turn["message_id"] or "not kept as a message",
    }
    shown = st.expander("Model, adapter, prompt and policy", key=f"origin-{number}-{turn['job_id']}")
    with shown, st.container(gap=None):
        for name, value in rows.items():
            st.text(f"{name}: {value or 'not known'}")
