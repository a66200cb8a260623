"""Fine-tuning runs, for admins: start one, watch it, stop it. Closing the page stops nothing."""

import math
import uuid
from functools import partial
from typing import Any

import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.text import moment, plain_markdown
from services.ui.tuning import Tuning
from services.ui.views import acts, choosing, training_run

POLL_S = 2
#: States in which a run still goes on.
MOVING = ("queued", "waiting", "running", "cancelling")
#: Knobs that are shown first; the others are a click away.
_FIRST = ("epochs", "learning_rate", "batch_size", "r")


def show(gateway: Gateway, me: Json) -> None:
    """A form for a new run, the list, and one run with its curve."""
    tuning = Tuning(gateway)
    st.title("Training")
    st.caption("A run makes an adapter: a small addition to the model. The model itself is never changed.")
    acts.show_refusal()
    _new(tuning)
    run = choosing.choose(
        "run",
        "r",
        tuning.runs,
        tuning.run,
        lambda each: f"{each['name']} · {each['state']} · {moment(each['created_at'])}",
        empty="No run yet. Start one above; a few `max_steps` soon show whether the data teaches anything.",
    )
    if run is None:
        return
    if run["state"] in MOVING:
        st.fragment(partial(_follow, Tuning(gateway.watching()), run["id"]), run_every=POLL_S)()
    else:
        training_run.show(run, _plots(tuning, run["id"]))
        _offer_again(tuning, run)
        _show_adapter(run)


def _new(tuning: Tuning) -> None:
    ready = [each for each in tuning.every_dataset() if each["state"] == "ready"]
    wanted = st.query_params.get("d")
    key = acts.fresh("new-run")
    with st.expander("New run", wanted is not None, icon=":material/add:", key=key, on_change="rerun"):
        if not ready:
            st.info("There is no checked data yet. Add some on the Data page.")
            return
        recipes = tuning.recipes()
        names = choosing.told_apart(
            {
                each["id"]: f"{each['name']} ({each['rows_train']:,} rows) · {moment(each['created_at'])}"
                for each in ready
            }
        )
        ids = list(names)
        # hidden, erased or checked again meanwhile: the list would fall back on another by itself
        gone = st.session_state.get("run-data", ids[0]) not in names
        if gone:
            st.warning("The data you had chosen can no longer be trained on. Choose again.")
        dataset = st.selectbox(
            "Data",
            ids,
            ids.index(wanted) if wanted in ids else 0,
            format_func=names.__getitem__,
            key="run-data",
        )
        presets = {each["name"]: each for each in recipes["presets"]}
        preset = st.radio(
            "Recipe",
            list(presets),
            list(presets).index(recipes["default"]),
            captions=[each["title"] for each in presets.values()],
            key="run-preset",
        )
        name = st.text_input(
            "Name of the adapter", max_chars=100, key="run-name", placeholder="diabetes-leaflets"
        )
        changes = _knobs(recipes["knobs"], presets[preset]["recipe"], preset)
        started = st.button("Start", type="primary", icon=":material/play_arrow:", disabled=not name.strip())
        if started and not gone:
            _start(tuning, name=name.strip(), dataset_id=dataset, preset=preset, changes=changes)


def _start(tuning: Tuning, **wish: object) -> None:
    # one key for one wish, so that a second click is no second run, be the first answer never heard
    known, key = st.session_state.get("run-key", (None, ""))
    if known != wish:
        key = str(uuid.uuid4())
        st.session_state["run-key"] = wish, key
    made = acts.attempt(partial(tuning.train, **wish, key=key))  # type: ignore[arg-type]
    if made:
        del st.session_state["run-key"]
        st.query_params.clear()
        st.query_params["r"] = made["id"]
        st.rerun()
    acts.show_refusal()


