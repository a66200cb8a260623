"""Makes words out of texts, and keyed hashes out of words, to search encrypted texts. It stores nothing.

A blind index: the database holds HMACs of words and no words. A word is a run of letters, marks and digits
after NFKC and case folding, so that `ﬁbre` is found as `FIBRE`. Whole words only; in languages that write no
spaces between words a whole run of signs is one, which nobody will search for.
"""

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass

from shared.errors import InvalidInput

TERM_BYTES = 12
#: Words of one search.
MOST_WORDS = 16
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_QUOTED = re.compile(r"[\"“”„«»]([^\"“”„«»]*)[\"“”„«»]")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a search asks for: all words, anywhere in a conversation, and each phrase within one message."""

    words: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    # what is folded may fall apart again, so it is composed once more
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if folded.isascii():
        return _ASCII_WORD.findall(folded)
    apart = "".join(sign if unicodedata.category(sign)[0] in "LMN" else " " for sign in folded)
    return apart.split()


def terms_of(key: bytes, words: Collection[str]) -> list[bytes]:
    """What the index holds in their place, in order: HMAC-SHA256 under `key`, cut to `TERM_BYTES`."""
    return [hmac.digest(key, word.encode(), hashlib.sha256)[:TERM_BYTES] for word in words]


def wanted_of(query: str) -> Wanted:
    """What was typed, "quoted phrases" apart. Raises InvalidInput when it has no word, or too many."""
    phrases = tuple(phrase for quoted in _QUOTED.findall(query) if len(phrase := tuple(words_of(quoted))) > 1)
    words = tuple(dict.fromkeys(words_of(query)))
    if not words:
        raise InvalidInput("There is no word to search for; write at least one, of letters or digits.")
    if len(words) > MOST_WORDS:
        raise InvalidInput(f"A search takes at most {MOST_WORDS} different words; leave some out.")
    return Wanted(words=words, phrases=phrases)


def holds(text: str, phrases: tuple[tuple[str, ...], ...]) -> bool:
    """Whether one of the messages `text` has all these phrases, word after word."""
    said = f" {' '.join(words_of(text))} "
    return all(f" {' '.join(phrase)} " in said for phrase in phrases)
