"""Data to train on, for admins: add a file, read what its check found, look at rows. It trains nothing."""

from functools import partial
from typing import get_args

import pandas as pd
import streamlit as st

from services.ui.client import Gateway, GatewayError, Json, given
from services.ui.text import UPLOAD_MB, moment, plain_markdown
from services.ui.tuning import Tuning
from services.ui.views import acts, choosing, data_report, erasing, password
from shared.training.options import Part
from shared.training.states import GONE

POLL_S = 2
_PHI = {
    "mask": "mask them: [NAME], [DATE] …",
    "quarantine": "set the row aside",
    "reject": "refuse the whole file",
}
#: Refusals that ask for the columns.
_UNREADABLE_COLUMNS = ("unknown-shape", "unknown-column")
_AS_NAMED = "as its name says"
#: Chosen for a part that no column is; it holds what no column's name may.
_NO_COLUMN = "\0"
_UNNAMED = (
    "Left empty: when it came, in UTC. A file's name is not taken, for it may name a person: it is kept "
    "encrypted, and this one is not."
)
_UNNAMED_OF_HUB = "A dataset of the hub is called by its id."
_STATES = {"receiving": "coming in", "validating": "being checked", "ready": "ready", "rejected": "refused"}


def show(gateway: Gateway, me: Json) -> None:
    """The forms for new data, the list, and one dataset with its report."""
    tuning = Tuning(gateway)
    st.title("Data")
    st.caption("Questions and answers to fine-tune on. They are encrypted before they reach a disk.")
    password.show(gateway)
    acts.show_refusal()
    erasing.show_outcome()
    _add(tuning)
    dataset = choosing.choose(
        "dataset",
        "d",
        tuning.datasets,
        tuning.dataset,
        lambda each: f"{each['name']} · {_STATES[each['state']]} · {moment(each['created_at'])}",
        empty="No data yet. Add a file above: one question and one answer a row is enough.",
    )
    if dataset is None:
        return
    if _is_moving(dataset):
        st.fragment(partial(_follow, Tuning(gateway.watching()), dataset["id"]), run_every=POLL_S)()
    else:
        # what is listed has no report; to read one is an event of the log, so none is read twice
        _one(tuning, dataset if "report" in dataset else tuning.dataset(dataset["id"]))


def _add(tuning: Tuning) -> None:
    key = acts.fresh("add-data")
    with st.expander("Add data", icon=":material/upload_file:", key=key, on_change="rerun"):
        upload, elsewhere, reviews = st.tabs(
            ["Upload a file", "From the server or the hub", "Corrected answers"]
        )
        with upload, st.form("upload"):
            file = st.file_uploader(
                "File",
                type=["jsonl", "csv", "parquet", "zip"],
                key=acts.fresh("upload-file"),
                help="JSON Lines, CSV or Parquet; a zip of one of them with pictures.",
            )
            st.caption(f"Up to {UPLOAD_MB} MB here; larger ones: `medichat dataset add FILE`.")
            name = st.text_input("Name", max_chars=100, key=acts.fresh("upload-name"), help=_UNNAMED)
            options = _options("upload")
            if st.form_submit_button("Upload and check", type="primary"):
                if file is None:
                    st.error("Choose a file first.")
                else:
                    _upload(tuning, file, name.strip(), options)
        with elsewhere, st.form("fetch"):
            source = st.radio(
                "From",
                ["hub", "path"],
                horizontal=True,
                format_func={"hub": "the Hugging Face hub", "path": "the server's import folder"}.get,
            )
            location = st.text_input("Hub id, or file", placeholder="lavita/ChatDoctor-HealthCareMagic-100k")
            name = st.text_input(
                "Name", max_chars=100, key="fetch-name", help=f"{_UNNAMED} {_UNNAMED_OF_HUB}"
            )
            of_the_hub = _part_of_the_hub()
            options = {**_options("fetch"), **of_the_hub}
            if st.form_submit_button("Fetch and check", type="primary"):
                wish = partial(
                    tuning.fetch,
                    name=name.strip(),
                    source=source,
                    location=location.strip(),
                    options=options,
                )
                _made(wish)
        with reviews, st.form("of-reviews"):
            st.caption(
                "Questions whose answers reviewers corrected, with the corrected answers. Identifiers are "
                "masked as far as a detector finds them; you see counts and a report, not the rows."
            )
            name = st.text_input("Name", max_chars=100, key=acts.fresh("reviews-name")).strip()
            if st.form_submit_button("Make and check", type="primary"):
                if name:
                    with st.spinner("Masking the corrected answers …"):
                        _made(partial(tuning.of_reviews, name))
                else:
                    st.error("Give it a name first.")


