"""Adapters, for admins: which one answers, how each measured, promote, roll back, recall."""

from functools import partial

import pandas as pd
import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.text import moment, plain_markdown, words
from services.ui.tuning import Tuning
from services.ui.views import acts, choosing, evaluation

_ICONS = {
    "candidate": ":material/pending:",
    "approved": ":material/check:",
    "active": ":material/radio_button_checked:",
    "archived": ":material/inventory_2:",
    "recalled": ":material/block:",
}
POLL_S = 1
_MOVING = ("queued", "running")
_NO_HASH = (
    "An earlier release registered it, and kept no hash that tells whether its files are still the same."
)
_OTHER_BASE = "The workers serve other weights under its base model's name than it was trained on."


def show(gateway: Gateway, me: Json) -> None:
    """What answers now, the list, and one adapter."""
    tuning = Tuning(gateway)
    st.title("Adapters")
    acts.show_refusal()
    found = tuning.adapters()
    if not found:
        st.info("No adapter yet: a finished training run makes one. The base model answers.")
        return
    _answering(tuning, found, me["model"])
    sha256 = _choose(found)
    if sha256 is not None:
        _one(tuning, Tuning(gateway.watching()), tuning.adapter(sha256), found)


def _answering(tuning: Tuning, found: list[Json], base_model: str) -> None:
    """Which adapter of the served model answers; an active one of another model does not."""
    history = tuning.deployments(base_model)
    names = {each["sha256"]: _title(each) for each in found}
    active = history[0]["adapter_sha256"] if history else None
    answering = plain_markdown(names.get(active, active)) if active else "the base model alone"
    with st.container(border=True):
        st.markdown(f"Answering now: **{answering}** for every question that names no adapter.")
        if active:
            _override(active, history, found)
            _unverified(active, found)
            for each in found:
                if each["sha256"] == active:
                    _warn_of_erased(each)
            _roll_back(tuning, base_model, active)
        if history:
            _offer_back(tuning, history, found)
            with st.expander("History"):
                table = [
                    {
                        "since (UTC)": moment(each["at"]),
                        "answering": names.get(
                            each["adapter_sha256"], each["adapter_sha256"] or "base model"
                        ),
                        "why": each["kind"].replace("_", " "),
                        "in spite of the gate, because": each["override_reason"] or "",
                    }
                    for each in history
                ]
                st.dataframe(pd.DataFrame(table), hide_index=True, width="stretch")


def _unverified(active: str, found: list[Json]) -> None:
    """Warn when the serving engine cannot load what answers, or could not verify it after it was promoted."""
    failed = next((each for each in found if each["sha256"] == active and not _is_loaded(each)), None)
    if failed is not None and failed["base_served"] is False:
        st.error(
            f"{_OTHER_BASE} Every question that names no adapter fails, until you roll back or recall it, or "
            "its weights are served again.",
            icon=":material/error:",
        )
    elif failed is not None and failed["verification"]:
        why = ""
        if not failed["verification"]["ok"]:
            why = f"Its last verification failed: {plain_markdown(failed['verification']['reason'] or '')} "
        if failed["has_files_hash"]:
            st.warning(
                f"{why}It goes on answering until you roll back or recall it.", icon=":material/warning:"
            )
        else:
            st.error(
                f"{why}{_NO_HASH} Every question that names no adapter fails: choose it below and press Load "
                "and compare, or roll back.",
                icon=":material/error:",
            )


def _warn_of_erased(adapter: Json) -> None:
    """Warn when what it has learnt was erased since; who erased it may be nobody who could recall it."""
    if adapter["dataset_gone"] and adapter["status"] != "recalled":
        st.warning(
            "What it was trained on was erased since, and it has learnt it all the same. Where the law asks "
            "for it to be forgotten, recall it, and train again without it.",
            icon=":material/delete_forever:",
        )


def _roll_back(tuning: Tuning, base_model: str, active: str) -> None:
    st.button(
        "Roll back",
        acts.fresh("roll-back"),  # a second click on the same button does nothing
        icon=":material/undo:",
        help="The adapter before this one answers again, from the next question on.",
        on_click=acts.attempt,
        args=(partial(tuning.roll_back, base_model, active), "Rolled back."),
    )


def _offer_back(tuning: Tuning, history: list[Json], found: list[Json]) -> None:
    """After a roll-back: what answered before it, and the way back there."""
    if len(history) < 2 or history[0]["kind"] != "roll_back":
        return
    before = next((each for each in found if each["sha256"] == history[1]["adapter_sha256"]), None)
    if before is None or before["status"] == "recalled":
        return
    name = plain_markdown(_title(before))
    st.caption(f"Rolled back at {moment(history[0]['at'])} UTC from {name}.")
    if _is_fit(before):
        st.button(
            f"Let {name} answer again",
            acts.fresh("undo-roll-back"),
            icon=":material/redo:",
            on_click=acts.attempt,
            args=(
                partial(tuning.promote, before["sha256"], history[0]["adapter_sha256"]),
                "It answers again.",
            ),
        )
    else:
        st.caption("To let it answer again, choose it below: past its gate, that takes a reason.")


