"""Answers from token ids: in pieces, but never in broken characters and never another text than the whole."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker_infer.text import ChatText
from tests.tiny_model import tiny_tokenizer

CHAT = ChatText(tiny_tokenizer())
VOCABULARY = len(tiny_tokenizer())


def pieces(token_ids: list[int], cuts: list[int]) -> list[str]:
    """What comes out when the ids are fed in chunks cut at `cuts`."""
    detokeniser = CHAT.detokeniser()
    edges = [0, *sorted(cut % (len(token_ids) + 1) for cut in cuts), len(token_ids)]
    out = [detokeniser.feed(token_ids[start:end]) for start, end in pairwise(edges)]
    return [*out, detokeniser.close()]


def encoded(text: str) -> list[int]:
    ids: list[int] = tiny_tokenizer().backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@settings(max_examples=300)
@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=40), st.lists(st.integers(0, 60), max_size=10))
def test_pieces_joined_are_the_whole_for_any_tokens_and_any_chunks(
    token_ids: list[int], cuts: list[int]
) -> None:
    assert "".join(pieces(token_ids, cuts)) == CHAT.decode(token_ids)


@settings(max_examples=200)
@given(st.text(max_size=40))
def test_a_text_fed_token_by_token_comes_back_whole_and_unbroken(text: str) -> None:
    token_ids = encoded(text.replace("\ufffd", ""))
    out = pieces(token_ids, list(range(len(token_ids))))
    assert "".join(out) == CHAT.decode(token_ids)
    assert not any("\ufffd" in piece for piece in out)


def test_a_character_of_several_bytes_comes_out_at_once() -> None:
    token_ids = encoded("ok 😀 yes")
    out = [piece for piece in pieces(token_ids, list(range(len(token_ids)))) if piece]
    assert any("😀" in piece for piece in out)
    assert "".join(out) == "ok 😀 yes"


def test_words_come_out_as_soon_as_their_token_is_there() -> None:
    detokeniser = CHAT.detokeniser()
    for token_id in encoded("The flu is an infection."):
        assert detokeniser.feed([token_id]) == CHAT.decode([token_id]) != ""


def test_control_tokens_have_no_text() -> None:
    end_of_turn = tiny_tokenizer().convert_tokens_to_ids("<end_of_turn>")
    assert CHAT.detokeniser().feed([*encoded("Rest."), end_of_turn]) == "Rest."
