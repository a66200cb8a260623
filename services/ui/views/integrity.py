"""Whether the log is what was signed: its state, verification, checkpoints and proofs. It shows no event."""

from datetime import UTC, datetime
from functools import partial

import pandas as pd
import streamlit as st

from services.ui import log_proofs
from services.ui.client import Gateway, GatewayError, Json
from services.ui.text import moment, plain_markdown
from services.ui.views import acts

_REPORT = "verification"
_UNKEPT = "checkpoint-unkept"
#: Longer than this without a seal is worth a look.
_LATE_S = 10.0


def show(gateway: Gateway, me: Json) -> None:
    """How far the log is sealed and signed; buttons to verify it, to sign it, and to prove a conversation."""
    st.title("Integrity")
    st.caption(
        "Each event is sealed into a tree whose root is signed. Whoever keeps a signed checkpoint can tell "
        "later whether anything before it was changed."
    )
    acts.show_refusal()
    state = log_proofs.log_state(gateway)
    _state(state)
    _verify(gateway)
    _checkpoints(gateway, state)
    _prove(gateway, state)


def _state(state: Json) -> None:
    entries, waiting, signed = st.columns(3)
    entries.metric("Sealed entries", state["size"])
    waiting.metric("Waiting to be sealed", state["waiting"])
    newest = state["checkpoints"][0] if state["checkpoints"] else None
    signed.metric("Signed (UTC)", moment(newest["signed_at"]) if newest else "not yet")
    if state["waiting_s"] > _LATE_S:
        st.error(
            f"An event has waited for {state['waiting_s']:.0f} s to be sealed; it should be less than one. "
            "Ask the operator to look at the log of the gateway."
        )
    if state["size"] and state["root"] is None:
        st.error("Hashes of the log's tree are missing. Verify the log to see where.")
    if why := state["not_independent"]:
        st.warning(
            f"**Not independent**: {why}. Who owns it can change both. Keep checkpoints elsewhere: download "
            "them here from time to time, or let the operator set MEDICHAT_CHECKPOINT_URL to another place.",
            icon=":material/warning:",
        )


def _verify(gateway: Gateway) -> None:
    st.subheader("Verify")
    if st.button("Verify the whole log", type="primary", icon=":material/fact_check:"):
        st.session_state.pop(_REPORT, None)
        try:
            begun_at = datetime.now(UTC).isoformat()
            st.session_state[_REPORT] = _followed(gateway), begun_at
        except GatewayError as error:
            st.error(plain_markdown(error.detail))
    report = st.session_state.get(_REPORT)
    if report is None:
        return
    report, made_at = report
    st.caption(f"Verified at {moment(made_at)} UTC; what was written or changed since is not in it.")
    if "failed" in report:
        st.error(plain_markdown(report["failed"]))
        return
    if report["holds"] and not report["checkpoints"]:
        st.info(
            f"The {report['size']} entries agree with each other. No checkpoint is signed yet to hold them "
            "against: sign one, then verify.",
            icon=":material/info:",
        )
    elif report["holds"]:
        st.success(
            f"The log is what was signed: {report['size']} entries, {report['checkpoints']} checkpoints.",
            icon=":material/verified:",
        )
    else:
        st.error(
            f"The log was altered: {report['count']} findings. The first: {_told(report['findings'][0])}",
            icon=":material/gpp_bad:",
        )
        table = [
            {"entry": each["entry"], "what": each["what"], "event": each["event"]}
            for each in report["findings"]
        ]
        st.dataframe(pd.DataFrame(table), hide_index=True, width="stretch")
    if report["superseded"]:
        st.info(
            f"{report['superseded']} checkpoints are newer than a backup that was restored; the log says so."
        )
    st.caption(
        f"Root {report['root'] or '(nothing is sealed)'}; {report['waiting']} events wait to be sealed."
    )


def _followed(gateway: Gateway) -> Json:
    """The report; until it is there a bar moves."""
    bar, told = st.progress(0.0, "Reading the log"), {}
    for told in log_proofs.verify_log(gateway):
        if "checked" in told:
            share = min(told["checked"] / max(told["of"], 1), 1.0)
            bar.progress(share, f"{told['checked']} of {told['of']} entries")
    bar.empty()
    return told


def _told(finding: Json) -> str:
    entry = "" if finding["entry"] is None else f"entry {finding['entry']}: "
    return plain_markdown(f"{entry}{finding['what']}.")


def _sign(gateway: Gateway) -> None:
    made = acts.attempt(partial(log_proofs.make_checkpoint, gateway))
    if made is not None and made["kept"]:
        st.toast("The log is signed.")
    st.session_state[_UNKEPT] = made is not None and not made["kept"]


def _checkpoints(gateway: Gateway, state: Json) -> None:
    st.subheader("Checkpoints")
    st.button(
        "Sign one now",
        icon=":material/draw:",
        on_click=partial(_sign, gateway),
    )
    if st.session_state.pop(_UNKEPT, False):
        st.warning(
            "The log is signed, but the second place (`MEDICHAT_CHECKPOINT_URL`) could not take the "
            "checkpoint. It is tried again each minute; download it below, keep it elsewhere, and tell who "
            "runs MediChat.",
            icon=":material/cloud_off:",
        )
    if not state["checkpoints"]:
        st.caption("None is signed yet; one is made each minute in which the log grows.")
        return
    chosen = st.selectbox(
        "Checkpoint",
        state["checkpoints"],
        format_func=lambda each: f"{moment(each['signed_at'])} · {each['size']} entries",
    )
    st.code(chosen["note"], language=None)
    st.download_button(
        "Download it, to keep elsewhere",
        chosen["note"],
        file_name=f"checkpoint-{chosen['size']:012d}.txt",
        icon=":material/download:",
    )


def _prove(gateway: Gateway, state: Json) -> None:
    st.subheader("Prove a conversation")
    st.caption("A file that shows what the log says of one conversation. It holds no text of it.")
    with st.form("prove"):
        name = st.text_input("Conversation (id)", max_chars=36).strip()
        if st.form_submit_button("Make the proof") and name:
            st.session_state["proof"] = (name, acts.attempt(partial(log_proofs.prove, gateway, name)))
            acts.show_refusal()
    name, proof = st.session_state.get("proof", ("", None))
    if proof is not None:
        st.download_button(
            "Download the proof", proof, file_name=f"proof-{name}.json", icon=":material/download:"
        )
    st.download_button(
        "Download the program that checks it",
        log_proofs.check_proof_program(gateway),
        file_name="check_proof.py",
        icon=":material/download:",
    )
    st.caption("Give whoever checks it this key on another way than the proof:")
    st.code(state["key"], language=None)
