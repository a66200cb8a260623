"""The text a person accepts before the first question, and its version. It stores nothing."""

from shared.prompts import DISCLAIMER

CONSENT_VERSION = "2026-11"
CONSENT_TEXT = (
    f"{DISCLAIMER}\n\n"
    "Your questions and the answers are stored encrypted and are part of an audit log, which "
    "auditors of this organisation can read; each such read is itself logged. Do not enter names or "
    "other details that identify a person unless your organisation allows it."
)