def _override(active: str, history: list[Json], found: list[Json]) -> None:
    """Warn when what answers was let past its gate; a roll-back to it leaves that as it was."""
    promoted = (each for each in history if each["adapter_sha256"] == active and each["kind"] == "promote")
    reason = next((each["override_reason"] for each in promoted), None)
    if reason is None:
        return
    measured = any(each["gate"] for each in found if each["sha256"] == active)
    st.warning(
        f"It was promoted past its gate{'' if measured else ', and was never measured'}. The reason given: "
        f"{plain_markdown(reason)}",
        icon=":material/gavel:",
    )


def _is_loaded(adapter: Json) -> bool:
    """Whether the serving engine computes with it what its trainer did, and still has the base for it."""
    return bool(
        adapter["verification"]
        and adapter["verification"]["ok"]
        and adapter["has_files_hash"]
        and adapter["base_served"] is not False
    )


def _is_fit(adapter: Json) -> bool:
    """Whether it may answer without a reason to override its gate."""
    return bool(_is_loaded(adapter) and adapter["gate"] and adapter["gate"]["passed"])


def _title(adapter: Json) -> str:
    return f"{adapter['name']} v{adapter['version']}"


def _choose(found: list[Json]) -> str | None:
    """The one that the address names, or the newest; None when it names none that there is."""
    ids = [each["sha256"] for each in found]
    titles = {
        each["sha256"]: f"{_title(each)} · {each['status']}"
        + (" · its data was erased" if each["dataset_gone"] else "")
        for each in found
    }
    chosen = choosing.pick(
        "Adapter",
        "a",
        ids,
        titles.__getitem__,
        otherwise=None if st.query_params.get("a") else ids[0],
        placeholder="Choose an adapter",
    )
    if chosen is None:
        st.error("There is no adapter of the id in this page's address. Choose another.")
    return chosen


def _one(tuning: Tuning, watching: Tuning, adapter: Json, found: list[Json]) -> None:
    st.subheader(f"{_ICONS[adapter['status']]} {plain_markdown(_title(adapter))}")
    st.caption(
        f"{adapter['status']} since {moment(adapter['status_at'])} UTC · {adapter['bytes'] / 1e6:.1f} MB · "
        f"SHA-256, as `medichat adapter` and `medichat export` take it, or its beginning:"
    )
    st.code(adapter["sha256"], language=None)
    if adapter["status"] == "recalled":
        st.error(f"Recalled: {plain_markdown(adapter['recalled_reason'] or '')}", icon=":material/block:")
    _warn_of_erased(adapter)
    _steps(tuning, watching, adapter)
    evaluation.show(tuning, watching, adapter)
    _acts(tuning, adapter, found)
    with st.expander("Model card"):
        st.code(adapter["card"], language="markdown", wrap_lines=True)
    if st.toggle("List the answers it gave (this is logged)", key=f"answers-{adapter['sha256']}"):
        _answers(tuning, adapter["sha256"])


def _steps(tuning: Tuning, watching: Tuning, adapter: Json) -> None:
    """What stands before promotion: loaded in the serving engine, and measured."""
    recalled = adapter["status"] == "recalled"
    loaded, measured = st.columns(2)
    with loaded.container(border=True):
        st.markdown("**1. Loaded where it will serve**")
        if adapter["verify_state"] in _MOVING:
            st.fragment(partial(_follow, watching, adapter["sha256"]), run_every=POLL_S)()
        else:
            _verification(adapter)
            act = partial(acts.attempt, partial(tuning.verify, adapter["sha256"]))
            st.button("Load and compare", acts.fresh("verify"), disabled=recalled, on_click=act)
    with measured.container(border=True):
        st.markdown("**2. Measured against its base**")
        _gate(adapter["gate"])
        moving = any(each["state"] in evaluation.MOVING for each in adapter["evaluations"])
        act = partial(acts.attempt, partial(tuning.evaluate, adapter["sha256"]))
        st.button("Measure", acts.fresh("evaluate"), disabled=recalled or moving, on_click=act)


