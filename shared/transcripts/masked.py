"""Masks a transcript: every identifier in every text of it, as one conversation. It reads no database."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from shared.conversations import shorten
from shared.privacy.masking import Masked, mask_passages
from shared.transcripts.records import ShownSentence, Transcript, Turn


def masked(transcript: Transcript) -> Transcript:
    """The transcript with identifiers replaced by their types, and each turn's counts of them.

    The title is mostly the beginning of a question, and is then cut from the masked one: a name that the cut
    went through would not be recognised.
    """
    passages = [
        [transcript.title or ""],
        *(passage for turn in transcript.turns for passage in _passages(turn)),
    ]
    found = iter(mask_passages(passages))
    (title,) = next(found)
    turns = tuple(_turn(turn, iter([next(found) for _ in _passages(turn)])) for turn in transcript.turns)
    text = title.text
    for before, after in zip(transcript.turns, turns, strict=True):
        if before.text and after.text and transcript.title == shorten(before.text):
            text = shorten(after.text)
            break
    return replace(transcript, turns=turns, title=None if transcript.title is None else text)


def _passages(turn: Turn) -> Iterator[Sequence[str]]:
    """The turn's text, unless its sentences make it up; these; and as they were before any was replaced."""
    if not _is_made_of_sentences(turn):
        yield [turn.text or ""]
    if turn.sentences:
        yield [sentence.text or "" for sentence in turn.sentences]
    if any(sentence.suppressed for sentence in turn.sentences):
        yield [sentence.suppressed or sentence.text or "" for sentence in turn.sentences]


def _is_made_of_sentences(turn: Turn) -> bool:
    texts = [sentence.text or "" for sentence in turn.sentences]
    return bool(texts) and "".join(texts).strip() == turn.text


def _turn(turn: Turn, found: Iterator[list[Masked]]) -> Turn:
    if _is_made_of_sentences(turn):
        shown = next(found)
        text = "".join(each.text for each in shown).strip()
        counts = sum((Counter(each.counts) for each in shown), Counter())
    else:
        (whole,) = next(found)
        text, counts = whole.text, Counter(whole.counts)
        shown = next(found, [])
    written = next(found, shown)
    sentences = []
    for sentence, as_shown, as_written in zip(turn.sentences, shown, written, strict=True):
        sentences.append(_sentence(sentence, as_shown, as_written))
        if sentence.suppressed is not None:
            counts.update(as_written.counts)
    return replace(
        turn,
        text=None if turn.text is None else text,
        sentences=tuple(sentences),
        masked=dict(counts),
    )


def _sentence(sentence: ShownSentence, shown: Masked, written: Masked) -> ShownSentence:
    return replace(
        sentence,
        text=None if sentence.text is None else shown.text,
        suppressed=None if sentence.suppressed is None else written.text,
    )
