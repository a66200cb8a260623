"""Tries one sentence under a version: what each layer says and why. Nothing of it is kept."""

import pandas as pd
import streamlit as st

from services.ui.client import GatewayError, Json
from services.ui.guarding import Guarding
from services.ui.text import plain_markdown, words

_AUDIENCES = ("patient", "clinician")
_SIDES = {"answer": "a sentence of an answer", "question": "a question"}


def show(guarding: Guarding, versions: list[Json]) -> None:
    """The form, and what came of it."""
    names = [each["version"] for each in versions]
    active = next((number for number, each in enumerate(versions) if each["active"]), 0)
    with st.form("try"):
        text = st.text_area(
            "Text", key="try-text", max_chars=2000, placeholder="You can just leave it off tonight."
        )
        context = st.text_area(
            "What stands before it in the same answer", key="try-context", max_chars=2000, height=68
        )
        of, side, audience = st.columns(3)
        version = of.selectbox("Under version", names, active, key="try-version")
        judged = side.radio("As", list(_SIDES), format_func=_SIDES.get, key="try-side")
        reader = audience.radio("For a", _AUDIENCES, key="try-audience")
        asked = st.form_submit_button("Judge", type="primary")
    st.caption("Nothing of this is kept or logged.")
    if not asked:
        return
    if not text.strip():
        st.warning("Write a sentence first.")
        return
    what = {"text": text, "context": context, "audience": reader, "side": judged}
    try:
        found = guarding.try_out(version, **what)
    except GatewayError as error:
        st.error(plain_markdown(error.detail), icon=":material/error:")
        return
    _outcome(found, text.strip(), judged)


def _outcome(found: Json, text: str, side: str) -> None:
    verdict = found["verdict"]
    why = f"{words(verdict['category']) or 'nothing found'}"
    if verdict["action"] == "allow":
        st.success(f"**Allowed**: {why}.", icon=":material/check:")
    elif verdict["action"] == "append":
        st.info(f"**Shown, and the answer ends with a referral**: {why}.", icon=":material/shield:")
    elif verdict["action"] == "escalate":
        st.info(f"**Shown as it is, and flagged in the log for a reviewer**: {why}.", icon=":material/flag:")
    else:
        st.warning(
            f"**{words(verdict['action']).capitalize()}**: {why}. What is said instead:",
            icon=":material/shield:",
        )
        st.markdown(plain_markdown(found["instead"] or ""))
    if verdict["span"]:
        start, end = verdict["span"]
        st.caption("What decided:")
        st.markdown(f"{_line(text[:start])}:orange-background[{_line(text[start:end])}]{_line(text[end:])}")
    table = [
        {
            "layer": name,
            "says": said["action"],
            "category": words(said["category"]),
            "severity": said["severity"],
            "because of": said["source"],
            "score": said["score"],
        }
        for name, said in found["layers"].items()
    ]
    if found["doubted"]:
        table.append({"layer": "judge", "says": "not asked here"})
    st.dataframe(pd.DataFrame(table), hide_index=True, width="stretch")
    refers = " It sends its reader to a clinician." if found["refers"] and side == "answer" else ""
    st.caption(f"The verdict took {found['ms']:.2f} ms.{refers}")
    if found["doubted"]:
        st.caption("Where the model judges too, it is asked about this sentence, and may stop it.")


def _line(text: str) -> str:
    return plain_markdown(text.replace("\n", " "))
