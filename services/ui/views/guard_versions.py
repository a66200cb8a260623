"""The versions of the guard's policy: what differs, let one count, edit a copy. It judges nothing."""

import difflib
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from services.ui.client import GatewayError, Json
from services.ui.guarding import Guarding
from services.ui.text import moment, plain_markdown
from services.ui.views import acts, choosing


def show(guarding: Guarding, versions: list[Json], *, before: str | None, admin: bool) -> None:
    """The list, and one version; `before` is the one that a roll-back leads to."""
    table = [
        {
            "version": each["version"],
            "is": _role(each),
            "what is different": each["note"],
            "stored (UTC)": moment(each["created_at"]),
        }
        for each in versions
    ]
    st.dataframe(pd.DataFrame(table), hide_index=True, width="stretch")
    chosen = _choose(versions)
    active = next(each for each in versions if each["active"])
    if admin:
        _acts(guarding, chosen, before)
    texts, active_texts = guarding.texts(chosen["version"]), guarding.texts(active["version"])
    if not chosen["active"]:
        _differences(active_texts, texts)
    names = sorted(texts)
    name = st.selectbox("File", names, names.index("policy.yaml"), key=f"file-{chosen['version']}")
    if not admin:
        st.code(texts[name], language="yaml", line_numbers=True, height=500)
        return
    _edit(guarding, chosen["version"], texts, name)


def _role(version: Json) -> str:
    parts = [word for word in ("active", "shadow", "packaged") if version[word]]
    return ", ".join(parts)


def _choose(versions: list[Json]) -> Json:
    by_name = {each["version"]: each for each in versions}
    active: str = next(each["version"] for each in versions if each["active"])
    chosen = choosing.pick(
        "Version",
        "v",
        list(by_name),
        lambda name: f"{name} · {_role(by_name[name])}".rstrip(" ·"),
        otherwise=active,
    )
    return by_name[chosen]


def _acts(guarding: Guarding, chosen: Json, before: str | None) -> None:
    version = chosen["version"]
    first, second, third = st.columns(3)
    with first:
        if not chosen["active"]:
            acts.confirm(
                "Activate",
                f"Version {version} judges every answer that begins from now on, in every process within 10 "
                "seconds. An answer that is being written stays under its version.",
                partial(guarding.activate, version),
                key="activate",
                done="It counts from now on.",
                icon=":material/check:",
            )
    with second:
        if chosen["shadow"]:
            acts.confirm(
                "End the shadow",
                "It judges no sentence any more. What it said so far is kept.",
                guarding.end_shadow,
                key="end-shadow",
                done="Ended.",
                icon=":material/close:",
            )
        elif not chosen["active"]:
            acts.confirm(
                "Judge in the shadow",
                f"Version {version} judges each sentence too, after it is shown. Nobody sees what it says; "
                "it is counted on the Replay tab.",
                partial(guarding.shadow, version),
                key="shadow",
                done="It judges in the shadow.",
                icon=":material/visibility:",
            )
    with third:
        if before is not None:
            acts.confirm(
                "Roll back",
                f"Version {before}, which was active before, counts again.",
                guarding.roll_back,
                key="roll-back",
                done="Rolled back.",
                icon=":material/undo:",
            )


def _differences(before: dict[str, str], after: dict[str, str]) -> None:
    st.markdown("**What it changes of the active version**")
    changed = [name for name in sorted(after) if after[name] != before.get(name)]
    if not changed:
        st.caption("Nothing.")
    for name in changed:
        lines = difflib.unified_diff(
            before.get(name, "").splitlines(), after[name].splitlines(), "active", name, lineterm="", n=2
        )
        st.code("\n".join(lines), language="diff", wrap_lines=True)


def _edit(guarding: Guarding, version: str, texts: dict[str, str], name: str) -> None:
    """Edit a copy, file by file; what was changed is kept until it is stored."""
    edits: dict[str, str] = st.session_state.setdefault("guard-edits", {}).setdefault(version, {})
    key = acts.fresh(f"edit-{version}-{name}")
    st.text_area(
        f"{name}, a copy of version {version}",
        edits.get(name, texts[name]),
        key=key,
        height=500,
        on_change=partial(_keep, edits, name, texts[name], key),
    )
    _show_refused(version, edits, texts)
    changed = ", ".join(sorted(edits))
    st.caption(f"Changed: {changed}." if changed else "Nothing is changed yet.")
    note = st.text_input(
        "What is different, and why", key=acts.fresh(f"note-{version}"), max_chars=500
    ).strip()
    st.button(
        "Store as a new version",
        type="primary",
        key="store-version",
        disabled=not (edits and note),
        help="It is checked first, and judges nothing until it is activated.",
        on_click=_store,
        args=(guarding, version, edits, note),
    )


def _keep(edits: dict[str, str], name: str, before: str, key: str) -> None:
    edits[name] = st.session_state[key]
    if edits[name] == before:
        del edits[name]


def _store(guarding: Guarding, version: str, edits: dict[str, str], note: str) -> None:
    refused = _refused()
    refused.pop(version, None)
    try:
        made = guarding.add(version, edits, note)
    except GatewayError as error:
        refused[version] = {"detail": error.detail, "places": error.places}
        return
    edits.clear()
    st.query_params["v"] = made
    acts.attempt(lambda: None, f"Stored as {made}. It judges nothing until it is activated.")


def _refused() -> dict[str, dict[str, Any]]:
    """Why the last try to store a copy was refused, by the version that was copied."""
    found: dict[str, dict[str, Any]] = st.session_state.setdefault("guard-refused", {})
    return found


def _show_refused(version: str, edits: dict[str, str], texts: dict[str, str]) -> None:
    """Why the last try was refused, with the line that is wrong."""
    refused = _refused().get(version)
    if refused is None:
        return
    st.error(plain_markdown(refused["detail"]), icon=":material/error:")
    for place in refused["places"]:
        name, _, number = place.rpartition(":")
        lines = edits.get(name, texts.get(name, "")).splitlines()
        if number.isdigit() and 0 < int(number) <= len(lines):
            start = max(0, int(number) - 3)
            shown = [
                f"{'>' if index + 1 == int(number) else ' '} {index + 1:4} {line}"
                for index, line in enumerate(lines[: int(number) + 2])
                if index >= start
            ]
            st.code("\n".join(shown), language=None)
