"""Shows how an adapter measured against its base: figures, gate, answers side by side; stops measuring."""

from functools import partial
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from services.ui.client import GatewayError, Json
from services.ui.text import answer_markdown, moment, plain_markdown, words
from services.ui.tuning import Tuning
from services.ui.views import acts

POLL_S = 3
MOVING = ("queued", "running", "cancelling")
#: Answers of the adapter that count against it: title, name among the samples, what is said of none.
_CASES = (
    ("Answers that the guard stopped", "stopped", "None: the guard let every answer through."),
    ("Plain questions declined that the base answers", "declined", "None was declined."),
)


def show(tuning: Tuning, watching: Tuning, adapter: Json) -> None:
    """The newest evaluation, or how far it is; and the one that decides, where that is another."""
    newest = next(iter(adapter["evaluations"]), None)
    if newest is None:
        return
    st.subheader("How it measured")
    if newest["state"] in MOVING:
        st.fragment(partial(_follow, watching, adapter["sha256"]), run_every=POLL_S)()
    elif newest["state"] == "cancelled":
        st.info("It was stopped; nothing was measured.")
    elif newest["state"] != "succeeded":
        detail = (newest["error"] or {}).get("detail") or "It failed."
        st.error(plain_markdown(detail), icon=":material/error:")
    else:
        _measured(tuning, newest)
    ended = (each for each in adapter["evaluations"] if each["counts"] and each["gate"])
    deciding = next(ended, newest)
    if deciding is not newest:
        _measured(tuning, deciding)


def _measured(tuning: Tuning, seen: Json) -> None:
    st.caption(f"Measured {moment(seen['created_at'])} UTC, on rows that {_unseen(seen['figures'])}.")
    if not seen["counts"]:
        st.warning(
            "These rows are of another dataset than its own: this does not count for its promotion.",
            icon=":material/info:",
        )
    _gate(seen["gate"])
    _figures(seen["figures"])
    if st.toggle("Show answers side by side (this is logged)", key=f"samples-{seen['id']}"):
        _samples(tuning.evaluation(seen["id"]))


def _unseen(figures: Json) -> str:
    about = figures.get("about", {})
    counted = {
        "held-out rows": about.get("rows_learnt_before", 0),
        "multiple-choice questions": about.get("choices_learnt_before", 0),
    }
    learnt = " and ".join(f"{count:,} {what}" for what, count in counted.items() if count)
    without = f"; {learnt} were left out, for it was trained on their questions"
    return f"its training did not see{without if learnt else ''}"


def _follow(tuning: Tuning, sha256: str) -> None:
    try:
        seen = tuning.adapter(sha256)["evaluations"][0]
    except GatewayError as error:
        if error.status in (401, 404):
            st.rerun()
        st.caption(f"{plain_markdown(error.detail)} Trying again.")
        return
    if seen["state"] not in MOVING:
        st.rerun()
    _how_far(seen)
    if seen["state"] == "cancelling":
        st.caption("Stopping …")
    else:
        acts.confirm(
            "Stop measuring",
            "The figures of this measuring are lost; it can be started again.",
            partial(tuning.cancel_evaluation, seen["id"]),
            key=f"stop-measuring-{seen['id']}",
            done="Stopping.",
            icon=":material/stop_circle:",
        )


def _how_far(seen: Json) -> None:
    progress = seen["progress"]
    if progress and progress["total"]:
        st.progress(min(1.0, progress["done"] / progress["total"]), f"Measuring: {progress['what']}")
    elif seen["state"] == "queued":
        reason = seen["waiting_reason"]
        st.progress(
            0.0, f"Waiting: {plain_markdown(reason)}" if reason else "Waiting for a training worker …"
        )
    else:
        st.progress(0.0, "Measuring …")


def _gate(gate: Json) -> None:
    lines = [f"{_mark(check)} {plain_markdown(check['message'])}" for check in gate["checks"]]
    st.markdown("  \n".join(lines))


def _mark(check: Json) -> str:
    if not check["passed"]:
        return ":material/close:"
    return ":material/check:" if check["value"] is not None else ":material/remove:"  # nothing was measured


def _figures(figures: Json) -> None:
    rows = [
        {"figure": words(name), "of": who, "value": side["value"], "low": side["low"], "high": side["high"]}
        for name, figure in figures.items()
        for who in ("base", "candidate")
        if _is_interval(side := _side(figure, who))
    ]
    if not rows:
        return
    frame = pd.DataFrame(rows)
    base = alt.Chart(frame).encode(
        y=alt.Y("of:N", title=None),
        color=alt.Color(
            "of:N", legend=None, scale=alt.Scale(domain=["base", "candidate"], range=["#9aa7ad", "#0f6e84"])
        ),
    )
    bars = base.mark_rule(strokeWidth=3).encode(
        x=alt.X("low:Q", title=None, scale=alt.Scale(zero=False)), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=70).encode(
        x="value:Q",
        tooltip=[
            "figure",
            "of",
            alt.Tooltip("value", format=".4f"),
            alt.Tooltip("low", format=".4f"),
            alt.Tooltip("high", format=".4f"),
        ],
    )
    chart = (
        (bars + points)
        .properties(height=50, width=250)
        .facet(facet=alt.Facet("figure:N", title=None), columns=2)
    )
    st.altair_chart(chart.resolve_scale(x="independent"))
    st.caption("Points are the figures, lines their 95 % intervals.")


def _side(figure: Any, who: str) -> Any:
    return figure.get(who) if isinstance(figure, dict) else None


def _is_interval(side: Any) -> bool:
    return isinstance(side, dict) and all(side.get(name) is not None for name in ("value", "low", "high"))


def _samples(seen: Json) -> None:
    samples = seen["samples"]
    if seen["samples_withheld"]:
        st.caption("The questions are of people's conversations, so they are not shown to admins.")
        return
    if seen["samples_erased"]:
        st.caption("The answers were erased with the dataset; the figures stay.")
        return
    if not samples:
        st.caption("No answers were kept.")
        return
    for title, name in (("Best", "best"), ("Worst", "worst")):
        st.markdown(f"**{title} answers, by likeness to the reference**")
        for sample in samples.get(name, []):
            with st.expander(plain_markdown(sample["question"])[:120]):
                st.caption("Reference")
                st.markdown(answer_markdown(sample["reference"]))
                base, candidate = st.columns(2)
                base.caption("Base")
                base.markdown(answer_markdown(sample["base"]))
                candidate.caption("Adapter")
                candidate.markdown(answer_markdown(sample["candidate"]))
    for title, name, none in _CASES:
        st.markdown(f"**{title}**")
        cases = samples.get(name, [])
        if not cases:
            st.caption(none)
        for case in cases:
            with st.expander(plain_markdown(case["question"])[:120]):
                kind = words(case.get("category"))
                st.caption(f"Adapter · {kind}" if kind else "Adapter")
                st.markdown(answer_markdown(case["answer"]) or "*No answer at all.*")
