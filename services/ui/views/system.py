"""The state of the whole, for admins: queue, workers, recent latency. No conversation's content."""

from functools import partial

import altair as alt
import pandas as pd
import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.text import moment

POLL_S = 3
_KEPT = 200


def show(gateway: Gateway, me: Json) -> None:
    """Figures and plots, looked at every few seconds."""
    st.title("System")
    st.fragment(partial(_figures, gateway), run_every=POLL_S)()


def _figures(gateway: Gateway) -> None:
    try:
        seen = gateway.watching().system()
    except GatewayError as error:
        if error.status == 401:
            st.rerun()
        st.error(f"{error.detail} Trying again.")
        return
    _totals(seen)
    _workers(seen["workers"])
    _queue_plot(seen["queue"], _alive(seen, "infer"))
    _latency_plot(seen["latency"])


def _totals(seen: Json) -> None:
    queue, alive, trainers = seen["queue"], _alive(seen, "infer"), _alive(seen, "train")
    if not alive:
        st.error("No worker is alive: questions wait. Start worker_infer, or read its log.")
    if seen["redis"] != "up":
        st.warning("Redis is down: answers still come, but later, and nobody can log in.")
    waiting, running, workers, oldest = st.columns(4)
    waiting.metric("Waiting", queue["queued"])
    running.metric("Running", queue["running"])
    workers.metric("Workers alive", alive)
    oldest.metric("Oldest waits", f"{queue['oldest_queued_s'] or 0:.0f} s")
    ended = {state: seen["jobs_by_state"].get(state, 0) for state in ("succeeded", "failed", "cancelled")}
    st.caption("Jobs so far: " + ", ".join(f"{count} {state}" for state, count in ended.items()))
    st.caption(f"Training workers alive: {trainers}; they answer no questions.")


def _alive(seen: Json, kind: str) -> int:
    return sum(worker["alive"] for worker in seen["workers"] if worker["kind"] == kind)


def _workers(workers: list[Json]) -> None:
    st.subheader("Workers")
    table = [
        {
            "worker": worker["id"],
            "kind": worker["kind"],
            "model": worker["model_id"],
            "alive": worker["alive"],
            "started (UTC)": moment(worker["started_at"]),
            "last heard (UTC)": moment(worker["last_seen_at"]),
        }
        for worker in workers
    ]
    if table:
        st.dataframe(pd.DataFrame(table), hide_index=True, width="stretch")
    else:
        st.caption("None has reported within a day.")


def _queue_plot(queue: Json, alive: int) -> None:
    """Queue depth, and the workers that answer, since this page was opened."""
    st.subheader("Queue and workers")
    st.caption("Since this page was opened; a reload begins anew.")
    seen = st.session_state.setdefault("depths", [])
    point = {"waiting": queue["queued"], "running": queue["running"], "workers alive": alive}
    seen.append({"time": pd.Timestamp.now("UTC"), **point})
    del seen[:-_KEPT]
    st.altair_chart(plot(pd.DataFrame(seen), "time", "jobs and workers", whole=True))


def _latency_plot(latency: list[Json]) -> None:
    st.subheader("Latency of the last hour")
    if not latency:
        st.caption("No answers within the last hour.")
        return
    names = {
        "first_sentence_ms_p50": "first sentence, half within",
        "first_sentence_ms_p95": "first sentence, 95 % within",
        "total_ms_p50": "whole answer, half within",
        "total_ms_p95": "whole answer, 95 % within",
    }
    frame = pd.DataFrame(latency).rename(columns=names)
    frame["minute"] = pd.to_datetime(frame["minute"])
    frame[list(names.values())] /= 1000
    st.altair_chart(plot(frame[["minute", *names.values()]], "minute", "seconds"))


def plot(frame: pd.DataFrame, time: str, unit: str, *, whole: bool = False) -> alt.Chart:
    """A line for each column of `frame` but `time`, from 0 up; `whole`: the values are whole numbers."""
    lines = frame.melt(time, var_name="line", value_name=unit)
    highest = lines[unit].max()
    # an axis of its own range: where nothing happens the usual one is empty, or has halves of jobs
    top = max(4 if whole else 1, 0 if pd.isna(highest) else highest)
    axis = alt.Axis(format="d", tickMinStep=1) if whole else alt.Axis()
    return (
        alt.Chart(lines, height=320)
        .mark_line(point=True)
        .encode(
            x=alt.X(f"{time}:T", title="time (UTC)", scale=alt.Scale(type="utc")).axis(
                format="%H:%M:%S", labelOverlap=True
            ),
            y=alt.Y(f"{unit}:Q", title=unit, scale=alt.Scale(domain=[0, float(top)]), axis=axis),
            color=alt.Color(
                "line:N", title=None, sort=[name for name in frame.columns if name != time]
            ).legend(orient="top", columns=2, labelLimit=0),
        )
    )
