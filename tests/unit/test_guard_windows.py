"""How a question is cut into texts that are scored."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.guard.sentences import sentences_of
from shared.guard.windows import windows

texts = st.lists(
    st.sampled_from(["I rest. ", "No. ", "word " * 30, "It goes on and on. " * 5, "\n", "x" * 300, "; "]),
    max_size=60,
).map("".join)


def test_of_a_short_text_there_is_no_window() -> None:
    assert windows("I rest. I drink. ") == []


def test_a_window_is_a_sentence_with_those_before_it_that_fit() -> None:
    one, two, three, four = (f"{'word ' * count}end." for count in (18, 20, 19, 21))
    text = " ".join((one, two, three, four))
    assert windows(text) == [f"{one} {two}", f"{two} {three}", f"{three} {four}"]


@given(text=texts)
def test_every_sentence_stands_in_a_window_of_a_longer_text(text: str) -> None:
    found = windows(text)
    assert len(found) == len(set(found)) <= 42
    assert text.strip() not in found
    if found:
        assert all(any(sentence.strip() in window for window in found) for sentence in sentences_of(text))
