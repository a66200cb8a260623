"""The safe words and the policy's version."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest

from shared.guard import Category, Guard, load_guard, packaged_policy
from shared.guard.policy import POLICY_FILES
from shared.settings import Settings

GUARD = Guard(packaged_policy())  # by its rules alone


def policy() -> dict[str, str]:
    """The packaged policy files."""
    return {name: (files("shared.guard") / name).read_text(encoding="utf-8") for name in POLICY_FILES}


@pytest.mark.parametrize(
    ("locale", "emergency", "crisis"),
    [
        ("us", "911", "988"),
        ("gb", "999", "116 123"),
        ("uk", "999", "116 123"),
        ("en-GB", "999", "116 123"),
        ("eu", "112", "findahelpline"),
    ],
)
def test_resources_are_those_of_the_locale(locale: str, emergency: str, crisis: str) -> None:
    responses = GUARD.responses(locale)
    assert emergency in responses.emergency
    assert emergency in responses.crisis
    assert crisis in responses.crisis
    # an emergency may be of one's own making, in words that tell nobody so
    assert crisis in responses.emergency
    assert crisis in responses.still(Category.EMERGENCY)


def test_every_locale_that_can_be_set_has_resources_of_its_own() -> None:
    settable = get_args(Settings.model_fields["locale"].annotation)
    assert {GUARD.responses(locale).locale for locale in settable} == {*settable} - {"uk"}
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (row,) = [line for line in readme.splitlines() if line.startswith("| `MEDICHAT_LOCALE`")]
    assert {*re.findall(r"`(\w+)`", row)} - {"MEDICHAT_LOCALE"} == {*settable}


def test_an_unknown_locale_gets_the_international_resources() -> None:
    assert GUARD.responses("xx").locale == "intl"
    assert "112" in GUARD.responses("xx").emergency


def test_every_answer_category_has_a_replacement_of_its_own() -> None:
    responses = GUARD.responses()
    of_questions = {Category.CRISIS, Category.EMERGENCY, Category.HARMFUL_REQUEST, Category.INJECTION}
    not_answers = {Category.OMISSION, Category.IDENTIFIERS, *of_questions}
    texts = [responses.replacement(category) for category in Category if category not in not_answers]
    assert len(set(texts)) == len(texts)
    assert responses.replacement(None) not in texts


def test_every_replacement_refers_to_help() -> None:
    assert all(GUARD.refers(GUARD.responses().replacement(category)) for category in [*Category, None])


def test_questions_get_the_text_of_their_category() -> None:
    responses = GUARD.responses("gb")
    assert responses.for_question(Category.CRISIS) == responses.crisis
    assert responses.for_question(Category.EMERGENCY) == responses.emergency
    assert responses.for_question(Category.HARMFUL_REQUEST) == responses.refusal
    assert responses.for_question(Category.INJECTION) == responses.injection
    assert responses.for_question(Category.LANGUAGE) == responses.unknown_language
    assert "could not be checked" in responses.for_question(None)
    with pytest.raises(KeyError):
        responses.for_question(Category.DOSING)


def test_the_policy_version_names_the_policy() -> None:
    assert re.fullmatch(r"[0-9a-f]{12}", GUARD.policy_version)
    assert load_guard().policy_version == GUARD.policy_version == Guard(policy()).policy_version


@pytest.mark.parametrize("name", POLICY_FILES)
def test_any_change_of_the_policy_changes_its_version(name: str) -> None:
    changed = policy()
    changed[name] += "\n# changed\n"
    assert Guard(changed).policy_version != GUARD.policy_version