def _part_of_the_hub() -> Json:
    """Which part of a dataset of the hub is taken; what is left empty is the gateway's choice."""
    left, right = st.columns(2)
    subset = left.text_input(
        "Subset (hub)", max_chars=100, key="fetch-subset", help="Where the dataset has several: one of them."
    )
    split = right.text_input("Split (hub)", max_chars=100, key="fetch-split", placeholder="train")
    return given(subset=subset.strip(), split=split.strip())


def _options(key: str, former: Json | None = None) -> Json:
    former = former or {}
    phi = st.selectbox(
        "If a row names a person, a date, a record number …",
        list(_PHI),
        list(_PHI).index(former.get("phi", "mask")),
        format_func=_PHI.get,
        key=f"{key}-phi",
    )
    share, longest = st.columns(2)
    fraction = former.get("validation_fraction", 0.1)
    shown = round(100 * fraction, 1)
    percent = share.slider(
        "Held out to measure with, %",
        0.0,
        50.0,
        shown,
        0.1,
        format="%.1f",
        help="Rows of one patient (`group`) stay together.",
        key=f"{key}-share",
    )
    tokens = longest.number_input(
        "Longest row, tokens", 16, 32_768, former.get("max_tokens", 2048), key=f"{key}-tokens"
    )
    if percent != shown:  # else as it was, which may lie between two places of the slider
        fraction = round(percent / 100, 3)
    return {"phi": phi, "validation_fraction": fraction, "max_tokens": int(tokens)}


def _upload(
    tuning: Tuning, file: st.runtime.uploaded_file_manager.UploadedFile, name: str, options: Json
) -> None:
    with st.spinner(f"Sending {file.size / 1e6:.1f} MB …"):
        _made(partial(tuning.upload, file, filename=file.name, name=name, **options))


def _made(wish: "partial[Json]") -> None:
    made = acts.attempt(wish)
    if made:
        st.query_params["d"] = made["id"]
        st.rerun()
    acts.show_refusal()


def _is_moving(dataset: Json) -> bool:
    return dataset["state"] in ("receiving", "validating")


def _follow(tuning: Tuning, dataset_id: str) -> None:
    try:
        dataset = tuning.dataset(dataset_id)
    except GatewayError as error:
        if error.status in (401, 404):
            st.rerun()
        st.caption(f"{plain_markdown(error.detail)} Trying again.")
        return
    if not _is_moving(dataset):
        st.rerun()
    progress = dataset["progress"]
    if progress and progress["total"]:
        share = min(1.0, progress["done"] / progress["total"])
        st.progress(share, f"{progress['what']}: {progress['done']:,} of {progress['total']:,}")
    elif progress:
        st.progress(0.0, f"{progress['what']}: {progress['done']:,}")
    else:
        st.progress(0.0, "Waiting for a worker to check it …")
    st.caption("The check goes on when you close this page.")


