"""What the check of a dataset found. It holds counts, line numbers and column names, and no word of a row."""

from collections.abc import Iterable, Iterator
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

#: Most rows of one finding that are listed one by one.
MAX_LINES = 200


class Reason(StrEnum):
    """Why a row is not trained on."""

    NOT_TEXT = "not_text"
    ROLES = "roles"
    EMPTY_QUESTION = "empty_question"
    EMPTY_ANSWER = "empty_answer"
    TOO_LONG = "too_long"
    BROKEN_IMAGE = "broken_image"
    EXACT_DUPLICATE = "exact_duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    OVERLAP = "overlap"
    PHI = "phi"  #: set aside in quarantine
    DANGEROUS = "dangerous"  #: set aside in quarantine

    @property
    def quarantines(self) -> bool:
        """Whether the row is kept aside for a person to read."""
        return self in (Reason.PHI, Reason.DANGEROUS)


#: What to do about each; a row's own advice may say more.
ADVICE = {
    Reason.NOT_TEXT: "A column that should hold text is missing or holds something else; fill it in.",
    Reason.ROLES: "Turns must go user, assistant, user, assistant, after at most one system text.",
    Reason.EMPTY_QUESTION: "Write the question, or leave the row out.",
    Reason.EMPTY_ANSWER: "Write the answer, or leave the row out.",
    Reason.TOO_LONG: "Raise max_tokens, or shorten the row.",
    Reason.BROKEN_IMAGE: "Give the row a PNG, JPEG or WebP that opens, under the name the row uses.",
    Reason.EXACT_DUPLICATE: "Nothing to do: one copy is kept.",
    Reason.NEAR_DUPLICATE: "Nothing to do, or make the rows differ in more than a few words.",
    Reason.OVERLAP: "Nothing to do: the copy in the validation rows is kept, so that they stay unseen.",
    Reason.PHI: "Take out what identifies a person, or choose to mask it.",
    Reason.DANGEROUS: "Rewrite the answer: the guard would not let MediChat say it.",
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DroppedRow(_Part):
    """One row that is not trained on."""

    line: int
    advice: str


class Dropped(_Part):
    """All rows dropped for one reason."""

    reason: Reason
    count: int
    #: The first `MAX_LINES` of them, each with advice of its own.
    rows: list[DroppedRow]
    #: What to do about the others.
    advice: str
    #: The lines of all of them; see `write_lines`.
    all_lines: str


class Histogram(_Part):
    """Counts between edges: `counts[i]` values lie in `[edges[i], edges[i + 1])`."""

    edges: list[int]
    counts: list[int]


class Phi(_Part):
    """What identifies a person, in the rows that were judged."""

    policy: str
    by_type: dict[str, int]
    rows: int
    lines: list[int]


class Dangerous(_Part):
    """Answers that the guard would not let out, of one category."""

    category: str
    count: int
    lines: list[int]


class Report(_Part):
    """The whole report; kept with the dataset and shown on its page."""

    #: What the file is: jsonl, csv, parquet, "zip of jsonl", …, hub.
    format: str
    #: How its rows were recognised: chat, prompt_completion, instruction_output, question_answer.
    shape: str
    #: The columns of the file, in its order.
    columns: list[str]
    #: Which column was read as what.
    mapping: dict[str, str]
    rows_in: int
    #: Rows by where they went: train, validation, quarantine.
    rows_out: dict[str, int]
    dropped: list[Dropped]
    #: Tokens of every readable row in the chat format of the model.
    tokens: Histogram
    longest_tokens: int
    max_tokens: int
    #: Rows that would lose their answer, or its end, at `max_tokens`; they are dropped.
    truncated: int
    exact_duplicates: int
    near_duplicates: int
    overlap: int
    phi: Phi
    dangerous: list[Dangerous]
    #: Rows by the language they seem to be in (ISO 639-1; `und`: too short to say).
    languages: dict[str, int]
    not_english_lines: list[int]
    #: Groups (patients) among the rows used, and how many of them went to validation; None without groups.
    groups: int | None
    groups_validation: int | None
    images: int
    #: What a person should know besides, in our words.
    notes: list[str]
    seconds: float
    rows_per_s: float


def write_lines(lines: Iterable[int]) -> str:
    """Line numbers in rising order, runs drawn together: `4, 6, 9-12`."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and line == runs[-1][1] + 1:
            runs[-1][1] = line
        else:
            runs.append([line, line])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def read_lines(written: str) -> Iterator[int]:
    """The line numbers that `write_lines` wrote."""
    for run in filter(None, written.split(", ")):
        first, _, last = run.partition("-")
        yield from range(int(first), int(last or first) + 1)


#: Refusals that other options may cure, or another try: the upload is worth keeping.
CURABLE = frozenset(
    {
        "unknown-shape",
        "unknown-column",
        "no-usable-rows",
        "phi-found",
        "hub-unreadable",
        "no-tokenizer",
        "bad-options",
        "unreadable",
    }
)
