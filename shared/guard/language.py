"""Tells whether a text is in a language that the guard does not know: its words and rows are English.

It counts a text as foreign only when it is sure, for English texts are full of Latin names of diseases.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

from shared.guard.sentences import sentences_of
from shared.guard.verdict import Action, Audience, Category, Severity, Side, Verdict

#: The layer in a verdict.
LAYER = "language"
KNOWN = "en"
#: Below this likelihood of English a text is foreign; how it was chosen is in decision 0021.
_LEAST = 0.003
#: Fewer words may be the name of a disease (one of three can be too: "Mal de debarquement").
_LEAST_WORDS = 3
#: Taken for Latin, or for no language: names of diseases and codes.
_NAMES = frozenset(("la", "zxx", "und"))
#: So many letters of another script with no Latin one between are words, not a sign; fewer where a letter
#: is a syllable.
_RUN, _SHORT_RUN = 8, 4
_SYLLABLES = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "YI", "ETHIOPIC")
#: A letter of the Greek alphabet by itself, as in "α-blocker".
_SIGN = re.compile(r"(?<![^\W\d_])[\u0370-\u03ff](?![^\W\d_])")
#: Of a longer text this much is read from either end.
_READ_CHARS = 1000


def is_foreign(text: str) -> bool:
    """Whether a text is surely in another language than English, or mostly in another script, or holds words
    of one.
    """
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return False
    if sum(map(_is_latin, letters)) * 2 < len(letters) or _holds_another_script(text):
        return True
    if len(text.split()) < _LEAST_WORDS:
        return False
    read = text if len(text) <= 2 * _READ_CHARS else f"{text[:_READ_CHARS]} {text[-_READ_CHARS:]}"
    likelihoods = _identifier().rank(read)
    return likelihoods[0][0] not in _NAMES and dict(likelihoods)[KNOWN] < _LEAST


class LanguageJudge:
    """Stops what is in a language that no other layer can read, also where only one sentence is."""

    def __init__(self, side: Side) -> None:
        _identifier()  # reading it takes longer than a sentence may
        self._found = Verdict(
            side=side,
            action=Action.REPLACE if side is Side.ANSWER else Action.REFUSE,
            category=Category.LANGUAGE,
            severity=Severity.HIGH,
            layer=LAYER,
            source="language.unknown",
            score=1.0,
        )
        self._nothing = Verdict.ALLOWED if side is Side.ANSWER else Verdict.ALLOWED_QUESTION

    def __call__(self, text: str, context: str, audience: Audience) -> Verdict:
        """The verdict on `text` by itself; a few words in another language within a sentence are not seen."""
        # of an answer it is a sentence already
        foreign = is_foreign(text) or (
            len(sentences := sentences_of(text)) > 1 and any(map(_is_foreign_sentence, sentences))
        )
        return self._found if foreign else self._nothing


def _is_foreign_sentence(sentence: str) -> bool:
    """The same of a part of a text; a sign or two by themselves, as in "38.5º", are no words."""
    return sum(map(str.isalpha, _SIGN.sub("", sentence))) >= _SHORT_RUN and is_foreign(sentence)


def _holds_another_script(text: str) -> bool:
    if text.isascii():
        return False
    run = 0.0
    for letter in _SIGN.sub("", text):
        if letter.isalpha():
            run = 0.0 if _is_latin(letter) else run + 1 / _least_run(letter)
            if run >= 1:
                return True
    return False


def _least_run(letter: str) -> int:
    return _SHORT_RUN if unicodedata.name(letter, "").startswith(_SYLLABLES) else _RUN


def _is_latin(letter: str) -> bool:
    if letter.isascii():
        return True
    # "º" and "ℹ" are letters o and i in another form
    return "LATIN" in unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "")


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
