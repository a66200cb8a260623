"""Judges one row after another: can it be read, may it be used, what is in it. It decides no split."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from services.worker_train.duplicates import digest, signature, split_question
from services.worker_train.lengths import Lengths
from services.worker_train.reading import Broken, Row
from services.worker_train.row_parts import Message, RowProblem
from services.worker_train.shapes import Conversation
from shared.guard import Audience, Guard
from shared.pictures import BrokenPicture, PictureBomb, clean_picture
from shared.privacy import phi
from shared.training.options import DatasetOptions, PhiPolicy
from shared.training.report import MAX_LINES, Reason

#: How much of a row tells its language, in characters, and below what it cannot be told.
_LANGUAGE_CHARS, _LANGUAGE_MIN_CHARS = 400, 25
UNDETERMINED = "und"
#: An answer that only points at one of several options, as it seems: B, (b) or 2.
_BARE = re.compile(r"\(?(?:[^\W\d]|\d{1,9}(?:[.,]\d{1,9})?)[).]?")
#: Names of pictures whose cleaned ones are remembered.
_PICTURES = 100_000
#: The category of an answer that the guard could not judge.
GUARD_FAILED = "guard_failure"


@dataclass(frozen=True)
class Examined:
    """One row after its examination. Of a row that cannot be read only line and reason are known."""

    line: int
    reason: Reason | None = None
    advice: str | None = None
    messages: list[Message] = field(default_factory=list)
    image: str | None = None
    group: str | None = None
    digest: bytes = b""
    unit: bytes = b""
    hashes: NDArray[np.uint32] | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is found of a row, and of every other with the same text."""

    tokens: int
    language: str
    reason: Reason | None = None
    advice: str | None = None
    #: What the guard holds against an answer.
    danger: str | None = None


@dataclass
class Tally:
    """What was counted on the way."""

    rows: int = 0
    tokens: list[int] = field(default_factory=list)
    phi_types: Counter[str] = field(default_factory=Counter)
    phi_rows: int = 0
    phi_lines: list[int] = field(default_factory=list)
    dangerous: dict[str, list[int]] = field(default_factory=dict)
    dangerous_counts: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    foreign_lines: list[int] = field(default_factory=list)
    #: Rows whose answer is one letter or a number.
    bare_answers: int = 0


