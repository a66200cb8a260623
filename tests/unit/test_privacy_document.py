"""docs/privacy.md claims nothing that no test shows, and no setting that is not there."""

import ast
import re

import pytest

from shared.settings import Settings
from tests.support import ROOT

PAGE = (ROOT / "docs/privacy.md").read_text()
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| (\([a-e]\)|\d\d?)[ ,(]", line)]


def names_in(path: str) -> set[str]:
    """The names of the tests in a file."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 30
    missing = [f"{path}::{name}" for path, name in named if name not in names_in(path)]
    assert not missing


def test_every_paragraph_and_article_is_there_with_a_test() -> None:
    first = [row.split("|")[1].split()[0].rstrip(",") for row in ROWS]
    hipaa = ["(a)(1)", "(a)(2)(i)", "(a)(2)(ii)", "(a)(2)(iii)", "(a)(2)(iv)", "(b)", "(c)(1)", "(c)(2)"]
    hipaa += ["(d)", "(e)(1)", "(e)(2)(i)", "(e)(2)(ii)"]
    assert first == [*hipaa, "5", "15", "16", "17", "20", "25", "30", "32", "33", "35"]
    assert all("::test_" in row for row in ROWS)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`MEDICHAT_(\w+)`", PAGE))))
def test_every_setting_that_the_page_names_exists(name: str) -> None:
    assert name.lower() in Settings.model_fields


@pytest.mark.parametrize("page", ["README.md", "docs/privacy.md", "docs/operations.md"])
def test_a_page_that_speaks_of_erasing_says_that_backups_are_to_be_deleted(page: str) -> None:
    text = " ".join((ROOT / page).read_text().split())
    assert "eras" in text
    assert re.search(r"[Dd]elete backups|[Bb]ackups [^.]*(delete (them|those)|until you delete)", text)
    assert "no secret" not in text