def _verification(adapter: Json) -> None:
    found = adapter["verification"]
    if adapter["base_served"] is False:
        st.error(f"{_OTHER_BASE} Train it again on these.", icon=":material/error:")
    if adapter["verify_error"]:
        st.error(plain_markdown(adapter["verify_error"]["detail"]), icon=":material/error:")
    if found is None:
        st.caption("Not yet. The worker loads it and compares what it computes with what the trainer got.")
    elif found["ok"] and not adapter["has_files_hash"]:
        st.error(
            f"{_NO_HASH} Press Load and compare; every answer with it fails before.", icon=":material/error:"
        )
    elif found["ok"]:
        st.caption(
            f":material/check_circle: It computes what its trainer saw (at most "
            f"{found['max_diff_trainer']:.2g} nats apart), and not what the base does "
            f"(up to {found['max_diff_base']:.2g})."
        )
    else:
        st.error(plain_markdown(found["reason"]), icon=":material/error:")


def _gate(gate: Json | None) -> None:
    if gate is None:
        st.caption("Not yet. Takes some minutes on a CPU; the rows are those that were held out.")
    elif gate["passed"]:
        st.caption(":material/check_circle: Every figure is within its limit.")
    else:
        st.caption(f":material/warning: {_against(gate)} See below.")


def _against(gate: Json) -> str:
    """Which figures fail the gate; one without a value is no number, or was not measured (enough)."""
    over = [words(each["figure"]) for each in gate["failures"] if each["value"] is not None]
    lacking = [words(each["figure"]) for each in gate["failures"] if each["value"] is None]
    told = (("Over the limit", over), ("Without a figure that counts", lacking))
    return " ".join(f"{title}: {', '.join(names)}." for title, names in told if names)


def _follow(tuning: Tuning, sha256: str) -> None:
    """Wait for the verification, then show all anew."""
    try:
        state = tuning.adapter(sha256)["verify_state"]
    except GatewayError as error:
        if error.status in (401, 404):
            st.rerun()
        st.caption(f"{plain_markdown(error.detail)} Trying again.")
        return
    if state not in _MOVING:
        st.rerun()
    st.progress(0.0, "A worker loads it …" if state == "running" else "Waiting for a serving worker …")


def _acts(tuning: Tuning, adapter: Json, found: list[Json]) -> None:
    sha256, gate = adapter["sha256"], adapter["gate"]
    of_same = (each for each in found if each["base_model"] == adapter["base_model"])
    before = next((each for each in of_same if each["status"] == "active"), None)
    promotion = partial(tuning.promote, sha256, before["sha256"] if before else None)
    instead = f" instead of {plain_markdown(_title(before))}" if before else ""
    promote, approve, override, recall = st.columns(4)
    loaded, fit = _is_loaded(adapter), _is_fit(adapter)
    if adapter["status"] in ("candidate", "approved", "archived"):
        with promote:
            if fit:
                acts.confirm(
                    "Promote",
                    f"Every question that names no adapter is answered with it{instead}, within seconds.",
                    promotion,
                    key="promote",
                    done="It answers from now on.",
                    icon=":material/rocket_launch:",
                )
            else:
                st.caption("Can be promoted once 1 and 2 are done and within their limits.")
        if fit and adapter["status"] == "candidate":
            with approve:
                acts.confirm(
                    "Approve",
                    "Whoever names it in a question is answered with it. All others are answered as before.",
                    partial(tuning.approve, sha256),
                    key="approve",
                    done="It may be named in questions.",
                    icon=":material/check:",
                )
        if loaded and not fit:
            lacking = _against(gate) if gate else "It was not measured on its own rows."
            with override:
                acts.with_reason(
                    "Promote anyway",
                    f"{lacking} Say why it shall answer all the same{instead}.",
                    promotion,
                    key="override",
                    done="It answers from now on.",
                    icon=":material/gavel:",
                )
    if adapter["status"] != "recalled":
        with recall:
            acts.with_reason(
                "Recall",
                "It will never answer again, and answers under way end. What it gave stays listed below.",
                partial(tuning.recall, sha256),
                key="recall",
                done="Recalled.",
                icon=":material/block:",
            )


def _answers(tuning: Tuning, sha256: str) -> None:
    """The newest answers, and from there on older ones; each look is an event of the log."""
    place = f"answers-from-{sha256}"
    start = st.session_state.get(place)
    page = tuning.answers_of(sha256, start)
    if not page["items"]:
        st.caption("None so far.")
        return
    table = [
        {
            "job": each["job_id"],
            "conversation": each["conversation_id"],
            "asked (UTC)": moment(each["created_at"]),
            "answered (UTC)": moment(each["finished_at"]),
        }
        for each in page["items"]
    ]
    st.dataframe(pd.DataFrame(table), hide_index=True, width="stretch")
    st.caption("Newest first. An auditor finds the conversations by these ids.")
    further = page["next_cursor"]
    if start or further:
        newest, older = st.columns(2)
        newest.button("Newest", disabled=start is None, on_click=partial(_turn, place, None))
        older.button("Older", disabled=further is None, on_click=partial(_turn, place, further))


def _turn(place: str, cursor: str | None) -> None:
    st.session_state[place] = cursor