class Examiner:
    """Examines the rows of one dataset, in the order of the file.

    Args:
        read: turns a row into a conversation; raises RowProblem.
        options: what the admin chose.
        lengths: counts tokens.
        guard: judges answers, as it does when they are served.
        picture: the bytes of a picture that a row names; raises KeyError.
        keep: stores a cleaned picture under its SHA-256.
    """

    def __init__(
        self,
        read: Callable[[Row], Conversation],
        options: DatasetOptions,
        lengths: Lengths,
        guard: Guard,
        *,
        picture: Callable[[str], bytes],
        keep: Callable[[str, bytes], None],
    ) -> None:
        self._read = read
        self._options = options
        self._lengths = lengths
        self._guard = guard
        self._keep = keep
        # many rows may name one picture, which is decoded once
        self._named = lru_cache(maxsize=_PICTURES)(lambda name: self._cleaned(picture(name)))
        self.tally = Tally()
        #: By everything that a judgement hangs on: what differs in case alone is a copy, and may be judged
        #: otherwise, for a name is known by its capitals.
        self._seen: dict[bytes, Judgement] = {}

    def examine(self, line: int, row: Row) -> Examined:
        """Judge one row. Raises Broken for a picture that cannot be read, or was made to do harm."""
        self.tally.rows += 1
        try:
            found = self._read(row)
            image = self._clean(found.image)
        except RowProblem as problem:
            return Examined(line, problem.reason, problem.advice)
        except PictureBomb:
            raise Broken(
                "image-bomb",
                f"The picture of line {line} would unpack to more pixels than any camera's has. Take it out, "
                "or shrink it, and look at where it came from.",
            ) from None
        messages = [{**turn, "content": self._lengths.plain(turn["content"])} for turn in found.messages]
        messages, identifies = self._without_phi(line, messages)
        examined = self._identify(line, messages, image, found)
        judgement = self._judged(messages, image, identifies)
        self._count(line, judgement)
        self.tally.bare_answers += _BARE.fullmatch(messages[-1]["content"]) is not None
        if judgement.reason is None:
            asked, answered = (_said_by(role, messages) for role in ("user", "assistant"))
            return replace(examined, hashes=signature(*split_question(asked), answered))
        return replace(examined, reason=judgement.reason, advice=judgement.advice)

    def _clean(self, image: str | bytes | None) -> str | None:
        """Keep the picture; its SHA-256. Raises RowProblem."""
        if image is None:
            return None
        try:
            name = self._cleaned(image) if isinstance(image, bytes) else self._named(_plain(image))
        except KeyError:
            raise RowProblem(
                Reason.BROKEN_IMAGE,
                "The picture that the row names is not in the upload. Add it, or say in the options that no "
                "column is the image.",
            ) from None
        if isinstance(name, BrokenPicture):
            raise RowProblem(Reason.BROKEN_IMAGE, name.advice)
        return name

    def _cleaned(self, image: bytes) -> str | BrokenPicture:
        """Keep the picture; its SHA-256, or why it cannot be used, which is remembered like the other."""
        try:
            png = clean_picture(image)
        except BrokenPicture as problem:
            return problem
        name = hashlib.sha256(png).hexdigest()
        self._keep(name, png)
        return name

    def _without_phi(self, line: int, messages: list[Message]) -> tuple[list[Message], bool]:
        """The messages, masked where that was chosen, and whether something identified a person."""
        found = [phi.find(turn["content"]) for turn in messages]
        if not any(found):
            return messages, False
        self.tally.phi_types.update(finding.type for findings in found for finding in findings)
        self.tally.phi_rows += 1
        _note(self.tally.phi_lines, line)
        if self._options.phi is PhiPolicy.MASK:
            messages = [
                {**turn, "content": phi.mask(turn["content"], findings)}
                for turn, findings in zip(messages, found, strict=True)
            ]
        return messages, True

    @staticmethod
    def _identify(line: int, messages: list[Message], image: str | None, found: Conversation) -> Examined:
        asked = next(turn["content"] for turn in messages if turn["role"] == "user")
        return Examined(
            line,
            messages=messages,
            image=image,
            group=found.group,
            digest=digest(image or "", *(text for turn in messages for text in turn.values())),
            unit=b"group:" + digest(found.group) if found.group else digest(image or "", asked),
        )

    def _judged(self, messages: list[Message], image: str | None, identifies: bool) -> Judgement:
        """What is found of the row, as of an earlier one of the same text."""
        text = json.dumps([messages, image is not None, identifies]).encode()
        key = hashlib.sha256(text).digest()
        if key not in self._seen:
            self._seen[key] = self._judge(messages, image is not None, identifies)
        return self._seen[key]

    def _judge(self, messages: list[Message], image: bool, identifies: bool) -> Judgement:
        """Whether the row can be used; if not, why, and what to do."""
        tokens = self._lengths.count(messages, image=image)
        known = Judgement(tokens, _language(messages))
        limit = self._options.max_tokens
        if tokens > limit:
            lost = self._lengths.prompt(messages, image=image) >= limit
            what = "its whole answer" if lost else "the end of its answer"
            return replace(
                known,
                reason=Reason.TOO_LONG,
                advice=f"The row takes {tokens} tokens and would lose {what} at {limit}. Raise max_tokens, "
                "or shorten the row.",
            )
        if identifies and self._options.phi is not PhiPolicy.MASK:
            return replace(known, reason=Reason.PHI)
        danger = self._danger(turn["content"] for turn in messages if turn["role"] == "assistant")
        return known if danger is None else replace(known, reason=Reason.DANGEROUS, danger=danger)

    def _count(self, line: int, row: Judgement) -> None:
        self.tally.tokens.append(row.tokens)
        self.tally.languages[row.language] += 1
        if row.language not in ("en", UNDETERMINED):
            _note(self.tally.foreign_lines, line)
        if row.danger is not None:
            self.tally.dangerous_counts[row.danger] += 1
            _note(self.tally.dangerous.setdefault(row.danger, []), line)

    def _danger(self, answers: Iterable[str]) -> str | None:
        """The category of the first sentence that the guard would replace; None when there is none."""
        for answer in answers:
            # a clock that stands still: whether a row is dangerous must not hang on how busy the machine is
            gate = self._guard.gate(Audience.PATIENT, clock=lambda: 0.0)
            for release in (*gate.feed(answer), *gate.close()):
                if not release.verdict.allowed:
                    return str(release.verdict.category or GUARD_FAILED)
        return None


def _language(messages: list[Message]) -> str:
    import py3langid  # type: ignore[import-untyped]

    text = " ".join(turn["content"] for turn in messages if turn["role"] != "system")[:_LANGUAGE_CHARS]
    return str(py3langid.classify(text)[0]) if len(text) >= _LANGUAGE_MIN_CHARS else UNDETERMINED


def _said_by(role: str, messages: list[Message]) -> str:
    return "\n\n".join(turn["content"] for turn in messages if turn["role"] == role)


def _plain(path: str) -> str:
    """One way of writing the path, instead of `./a.png` and `.//a.png`."""
    return str(PurePosixPath(path.strip()))


def _note(lines: list[int], line: int) -> None:
    if len(lines) < MAX_LINES:
        lines.append(line)