def _knobs(knobs: list[Json], recipe: Json, preset: str) -> Json:
    """What differs from the preset."""
    changes: Json = {}
    first = sorted(
        (knob for knob in knobs if knob["name"] in _FIRST), key=lambda knob: _FIRST.index(knob["name"])
    )
    columns = st.columns(len(first))
    for column, knob in zip(columns, first, strict=True):
        with column:
            _knob(knob, recipe, preset, changes)
    with st.popover("All knobs", icon=":material/tune:"):
        for knob in knobs:
            if knob["name"] not in _FIRST:
                _knob(knob, recipe, preset, changes)
    return changes


def _knob(knob: Json, recipe: Json, preset: str, changes: Json) -> None:
    name, usual = knob["name"], recipe[knob["name"]]
    label, key = name.replace("_", " "), f"knob-{preset}-{name}"
    value = usual
    if knob["choices"]:
        choices = list(knob["choices"])
        value = st.selectbox(label, choices, choices.index(usual), help=knob["doc"], key=key)
    elif knob["type"] == "boolean":
        value = st.checkbox(label, usual, help=knob["doc"], key=key)
    elif not knob["optional"]:
        value = _number(knob, usual, label, key, help=knob["doc"])
    elif st.toggle(label, usual is not None, help=knob["doc"], key=f"{key}-used"):
        value = _number(knob, usual or knob["minimum"], label, key, label_visibility="collapsed")
    else:
        value = None
    if value != usual:
        changes[name] = value


def _number(knob: Json, usual: float, label: str, key: str, **more: Any) -> float:
    if knob["type"] == "integer":
        least, most = (None if knob[end] is None else int(knob[end]) for end in ("minimum", "maximum"))
        return int(st.number_input(label, least, most, int(usual), 1, key=key, **more))
    least, most = (None if knob[end] is None else float(knob[end]) for end in ("minimum", "maximum"))
    # a click up or down is the largest power of ten that does not lead to nothing
    step = 10.0 ** math.floor(math.log10(usual / 2)) if usual else 0.01
    return float(st.number_input(label, least, most, float(usual), step, format="%g", key=key, **more))


def _follow(tuning: Tuning, run_id: str) -> None:
    """The run as it is now, looked at again and again until it has ended."""
    try:
        run, plots = tuning.run(run_id), _plots(tuning, run_id)
    except GatewayError as error:
        if error.status in (401, 404):
            st.rerun()
        st.caption(f"{plain_markdown(error.detail)} The run goes on; trying again.")
        return
    if run["state"] not in MOVING:
        st.rerun()
    training_run.show(run, plots)
    if run["state"] == "cancelling":
        st.caption("Stopping …")
    else:
        acts.confirm(
            "Stop",
            "The run ends and makes no adapter.",
            partial(tuning.cancel_run, run_id),
            key=f"stop-{run_id}",
            done="Stopping.",
            icon=":material/stop_circle:",
        )


def _plots(tuning: Tuning, run_id: str) -> training_run.Plots:
    """The run's curves. This tab keeps them: only what is new is asked for, and else nothing drawn anew."""
    kept: training_run.Plots | None = st.session_state.get("plots")
    known = kept.steps if kept is not None and kept.run_id == run_id else []
    steps = tuning.steps(run_id, known)
    if kept is None or kept.run_id != run_id or steps is not known:
        kept = training_run.Plots(run_id, steps)
        st.session_state["plots"] = kept
    return kept


def _offer_again(tuning: Tuning, run: Json) -> None:
    if run["state"] == "failed":
        acts.confirm(
            "Start again",
            "It goes on from its last checkpoint, if one is left, with the same recipe. Mend first what it "
            "failed of.",
            partial(tuning.resume_run, run["id"]),
            key=f"again-{run['id']}",
            done="It waits for a worker.",
            icon=":material/replay:",
        )


def _show_adapter(run: Json) -> None:
    page = st.session_state.get("pages", {}).get("adapters")
    if run["adapter_sha256"] and page is not None:
        st.page_link(
            page,
            label="To the adapter",
            icon=":material/extension:",
            query_params={"a": run["adapter_sha256"]},
        )
