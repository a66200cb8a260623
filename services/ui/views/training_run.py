"""Draws one run: how far it is, its curves, what happened. It asks nobody and changes nothing."""

import altair as alt
import pandas as pd
import streamlit as st

from services.ui.client import Json
from services.ui.curve import FIGURES
from services.ui.text import moment, plain_markdown

_COLOURS = alt.Scale(domain=["training", "held-out rows"], range=["#9aa7ad", "#0f6e84"])
_OTHERS = (
    ("Learning rate", "learning_rate"),
    ("Gradient norm", "grad_norm"),
    ("Useful tokens/s", "tokens_per_s"),
    ("Memory, MB", "memory_mb"),
)


class Plots:
    """What is drawn of a run's steps, made once for as long as no step is added."""

    def __init__(self, run_id: str, steps: list[Json]) -> None:
        self.run_id = run_id
        self.steps = steps
        frame = pd.DataFrame(steps, columns=["step", *FIGURES])
        #: The newest value of each figure; None where there is none.
        self.newest: dict[str, float | None] = {}
        for name in FIGURES:
            known = frame[name].dropna()
            self.newest[name] = float(known.iloc[-1]) if len(known) else None
        self.loss = _loss(steps)
        self.others = [_other(frame, label, name) for label, name in _OTHERS]


def show(run: Json, plots: Plots) -> None:
    """Everything there is to see of the run."""
    _where(run)
    if run["error"]:
        st.error(plain_markdown(run["error"]["detail"]), icon=":material/error:")
    if plots.steps:
        _figures(plots)
        _curves(plots)
    for note in run["notes"]:
        st.caption(f"{moment(note['at'])} · {plain_markdown(note['text'])}")
    _estimate(run)


def _where(run: Json) -> None:
    if run["state"] == "waiting":
        st.warning(f"Waiting: {plain_markdown(run['waiting_reason'])}", icon=":material/hourglass_top:")
    elif run["state"] == "queued":
        st.progress(0.0, "Waiting for a training worker …")
    elif run["state"] in ("running", "cancelling"):
        total = f" of {run['total_steps']:,}" if run["total_steps"] else ""
        left = f", {_duration(run['eta_s'])} to go" if run["eta_s"] is not None else ""
        st.progress(
            min(1.0, run["percent"] / 100), f"Step {run['step']:,}{total} ({run['percent']:.0f} %){left}"
        )
    elif run["state"] == "succeeded":
        st.success(f"Finished after {run['step']:,} steps.", icon=":material/check_circle:")
    elif run["state"] == "cancelled":
        st.info("Stopped by an admin; it made no adapter.")
    if run["attempt"] > 1:
        st.caption(f"Attempt {run['attempt']}.")


def _figures(plots: Plots) -> None:
    shown = (
        ("Loss", "loss", "{:.3f}"),
        ("Held-out loss", "eval_loss", "{:.3f}"),
        ("Learning rate", "learning_rate", "{:.1e}"),
        ("Useful tokens/s", "tokens_per_s", "{:,.0f}"),
        ("Memory, MB", "memory_mb", "{:,.0f}"),
    )
    for column, (label, name, form) in zip(st.columns(len(shown)), shown, strict=True):
        value = plots.newest[name]
        column.metric(label, "–" if value is None else form.format(value))


def _curves(plots: Plots) -> None:
    st.subheader("Loss")
    if plots.loss is None:
        st.caption("The first step is not finished yet.")
    else:
        st.altair_chart(plots.loss, width="stretch")
    with st.expander("Learning rate, gradient, speed, memory"):
        for number, chart in enumerate(plots.others):
            if number % 2 == 0:
                columns = st.columns(2)
            if chart is not None:
                columns[number % 2].altair_chart(chart, width="stretch")


def _loss(steps: list[Json]) -> alt.Chart | None:
    """None when none was measured yet."""
    frame = pd.DataFrame(
        [
            {"step": step["step"], "loss": step[name], "on": label}
            for step in steps
            for name, label in (("loss", "training"), ("eval_loss", "held-out rows"))
            if step[name] is not None
        ]
    )
    if frame.empty:
        return None
    chart = (
        alt.Chart(frame)
        .mark_line(point=alt.OverlayMarkDef(size=18))
        .encode(
            x=alt.X("step:Q", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("loss:Q", scale=alt.Scale(zero=False)),
            color=alt.Color("on:N", scale=_COLOURS, legend=alt.Legend(orient="top", title=None)),
            tooltip=["step", alt.Tooltip("loss", format=".4f"), "on"],
        )
    )
    return chart.properties(height=340)


def _other(frame: pd.DataFrame, label: str, name: str) -> alt.Chart | None:
    known = frame.dropna(subset=[name])
    if known.empty:
        return None
    chart = (
        alt.Chart(known[["step", name]])
        .mark_line(color="#0f6e84")
        .encode(x=alt.X("step:Q", axis=alt.Axis(tickMinStep=1)), y=alt.Y(f"{name}:Q", title=label))
    )
    return chart.properties(height=200)


def _estimate(run: Json) -> None:
    with st.expander("Recipe and estimate"):
        estimate = run["estimate"]
        if estimate:
            took = f", about {_duration(estimate['seconds'])}" if estimate.get("seconds") else ""
            st.caption(
                f"Estimated before the start: {estimate['memory_mb']:,.0f} MB on {estimate['device']} "
                f"({estimate['free_mb']:,.0f} MB were free){took}."
            )
        base = f"{run['base_model']} ({(run['base_revision'] or '…')[:12]})"
        data = f"{plain_markdown(run['dataset_name'])} ({(run['manifest_sha256'] or '…')[:12]})"
        st.caption(f"Data: {data} · base model: {base}")
        recipe = {name: value for name, value in run["recipe"].items() if name != "data"}
        st.json(recipe, expanded=False)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