def _one(tuning: Tuning, dataset: Json) -> None:
    if dataset["error"]:
        st.error(plain_markdown(dataset["error"]["detail"]), icon=":material/error:")
    if dataset["report"]:
        data_report.show(dataset)
    if dataset["state"] == "ready":
        data_report.show_rows(tuning, dataset)
        home = st.session_state.get("pages", {}).get("training")
        if home is not None:
            st.page_link(
                home,
                label="Train on this data",
                icon=":material/model_training:",
                query_params={"d": dataset["id"]},
            )
    again, remove = st.columns(2)
    if dataset["sha256"] or dataset["source"] == "hub":  # else nothing of it was kept
        with again:
            _check_again(tuning, dataset)
    with remove:
        acts.confirm(
            "Remove",
            "It leaves this list and cannot be trained on any more. Adapters trained on it stay.",
            partial(_remove, tuning, dataset["id"]),
            key=f"remove-{dataset['id']}",
            done="Removed.",
            icon=":material/delete:",
        )
        if (dataset["error"] or {}).get("code") not in GONE:
            acts.confirm(
                "Erase",
                "Its key and its files are destroyed: nobody can read its rows again. This cannot be undone. "
                "What checks it or trains on it is stopped; adapters trained on it stay, and are listed. "
                "Backups taken before hold its rows until you delete them.",
                partial(_erase, tuning, dataset["id"]),
                key=f"erase-{dataset['id']}",
                done="Erased.",
                icon=":material/delete_forever:",
            )
    with st.expander("Origin"):
        if dataset["source"] == "hub":
            what = {"dataset of the hub": dataset["source_name"], "commit": dataset["revision"]}
        else:
            what = {
                "made of" if dataset["source"] == "reviews" else "file": dataset["source_name"],
                "bytes": f"{dataset['bytes'] or 0:,}",
                "sha256 of the file": dataset["sha256"],
            }
        facts = {
            **what,
            "sha256 of the manifest": dataset["manifest_sha256"],
            "rows read as": dataset["shape"],
            "added (UTC)": moment(dataset["created_at"]),
            "checked (UTC)": moment(dataset["validated_at"]),
        }
        table = pd.DataFrame({"what": facts.keys(), "value": [value or "" for value in facts.values()]})
        st.dataframe(table, hide_index=True, width="stretch")


def _remove(tuning: Tuning, dataset_id: str) -> None:
    tuning.hide_dataset(dataset_id)
    st.query_params.pop("d", None)  # it names nothing any more


def _erase(tuning: Tuning, dataset_id: str) -> None:
    erasing.note(tuning.erase_dataset(dataset_id))


def _columns(dataset: Json) -> dict[str, str]:
    """Which column is read as what: chosen among those of the report, or typed where there is none."""
    chosen = dataset["options"].get("columns", {})
    known = (dataset["report"] or {}).get("columns", [])
    names = ["", _NO_COLUMN, *dict.fromkeys([*known, *filter(None, chosen.values())])]
    error = dataset["error"] or {}
    columns = {}
    with st.expander("Which column is which", bool(chosen) or error.get("code") in _UNREADABLE_COLUMNS):
        st.caption(
            "Where their names do not say it: the question and the answer, or only what there is besides."
        )
        sides = st.columns(2)
        for place, part in enumerate(get_args(Part)):
            key = f"again-{dataset['id']}-column-{part}"
            former = (chosen[part] or _NO_COLUMN) if part in chosen else ""
            side = sides[place % 2]
            if known:
                name = side.selectbox(part, names, names.index(former), format_func=_column_name, key=key)
            else:
                unless_typed = former if former == _NO_COLUMN else ""
                shown = _column_name(unless_typed)
                name = side.text_input(
                    part, former.strip(_NO_COLUMN), max_chars=200, placeholder=shown, key=key
                )
                name = name or unless_typed
            columns[part] = name
    return {part: name.strip(_NO_COLUMN) for part, name in columns.items() if name}


def _column_name(choice: str) -> str:
    return {"": _AS_NAMED, _NO_COLUMN: "no column"}.get(choice, choice)


def _check_again(tuning: Tuning, dataset: Json) -> None:
    key = acts.fresh(f"again-{dataset['id']}")
    with st.popover("Check again", icon=":material/refresh:", key=key, on_change="rerun"):
        options = {
            **dataset["options"],
            **_options(f"again-{dataset['id']}", dataset["options"]),
            "columns": _columns(dataset),
        }
        if st.button("Check with these options", key="check-again", type="primary"):
            acts.attempt(partial(tuning.check_again, dataset["id"], options))
            st.rerun()
