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
    turns = tuple(_turn(turn, [next(found) for _ in _passages(turn)]) for turn in transcript.turns)
    text = title.text
    for before, after in zip(transcript.turns, turns, strict=True):
        if before.text and after.text and transcript.title == shorten(before.text):
            text = shorten(after.text)
            break
    return replace(transcript, turns=turns, title=None if transcript.title is None else text)


def _passages(turn: Turn) -> Iterator[Sequence[str]]:
    """The turn's text; its sentences; and these as they were before the guard replaced any."""
    yield [turn.text or ""]
    if turn.sentences:
        yield [sentence.text or "" for sentence in turn.sentences]
    if any(sentence.suppressed for sentence in turn.sentences):
        yield [sentence.suppressed or sentence.text or "" for sentence in turn.sentences]


def _turn(turn: Turn, found: list[list[Masked]]) -> Turn:
    (whole,), *rest = found
    shown = rest[0] if rest else []
    written = rest[1] if len(rest) > 1 else shown
    counts = Counter(whole.counts)
    sentences = []
    for sentence, as_shown, as_written in zip(turn.sentences, shown, written, strict=True):
        sentences.append(_sentence(sentence, as_shown, as_written))
        if sentence.suppressed is not None:
            counts.update(as_written.counts)
    return replace(
        turn,
        text=None if turn.text is None else whole.text,
        sentences=tuple(sentences),
        masked=dict(counts),
    )


def _sentence(sentence: ShownSentence, shown: Masked, written: Masked) -> ShownSentence:
    return replace(
        sentence,
        text=None if sentence.text is None else shown.text,
        suppressed=None if sentence.suppressed is None else written.text,
    )
