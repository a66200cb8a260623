"""A policy as data: its files by name, and the version that names their words. It does not judge."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

#: What a policy consists of.
POLICY_FILES = (
    "doses.yaml",
    "facts.yaml",
    "interactions.yaml",
    "lexicon.yaml",
    "policy.yaml",
    "resources.yaml",
    "responses.yaml",
    "rules_answer.yaml",
    "rules_question.yaml",
)
#: The longest text of one file, in characters.
MOST_CHARS = 400_000
#: The longest policy that is taken over HTTP, in bytes: its files are English, a byte a character. More would
#: be more that somebody without a log-in could have the gateway hold.
MOST_BYTES = MOST_CHARS * len(POLICY_FILES)


def version_of(texts: Mapping[str, str]) -> str:
    """Twelve hexadecimal digits that change with any word of the policy."""
    whole = "\0".join(f"{name}\0{texts[name]}" for name in sorted(texts))
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


@cache
def packaged_policy() -> dict[str, str]:
    """The text of each file of the policy that comes with the program, which is read once per process."""
    folder = files("shared.guard")
    return {name: (folder / name).read_text(encoding="utf-8") for name in POLICY_FILES}


def completed(texts: Mapping[str, str]) -> dict[str, str]:
    """These texts, with the packaged ones for files that they lack, and without any that is no part of one.

    A version stored by an earlier release may lack a file that a later one brought.
    """
    return {name: texts.get(name, packaged) for name, packaged in packaged_policy().items()}
