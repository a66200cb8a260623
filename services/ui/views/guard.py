"""The guard, for admins: the stop switch, try a sentence, versions, replays. Auditors read."""

import pandas as pd
import streamlit as st

from services.ui.client import Gateway, Json
from services.ui.guarding import Guarding
from services.ui.text import moment, plain_markdown
from services.ui.views import acts, guard_replay, guard_try, guard_versions


def show(gateway: Gateway, me: Json) -> None:
    """What counts, the switch, and a tab for each thing that can be done."""
    guarding, admin = Guarding(gateway), me["role"] == "admin"
    st.title("Guard")
    st.caption("It judges every question, and every sentence of an answer before anybody sees it.")
    acts.show_refusal()
    state, versions = guarding.state(), guarding.versions()
    _switch(guarding, state["switch"], admin=admin)
    _what_counts(state)
    if admin:
        try_out, which, replay = st.tabs(["Try a sentence", "Versions", "Replay"], key="guard-tab")
        with try_out:
            guard_try.show(guarding, versions)
    else:
        which, replay = st.tabs(["Versions", "Replay"], key="guard-tab")
    with which:
        guard_versions.show(guarding, versions, before=state["before"], admin=admin)
    with replay:
        guard_replay.show(guarding, Guarding(gateway.watching()), state, versions, admin=admin)


def _switch(guarding: Guarding, switch: Json, *, admin: bool) -> None:
    if switch["stopped"]:
        st.error(
            f"**All answers are stopped** since {moment(switch['at'])} UTC: "
            f"{plain_markdown(switch['reason'] or '')}",
            icon=":material/front_hand:",
        )
        if admin:
            acts.confirm(
                "Start answers",
                "Questions are taken and answered again. Those that failed meanwhile are not asked again.",
                guarding.start,
                key="start-answers",
                done="Answers are given again.",
                icon=":material/play_arrow:",
            )
    elif admin:
        acts.with_reason(
            "Stop all answers",
            "Every answer that is being written ends within 10 seconds, those that wait fail at once, and "
            "questions are refused. People in crisis or in an emergency are still told where help is.",
            guarding.stop,
            key="stop-answers",
            done="All answers are stopped.",
            icon=":material/front_hand:",
        )


def _what_counts(state: Json) -> None:
    packaged = " (the packaged one)" if state["active"] == state["packaged"] else ""
    shadow = f" Version `{state['shadow']}` judges in the shadow." if state["shadow"] else ""
    st.markdown(f"Version `{state['active']}`{packaged} judges.{shadow}")
    for process in state["processes"]:
        if process["refused"]:
            st.error(
                f"{plain_markdown(process['name'])} cannot compile version {process['refused']}; it goes on "
                f"with {process['policy_version']}. Roll back, or look at its log.",
                icon=":material/error:",
            )
        if process["shadow_refused"]:
            st.error(
                f"{plain_markdown(process['name'])} cannot compile version {process['shadow_refused']} for "
                "the shadow; what counts is not touched by it. End the shadow, or look at its log.",
                icon=":material/error:",
            )
    behind = [p for p in state["processes"] if not p["refused"] and p["policy_version"] != state["active"]]
    if behind:
        st.caption("A change is being taken up; it takes at most 10 seconds, and no answer changes midway.")
    with st.expander("Where it counts, and since when"):
        table = [
            {
                "process": each["name"],
                "judges under": each["policy_version"],
                "shadow": each["shadow_version"],
                "left out by the shadow": each["shadow_left_out"],
            }
            for each in state["processes"]
        ]
        st.dataframe(pd.DataFrame(table), hide_index=True, width="stretch")
        if not state["history"]:
            st.caption("Nothing was ever activated: the packaged policy counts.")
            return
        history = [
            {
                "since (UTC)": moment(each["at"]),
                "version": each["version"] or "the packaged one",
                "shadow": each["shadow"] or "",
                "why": each["kind"].replace("_", " "),
            }
            for each in state["history"]
        ]
        st.dataframe(pd.DataFrame(history), hide_index=True, width="stretch")
