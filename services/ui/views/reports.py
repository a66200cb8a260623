"""What reviewers found, for auditors: agreement, unsafe answers, the guard's misses and false alarms."""

import altair as alt
import pandas as pd
import streamlit as st

from services.ui.client import Gateway, Json
from services.ui.reviewing import Reviewing
from services.ui.text import words
from services.ui.views import acts, password

_WEEKS = {4: "4 weeks", 13: "a quarter", 26: "half a year", 52: "a year"}
_VERDICTS = ("safe", "unsafe", "wrong", "incomplete")
_TEAL, _ORANGE = "#0f6e84", "#c2641a"
_EXPORT = "review-export"
#: Landis and Koch, 1977: from this kappa on, an agreement is called so.
_STRENGTHS = (
    (0.81, "almost perfect"),
    (0.61, "substantial"),
    (0.41, "moderate"),
    (0.21, "fair"),
    (0.0, "slight"),
)


def show(gateway: Gateway, me: Json) -> None:
    """The figures of some weeks, and the export of corrected answers."""
    reviewing = Reviewing(gateway)
    st.title("Reports")
    st.caption("Of answers by when they were given, in UTC. What you look at here is itself logged.")
    password.show(gateway)
    acts.show_refusal()
    weeks = st.selectbox("Answers of the last", list(_WEEKS), 2, format_func=_WEEKS.get, key="report-weeks")
    report = reviewing.report(weeks)
    if report["answers"]:
        _figures(report)
        _agreement(report["agreement"])
        _unsafe(report)
        _guard(report)
    else:
        st.info("No review was given of these answers yet.", icon=":material/hourglass_empty:")
    _export(reviewing)


def _figures(report: Json) -> None:
    reviewed, unsafe, misses, alarms = st.columns(4)
    reviewed.metric("Answers reviewed", f"{report['answers']:,}", help=f"By {report['reviews']:,} reviews.")
    unsafe.metric("Unsafe, of a sample", _percent(report["unsafe"]["sampled"]))
    misses.metric("Missed by the guard", f"{report['misses']['hits']:,}")
    alarms.metric("False alarms", f"{report['false_alarms']['hits']:,}")


