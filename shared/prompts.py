"""The words that MediChat itself puts around a conversation. It does not know a model's chat template."""

import hashlib

DISCLAIMER = (
    "MediChat is an AI, not a doctor. It gives general information, can be wrong, and is no substitute "
    "for a doctor who knows you. In an emergency call your local emergency number."
)
#: What of it stays in view while one asks and reads.
REMINDER = "An AI, not a doctor; it can be wrong. In an emergency call your local emergency number."
#: For everybody whose question could not be judged.
HELP = (
    "In an emergency call your local emergency number. If you think of harming yourself, talk to somebody "
    "now: findahelpline.com names who listens where you are."
)


def prompt_version(system_prompt: str) -> str:
    """A short name for exactly this system prompt: the first 12 hex digits of its SHA-256."""
    return hashlib.sha256(system_prompt.encode()).hexdigest()[:12]
