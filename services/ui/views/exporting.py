"""Has a file made of what a page shows, and offers it until it is taken. It knows no page."""

from functools import partial

import streamlit as st

from services.ui.client import Json
from services.ui.finding import Finding
from services.ui.views import acts

_READY = "export-ready"
FORMATS = {"csv": "CSV, for a spreadsheet", "jsonl": "JSON Lines", "fhir": "FHIR AuditEvent (R4)"}


def show(finding: Finding, what: str, filters: Json) -> None:
    """A choice of formats, a button, and then the file; `what` is `events` or `conversations`."""
    kinds = list(FORMATS) if what == "events" else ["csv", "jsonl"]
    with st.popover("Export", icon=":material/download:"):
        st.caption(
            "Everything that matches, the newest 100,000 at most. That you export is logged. "
            + ("" if what == "events" else "No texts of conversations are in it.")
        )
        kind = st.selectbox("Format", kinds, format_func=FORMATS.__getitem__, key=f"export-{what}")
        st.button(
            "Make the file",
            key=f"export-{what}-make",
            type="primary",
            on_click=partial(_make, finding, what, kind, filters),
        )
    ready = st.session_state.get(_READY)
    if ready is not None and ready["what"] == what:
        name, data = ready["file"]
        label = f"Save {name} ({len(data) / 1000:,.1f} kB)"
        st.download_button(label, data, name, key=f"export-{what}-save", on_click=_taken)


def _make(finding: Finding, what: str, kind: str, filters: Json) -> None:
    _taken()
    file = acts.attempt(partial(finding.export, what, kind, filters), "The file is made; now save it.")
    if file is not None:
        st.session_state[_READY] = {"what": what, "file": file}
    elif "refusal" not in st.session_state:
        st.toast("Type your password at the top of the page, then make the file again.")


def _taken() -> None:
    st.session_state.pop(_READY, None)