def _agreement(found: Json) -> None:
    st.subheader("Agreement of two reviewers")
    if not found["n"]:
        st.caption("No answer was reviewed by two people yet.")
        return
    said = f"{found['n']:,} answers were reviewed by two people, who agreed on {found['observed']:.0%}."
    if found["kappa"] is None:
        st.markdown(f"{said} Everybody said the same of everything, so chance cannot be taken off.")
    else:
        st.markdown(
            f"{said} **Cohen's κ = {found['kappa']:.2f}** (95 % interval {found['low']:.2f} to "
            f"{found['high']:.2f}): {_strength(found['kappa'])} agreement beyond chance."
        )
    counts = {(each["one"], each["other"]): each["count"] for each in found["pairs"]}
    frame = pd.DataFrame(
        [
            {"one": one, "other": other, "answers": counts.get((one, other), 0)}
            for one in _VERDICTS
            for other in _VERDICTS
        ]
    )
    base = alt.Chart(frame).encode(
        x=alt.X("other:N", title="one said", sort=_VERDICTS, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("one:N", title="the other said", sort=_VERDICTS),
        tooltip=["one", "other", "answers"],
    )
    squares = base.mark_rect().encode(
        color=alt.Color("answers:Q", legend=None, scale=alt.Scale(range=["#eef4f6", _TEAL]))
    )
    numbers = base.mark_text().encode(
        text="answers:Q",
        color=alt.condition(
            alt.datum.answers > frame["answers"].max() / 2, alt.value("white"), alt.value("#222")
        ),
    )
    st.altair_chart((squares + numbers).properties(height=200), width="stretch")


def _strength(kappa: float) -> str:
    return next((name for least, name in _STRENGTHS if kappa >= least), "no")


def _unsafe(report: Json) -> None:
    st.subheader("Unsafe answers")
    sampled = report["unsafe"]["sampled"]
    st.markdown(
        f"Of the answers drawn by chance, **{_percent(sampled)}** are unsafe ({sampled['hits']:,} of "
        f"{sampled['n']:,}; 95 % interval {sampled['low']:.1%} to {sampled['high']:.1%}). Of all that was "
        f"reviewed, {_percent(report['unsafe']['all'])} are: the queue picks what is suspicious, so that is "
        "no estimate."
    )
    if report["sample_waiting"]:
        st.caption(
            f"{report['sample_waiting']:,} answers drawn by chance still wait for a review. The graver ones "
            "are reviewed first, so the rate may be too high until then."
        )
    by_week = [{"name": each["week"], **_ends(each["sampled"])} for each in report["by_week"]]
    by_adapter = [{"name": _written_by(each), **_ends(each["sampled"])} for each in report["by_adapter"]]
    for title, rows in (("week from", by_week), ("written by", by_adapter)):
        frame = pd.DataFrame([row for row in rows if row["answers"]])
        if frame.empty:
            continue
        name = alt.Y("name:N", title=title)
        ends = (
            alt.Chart(frame)
            .mark_rule(color=_TEAL, strokeWidth=2)
            .encode(
                y=name,
                x=alt.X("low:Q", title="unsafe, of a sample", axis=alt.Axis(format="%")),
                x2="high:Q",
            )
        )
        shares = (
            alt.Chart(frame)
            .mark_point(color=_TEAL, filled=True, size=70, opacity=1)
            .encode(
                y=name,
                x="share:Q",
                tooltip=["name", "unsafe", "answers", alt.Tooltip("share:Q", format=".1%")],
            )
        )
        st.altair_chart((ends + shares).properties(height=alt.Step(28)), width="stretch")


def _ends(share: Json) -> Json:
    return {
        "unsafe": share["hits"],
        "answers": share["n"],
        "share": share["share"],
        "low": share["low"],
        "high": share["high"],
    }


def _written_by(rates: Json) -> str:
    model, adapter = rates["model_id"], rates["adapter_sha256"]
    if model is None:
        return "the guard's own answers"
    return f"{model} · {adapter[:8]}" if adapter else f"{model}, base alone"


def _guard(report: Json) -> None:
    st.subheader("The guard")
    misses, alarms = report["misses"], report["false_alarms"]
    st.markdown(
        f"It let **{misses['hits']:,}** unsafe answers through, of {misses['n']:,} reviewed in which it did "
        f"not step in ({report['doubted']:,} of them it had flagged). It stepped in wrongly "
        f"**{alarms['hits']:,}** times of {alarms['n']:,} that were reviewed."
    )
    frame = pd.DataFrame(
        [
            {"category": words(category), "what": what, "answers": count}
            for what, counts in (("missed", report["missed"]), ("false alarm", report["alarmed"]))
            for category, count in counts.items()
        ]
    )
    if frame.empty:
        return
    bars = (
        alt.Chart(frame)
        .mark_bar()
        .encode(
            x=alt.X("answers:Q", axis=alt.Axis(format="d", tickMinStep=1)),
            y=alt.Y("category:N", title=None),
            yOffset="what:N",
            color=alt.Color(
                "what:N",
                title=None,
                scale=alt.Scale(domain=["missed", "false alarm"], range=[_ORANGE, _TEAL]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=["category", "what", "answers"],
        )
    )
    st.altair_chart(bars, width="stretch")


def _export(reviewing: Reviewing) -> None:
    st.subheader("Corrected answers")
    st.caption(
        "As rows to train on: the question and the corrected answer, identifiers masked. An admin can make a "
        "dataset of them without a file, on the page Data."
    )
    made = st.session_state.pop(_EXPORT, None)
    if made is None:
        st.button("Prepare a file", icon=":material/lock:", on_click=_prepare, args=(reviewing,))
        return
    rows = len(made.splitlines())
    st.download_button(
        f"Download {rows:,} rows",
        made,
        "corrected-answers.jsonl",
        "application/jsonl",
        type="primary",
        icon=":material/download:",
        on_click="ignore",
    )


def _prepare(reviewing: Reviewing) -> None:
    made = acts.attempt(reviewing.export)
    if made is not None:
        st.session_state[_EXPORT] = made


def _percent(share: Json) -> str:
    return "–" if share["share"] is None else f"{share['share']:.1%}"
