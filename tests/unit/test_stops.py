"""Texts at which an answer ends."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.worker_infer.stops import Stops

TEXT = st.text(alphabet="abc ", max_size=30)
STOPS = st.lists(st.text(alphabet="abc ", min_size=1, max_size=4), max_size=3)


def fed(stops: Stops, pieces: list[str]) -> str:
    """All that passes."""
    passed = "".join(stops.feed(piece) for piece in pieces)
    return passed + stops.close()


@given(TEXT, STOPS, st.lists(st.integers(0, 30), max_size=6))
def test_an_answer_ends_before_the_first_stop_however_it_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(places)]
    passed = fed(Stops(stops), pieces)
    if not any(stop in text for stop in stops):
        assert passed == text
    else:  # of two that overlap the one that is whole first counts
        assert text.startswith(passed)
        assert any(text[len(passed) :].startswith(stop) for stop in stops)
        assert not any(stop in passed for stop in stops)


def test_without_a_stop_nothing_waits() -> None:
    assert Stops([]).feed("Ast") == "Ast"


def test_what_may_begin_a_stop_waits_for_what_follows() -> None:
    stops = Stops(["END"])
    assert [stops.feed(piece) for piece in ("It is E", "N", "ough. E", "ND")] == [
        "It is ",
        "",
        "ENough. ",
        "",
    ]
    assert stops.cut == "END"


def test_nothing_passes_after_a_stop() -> None:
    stops = Stops(["\n"])
    assert stops.feed("One.\nTwo.") == "One."
    assert (stops.feed("Three."), stops.close()) == ("", "")


def test_a_stop_that_began_in_what_was_released_before_is_found() -> None:
    stops = Stops(["\n\n"], "One.\n")
    assert (stops.feed("\nTwo."), stops.cut) == ("", "\n\nTwo.")


def test_what_was_released_before_does_not_pass_again() -> None:
    stops = Stops(["\n\n"], "One.\n")
    assert stops.feed("Two.") == "Two."


def test_a_stop_within_a_sentence_waits_for_its_end_as_only_then_it_can_be_judged() -> None:
    stops = Stops([" m"])
    assert (stops.feed("Take 8000 m"), stops.judgeable) == ("Take 8000", False)
    assert (stops.feed("g a day. And"), stops.judgeable) == ("", True)
    assert stops.cut == " mg a day. And"


def test_a_stop_between_sentences_ends_the_answer_at_once() -> None:
    stops = Stops(["And"])
    assert (stops.feed("It is. And"), stops.judgeable) == ("It is. ", True)


def test_a_sentence_that_never_ends_is_not_waited_for() -> None:
    stops = Stops([" m"])
    stops.feed("Take m" + "x" * 400)
    assert stops.judgeable
