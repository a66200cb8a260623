"""Replays and the shadow: what another version would have done otherwise, counted. Texts are for auditors."""

from collections import Counter
from functools import partial

import altair as alt
import pandas as pd
import streamlit as st

from services.ui.client import GatewayError, Json
from services.ui.guarding import Guarding
from services.ui.text import moment, plain_markdown, words
from services.ui.views import acts, choosing

POLL_S = 1
_MOVING = ("queued", "running")
_PAGE = 20
_REST = "otherwise_changed"


def show(guarding: Guarding, watching: Guarding, state: Json, versions: list[Json], *, admin: bool) -> None:
    """A form for a new replay, one replay, and the shadow's counts."""
    if admin:
        _new(guarding, versions)
    found = guarding.replays()
    if found:
        replay = _choose(found)
        if replay["state"] in _MOVING:
            st.fragment(partial(_follow, watching, replay["id"]), run_every=POLL_S)()
        else:
            _one(guarding, replay, admin=admin)
    else:
        st.info("No replay yet. One judges the newest answers again and counts what would be different.")
    if state["shadow"]:
        _shadow(guarding)


def _new(guarding: Guarding, versions: list[Json]) -> None:
    names = [each["version"] for each in versions]
    with st.form("replay"):
        which, count = st.columns(2)
        version = which.selectbox("Under version", names, key="replay-version")
        answers = count.number_input("Newest answers", 1, 5000, 200, key="replay-answers")
        if st.form_submit_button("Replay", type="primary"):
            made = acts.attempt(partial(guarding.submit_replay, version, int(answers)))
            if made:
                st.query_params["replay"] = made["id"]
            st.rerun()


def _choose(found: list[Json]) -> Json:
    by_id = {each["id"]: each for each in found}
    ids = list(by_id)
    chosen = choosing.pick(
        "Replay",
        "replay",
        ids,
        lambda name: (
            f"{by_id[name]['version']} · {by_id[name]['state']} · {moment(by_id[name]['created_at'])}"
        ),
        otherwise=ids[0],
    )
    return by_id[chosen]


def _follow(guarding: Guarding, replay_id: str) -> None:
    try:
        seen = guarding.replay(replay_id)
    except GatewayError as error:
        if error.status in (401, 404):
            st.rerun()
        st.caption(f"{plain_markdown(error.detail)} Trying again.")
        return
    if seen["state"] not in _MOVING:
        st.rerun()
    progress = seen["progress"]
    if progress and progress["total"]:
        st.progress(
            min(1.0, progress["done"] / progress["total"]), f"{progress['done']} of {progress['total']}"
        )
    else:
        st.progress(0.0, "Waiting for a training worker …" if seen["state"] == "queued" else "Judging …")


def _one(guarding: Guarding, replay: Json, *, admin: bool) -> None:
    if replay["state"] != "succeeded" or replay["counts"] is None:
        detail = (replay["error"] or {}).get("detail") or "It was stopped."
        st.error(plain_markdown(detail), icon=":material/error:")
        return
    counts = replay["counts"]
    answers, sentences, stopped, released = st.columns(4)
    answers.metric("Answers", counts["answers"])
    sentences.metric("Sentences", counts["sentences"])
    stopped.metric("Newly stopped", sum(counts["newly_stopped"].values()))
    released.metric("Newly released", sum(counts["newly_released"].values()))
    if counts["erased"]:
        st.caption(f"{counts['erased']} more were erased and are left out.")
    if counts["by_model"]:
        st.caption(
            f"{counts['by_model']} sentences more are left out: the model itself judged them then, and a "
            "replay does not ask it."
        )
    kinds = ("newly_stopped", "newly_released", _REST)
    _plot(counts | {_REST: _rest(counts)}, kinds, "Nothing would be judged otherwise.")
    if admin:
        st.caption("The texts behind these numbers are for auditors.")
    elif counts["changed"] and st.toggle(
        "Show the texts, identifiers masked (this is logged)", key=f"texts-{replay['id']}"
    ):
        _texts(guarding, replay["id"], sum(counts["changed"].values()))


def _rest(counts: Json) -> dict[str, int]:
    """By category, what is judged otherwise and yet neither newly stopped nor newly released."""
    rest = Counter(counts["changed"])
    rest.subtract(counts["newly_stopped"])
    rest.subtract(counts["newly_released"])
    return +rest


def _plot(counts: Json, kinds: tuple[str, ...], none: str) -> None:
    """The bars, or the sentence `none` where there are none."""
    frame = pd.DataFrame(
        [
            {"category": words(category), "what": words(kind), "texts": number}
            for kind in kinds
            for category, number in counts[kind].items()
        ]
    )
    if frame.empty:
        st.success(none, icon=":material/check:")
        return
    chart = (
        alt.Chart(frame)
        .mark_bar()
        .encode(
            x=alt.X("texts:Q", axis=alt.Axis(format="d", tickMinStep=1)),
            y=alt.Y("category:N", title=None),
            yOffset="what:N",
            color=alt.Color(
                "what:N",
                title=None,
                scale=alt.Scale(
                    domain=["newly stopped", "newly released", words(_REST)],
                    range=["#0f6e84", "#c2641a", "#9aa7ad"],
                ),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=["category", "what", "texts"],
        )
    )
    st.altair_chart(chart, width="stretch")


def _shadow(guarding: Guarding) -> None:
    counts = guarding.shadow_counts()
    st.subheader("In the shadow")
    st.caption(f"Version {counts['version']} has judged {counts['sentences']:,} sentences so far.")
    if counts["sentences"]:
        _plot(
            counts,
            ("newly_stopped", "newly_released"),
            "No sentence would be newly stopped or released. Questions, flags and referrals are not counted "
            "here: replay.",
        )


def _texts(guarding: Guarding, replay_id: str, changed: int) -> None:
    """A page of the texts that were kept, of so many that are judged otherwise."""
    page = int(st.session_state.get(f"page-{replay_id}", 0))
    found = guarding.replay_texts(replay_id, page * _PAGE, _PAGE)
    table = [
        {
            "text": each["text"] if each["text"] is not None else "(erased)",
            "of": each["side"],
            "then": _said(each["before"]),
            "now": _said(each["after"]),
            "job": each["job_id"],
            "conversation": each["conversation_id"],
        }
        for each in found["items"]
    ]
    st.dataframe(pd.DataFrame(table), hide_index=True, width="stretch")
    if found["total"] < changed:
        st.caption(f"Of {changed:,} texts that are judged otherwise, the first {found['total']:,} were kept.")
    newer, older, _ = st.columns([0.2, 0.2, 0.6])
    newer.button("Back", disabled=page == 0, key="texts-back", on_click=_turn, args=(replay_id, page - 1))
    more = (page + 1) * _PAGE < found["total"]
    older.button("More", disabled=not more, key="texts-more", on_click=_turn, args=(replay_id, page + 1))


def _turn(replay_id: str, page: int) -> None:
    st.session_state[f"page-{replay_id}"] = page


def _said(judged: list[str | None]) -> str:
    action, category = judged
    return f"{action} ({words(category)})" if category else str(action)
