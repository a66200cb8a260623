"""Names whose case says nothing, IN CAPITALS or in small letters, in any alphabet, and `Surname, First`.

Here the lists decide: behind a title, a word that announces a person, or nothing (two capital words), only
what the census knows and is no ordinary word is a name. Behind "Dr." and "Patient name:" an unknown word is
one too. Names written Like This are names.py's.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import takewhile

from shared.privacy.recognisers.census import as_listed, census, frequent_surnames, unmistakable
from shared.privacy.recognisers.letters import UPPER
from shared.privacy.recognisers.ordinary import ORDINARY
from shared.privacy.recognisers.regions import is_region
from shared.privacy.recognisers.words import COMMON_WORDS, starts_eponym

_LETTER = r"[^\W\d_]"
_WORD = re.compile(rf"{_LETTER}(?:{_LETTER}|[\u0300-\u036f]|(?!['’][sS]\b)['’-](?={_LETTER}))*+(?!\w)")
#: Between words of a name; also what parts a surname from the first name behind it, and ends an initial.
_GAP = re.compile(rf"(?<=\W[{UPPER}])\.[ \t]*|,?[ \t]+")
#: The words by which a name is announced, told apart by their first letters: so most are passed over at once.
_ANNOUNCED = re.compile(
    r"\b(?:(?P<title>[Dd](?i:rs?|octor)|[Mm](?i:rs?|s|x|iss)|[Pp](?i:rof(?:essor)?)|[Nn](?i:urse)|[Rr](?i:ev)"
    r"|[Ss](?i:ir|gt|ister)|[Cc](?i:apt))\b\.?[ \t]+"
    r"|(?P<label>[Nn](?i:amed?))\b(?:[ \t]*:[ \t]*|[ \t]+(?:(?i:is|was)[ \t]+)?)"
    r"|(?:[Pp](?i:atient|t|hysician|rovider)|[Cc](?i:lient|onsultant)|[Rr](?i:esident|eferred[ \t]+by)"
    r"|[MmFf](?i:other|ather)|[Ww](?i:ife)|[Hh](?i:usband)|[Ss](?i:on|pouse|urgeon|een[ \t]+by|igned[ \t]+by)"
    r"|[Dd](?i:aughter)|[Bb](?i:rother)|[Aa](?i:ttending))\b(?:[ \t]*[:,][ \t]*|[ \t]+))(?=[^\W\d_])"
)
#: The first of each of them. A text without any, as most are, is not searched further.
_WORDS = """
dr drs doctor mr mrs ms mx miss prof professor nurse rev sir sgt sister capt name named patient pt physician
provider client consultant resident referred mother father wife husband son spouse surgeon seen signed
daughter brother attending
"""
_ANNOUNCING = frozenset(_WORDS.split())
#: A small letter for each letter, a blank for what is none.
_SMALL = "".join(chr(code).lower()[0] if chr(code).isalpha() else " " for code in range(0x2100))
#: Words in capitals in a row, as in JOHN MILLER and MILLER, JOHN Q.
_CAPITALS = re.compile(
    rf"(?<!\w)(?<![^\s(\[:]['’-])[{UPPER}][{UPPER}'’-]++"
    rf"(?:,?[ \t]+[{UPPER}](?:[{UPPER}'’-]+\b|\.|\b))+"
)
#: Whose name a label asks for: "Drug name:" asks for none.
_WHOSE = re.compile(
    r"\b(?:patient|pt|client|resident|full|first|last|family|given|maiden|mother|father|spouse)(?:['’]?s)?"
    r"[ \t]+$",
    re.IGNORECASE,
)
#: A name in letters that have no case.
_UNCASED = re.compile(r"(?:[^\x00-\x7f\s、。，；：（）]+[ \t]?){1,3}(?<![ \t])")
_PARTICLES = frozenset(("VAN", "VON", "DER", "DEN", "DE", "DEL", "DI", "DA", "LA", "LE", "BIN", "AL", "EL"))
#: What of a surname stands before a word of it, as in DE LA CRUZ, and how far before.
_PARTICLES_BEFORE = re.compile(rf"\b(?:(?:{'|'.join(sorted(_PARTICLES))})[ \t]+){{1,2}}$")
_BEFORE = 12
_NO_NAMES = ORDINARY | {word.upper() for word in COMMON_WORDS}
#: Ordinary words that are a person all the same behind a title or a frequent first name.
_SURNAMES_TOO = frozenset(
    ("BLACK", "BROWN", "CHAMBERS", "GRANT", "MILES", "RAY", "WARD", "WEST", "WHITE", "YOUNG")
)
#: "MR WHITE MATTER" is a picture's, "MS" also a disease.
_AMBIGUOUS = frozenset(("MR", "MS"))
#: What an empty label says.
_WITHHELD = frozenset(
    ("UNKNOWN", "NOT", "NONE", "WITHHELD", "REDACTED", "ANONYMOUS", "CONFIDENTIAL", "DECLINED")
)
#: In small letters a rarer surname is too often another word.
_FREQUENT = 5_000
_MOST_WORDS = 5
#: A shorter word in capitals is an abbreviation, where nothing announces a name.
_LONG = 3
#: Titles that nothing else is written like: "MR" is a picture too, "miss" a verb.
_SURE_TITLES = frozenset(("Dr", "Drs", "Mr", "Mrs", "Ms", "Mx", "Prof", "Professor", "Rev", "Capt", "Sgt"))
#: Behind a word in capitals: the text goes on in small letters, so the capitals were the name's own.
_GOES_ON_SMALL = re.compile(r"['’]s\b|[ \t]+[a-z]")

Word = re.Match[str]


def people_in_any_case(text: str) -> Iterator[tuple[int, int, float]]:
    """Start, end and certainty of each name that no capital at its head alone gives away."""
    if not _ANNOUNCING.isdisjoint(text.translate(_SMALL).split()):
        yield from _announced(text)
    for run in _CAPITALS.finditer(text):
        yield from _in_capitals(run)


def _announced(text: str) -> Iterator[tuple[int, int, float]]:
    for found in _ANNOUNCED.finditer(text):
        title, label, at = found["title"], found["label"], found.end()
        sure = title in _SURE_TITLES or (label is not None and _is_of_a_person(found))
        start = found.start() if title and "." in found[0] else at  # "Mr." goes with the name, "Mr" stays
        if sure and not _has_case(text[at]) and (uncased := _UNCASED.match(text, at)):
            yield start, uncased.end(), 0.9
            continue
        if title is None and label is None and not _may_be_full(text, at):
            continue
        words = _words(text, at)
        if title:
            if taken := _behind_title(words, title, sure):
                yield start, _end(taken), 0.9
        elif (taken := _behind_label(words, sure) if label else _full_name(words)) and not _is_eponym(taken):
            yield taken[0].start(), _end(taken), 0.75


def _is_of_a_person(label: Word) -> bool:
    before = label.string[max(0, label.start() - 20) : label.start()]
    return ":" in label[0] and _WHOSE.search(before) is not None


def _behind_title(words: list[Word], title: str, sure: bool) -> list[Word]:
    """Those of the words that are the name of the one with that title."""

    def accepts(place: int, word: Word) -> bool:
        if _is_known(word[0]) or (title not in _AMBIGUOUS and as_listed(word[0]) in _SURNAMES_TOO):
            return True
        if not sure or word[0].islower() or as_listed(word[0]) in _NO_NAMES:
            return False
        return place == 0 or (len(word[0]) > 4 and _GOES_ON_SMALL.match(word.string, word.end()) is not None)

    if _has_comma(words) and not (accepts(0, words[0]) and _is_first(words[1][0])):
        words = words[:1]
    return _taken(words, accepts)


def _behind_label(words: list[Word], sure: bool) -> list[Word]:
    """The same behind "name": when the label is sure, words that no list knows are a name too."""

    def accepts(place: int, word: Word) -> bool:
        return _is_known(word[0]) or (
            place < (2 if word[0].isupper() else 3)
            and not word[0].islower()
            and as_listed(word[0]) not in _NO_NAMES | _WITHHELD
        )

    taken = _taken(words, accepts)
    if sure or (len(taken) > 1 and any(_is_known(word[0]) for word in taken)):
        return taken
    return _full_name(words)


def _full_name(words: list[Word]) -> list[Word]:
    """Those of the words that are first name and surname, `Surname, First`, or a most frequent first name."""
    if _has_comma(words):
        surname, other = words[0][0], words[1][0]
        if _is_surname(surname) and (_is_first(other) or _is_strange(other)):
            return _taken(words, lambda place, word: place < 2 or _is_known(word[0]))
        words = words[:1]
    if not words or not _is_first(words[0][0]):
        return []
    head = as_listed(words[0][0])
    frequent = head in unmistakable()

    def accepts(place: int, word: Word) -> bool:
        if place == 1 and frequent and word[0].isupper() and as_listed(word[0]) in _SURNAMES_TOO:
            return True
        return place == 0 or _is_known(word[0])

    taken = _taken(words, accepts)
    if len(taken) == 1 and (not frequent or head in _NO_NAMES):
        return []
    return [] if all(_is_capitalised(word[0]) for word in taken if len(word[0]) > 1) else taken


def _in_capitals(run: Word) -> Iterator[tuple[int, int, float]]:
    """Full names that nothing announces, where all words are in capitals."""
    if run[0].isascii() and not any(map(_is_first, run[0].replace(",", " ").replace(".", " ").split())):
        return
    done = run.start()
    for head in _WORD.finditer(run.string, run.start(), run.end()):
        if head.start() < done or len(head[0]) < _LONG or not _may_be_full(run.string, head.start()):
            continue
        words = list(takewhile(lambda word: word[0].isupper(), _words(run.string, head.start())))
        taken = _full_name(words)
        whole = sum(len(word[0]) >= _LONG for word in taken) > 1 or (taken and _is_pointed(taken[-1]))
        if not whole or _is_eponym(taken):
            continue
        done = _end(taken)
        if not is_region(run.string[head.start() : done].title()):
            since = max(run.start(), head.start() - _BEFORE)
            before = _PARTICLES_BEFORE.search(run.string, since, head.start())
            yield before.start() if before else head.start(), done, 0.7


def _may_be_full(text: str, at: int) -> bool:
    """Whether a first name or a comma is next: one look, as it mostly is "patient with"."""
    word = _WORD.match(text, at)
    return word is not None and (text.startswith(",", word.end()) or _is_first(word[0]))


def _words(text: str, at: int) -> list[Word]:
    """The words from there on, as long as nothing but blanks, or the comma behind a surname, parts them."""
    words: list[Word] = []
    while len(words) < _MOST_WORDS and (word := _WORD.match(text, at)):
        if text.startswith(":", word.end()) and not _is_known(word[0]):
            break  # what comes next is told of it: "HISTORY:"
        words.append(word)
        gap = _GAP.match(text, word.end())
        if gap is None or (gap[0][0] == "," and len(words) > 1):
            break
        at = gap.end()
    return words


def _taken(words: list[Word], accepts: Callable[[int, Word], bool]) -> list[Word]:
    """The first words that are all accepted; small letters go on in small letters only.

    Particles and initials are let through between accepted words, an initial with its point at the end too.
    """
    count = 0
    for place, word in enumerate(words):
        if as_listed(word[0]) in _PARTICLES or (len(word[0]) == 1 and (place or word[0].isupper())):
            continue
        if (word[0].islower() and not words[0][0].islower()) or not accepts(place, word):
            break
        count = place + 1
    if 0 < count < len(words) and _is_pointed(words[count]):
        count += 1
    return words[:count]


def _end(taken: list[Word]) -> int:
    return taken[-1].end() + _is_pointed(taken[-1])


def _is_pointed(word: Word) -> bool:
    """Whether it is an initial with its point."""
    return len(word[0]) == 1 and word[0].isupper() and word.string.startswith(".", word.end())


def _is_eponym(taken: list[Word]) -> bool:
    return any(starts_eponym(word.string, word.end()) for word in taken)


def _has_comma(words: list[Word]) -> bool:
    return len(words) > 1 and words[0].string[words[0].end()] == ","


def _has_case(letter: str) -> bool:
    return letter.lower() != letter.upper()


def _is_capitalised(word: str) -> bool:
    return not (word.isupper() or word.islower())


def _is_strange(word: str) -> bool:
    """Whether it is written as a name, and no word that is known for another thing."""
    return _is_capitalised(word) and as_listed(word) not in _NO_NAMES


def _is_first(word: str) -> bool:
    """Whether it is on the list, or each part of it when it is a double name."""
    first = _lists()[0]
    return as_listed(word) in first or (
        "-" in word and all(as_listed(part) in first for part in word.split("-"))
    )


def _is_surname(word: str) -> bool:
    """Whether it, or for a double name one of its parts, is on the list and means nothing else."""
    _, surnames, frequent = _lists()
    listed = frequent if word.islower() else surnames
    if "-" not in word:
        return as_listed(word) in listed
    parts = [as_listed(part) for part in word.split("-")]
    return not listed.isdisjoint(parts) and _NO_NAMES.isdisjoint(parts)


def _is_known(word: str) -> bool:
    return _is_first(word) or _is_surname(word)


@lru_cache
def _lists() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """First names, surnames, and frequent surnames that are no other words."""
    first, last = census()
    return (
        (first - _NO_NAMES) | (first & unmistakable()),
        last - _NO_NAMES,
        frequent_surnames(_FREQUENT) - _NO_NAMES,
    )
