"""What people and models write, made safe to show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ui.text import answer_markdown, beginning, moment, plain_markdown, seconds_between, words


@pytest.mark.parametrize(
    "active", ["![x](http://h/x.png)", "[x](http://h)", "<img src=x>", "$x$", ":red[x]", "`x`"]
)
def test_an_answer_keeps_its_emphasis_and_nothing_that_acts(active: str) -> None:
    shown = answer_markdown(f"**Rest** and {active}")
    assert "**Rest**" in shown
    for mark in "[]<$`":
        assert mark not in shown.replace("\\" + mark, "")


@given(st.text(alphabet="abw*_#>[]()!<$`:/@&1.-=~\n\\"))
def test_what_a_person_typed_loses_no_character(text: str) -> None:
    shown = plain_markdown(text).replace("  \n", "\n")
    kept = [character for character in shown if character not in "\\\u2060"]
    assert kept == [character for character in text if character != "\\"]


def test_a_line_break_stays_one() -> None:
    assert plain_markdown("a\nb") == "a  \nb"


def test_of_a_long_text_the_beginning_is_shown_in_one_line() -> None:
    assert beginning("What is\n asthma?", 15) == "What is asthma?"
    assert beginning("What is asthma?", 9) == "What is…"


def test_codes_and_times_are_said_as_people_say_them() -> None:
    assert words("false_cure") == "false cure"
    assert words(None) == ""
    assert moment("2026-11-24T09:05:07.123+00:00") == "2026-11-24 09:05:07"
    assert moment(None) == ""
    assert seconds_between("2026-11-24T09:05:07+00:00", "2026-11-24T09:05:08.5+00:00") == 1.5
    assert seconds_between("2026-11-24T09:05:07+00:00", None) is None
