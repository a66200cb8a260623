"""What columns mean by their names, and how they are named to people. It reads no row."""

import re
from collections.abc import Container, Iterable

_ALIASES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog"),
    "instruction": ("instruction",),
    "input": ("input",),
    "output": ("output", "response", "answer"),
    "prompt": ("prompt",),
    "completion": ("completion", "response", "answer", "output", "chosen"),
    "question": ("question", "query", "q", "patient_question", "input"),
    "context": ("context", "passage"),
    "answer": ("answer", "response", "output", "reply", "long_answer"),
    "system": ("system", "system_prompt"),
    "image": ("image", "image_path", "img", "picture", "images"),
    "group": ("group", "patient", "patient_id", "subject_id", "group_id", "person_id"),
}
#: They name a picture where pictures lie beside the rows, or hold one; elsewhere they only tell of a file.
_BESIDE = ("image_name", "img_name", "img_path", "image_file", "figure_path", "file_name")
#: Question and answer, where both are called so; otherwise the latter is the first of several options.
_SHORT = ("q", "a")
_SECOND_OPTION = "b"
#: How the name of a column looks: one word, without a number that could be somebody's; or as a CSV's column
#: without a name is called.
_NAME = re.compile(r"column \d{1,3}|(?!.*\d{4})(?!.{41})(?![\d\W_]+$)\w[\w.-]*")
_MOST_LISTED = 30


def by_name(columns: Iterable[str], *, pictures: bool, in_bytes: Container[str] = ()) -> dict[str, str]:
    """Part → the column that its name says is it.

    Args:
        columns: their names.
        pictures: whether pictures can lie beside the rows.
        in_bytes: columns that hold pictures themselves.
    """
    columns = list(columns)
    found = {part: names[0] for part, names in all_by_name(columns).items()}
    plain = {_plain(column): column for column in reversed(columns)}
    question, answer = (plain.get(name) for name in _SHORT)
    if question and answer and found.get("question") == question and _SECOND_OPTION not in plain:
        found.setdefault("answer", answer)
    for name in _BESIDE:
        if name in plain and (pictures or plain[name] in in_bytes):
            found.setdefault("image", plain[name])
    return found


def all_by_name(columns: Iterable[str]) -> dict[str, list[str]]:
    """Part → all columns that are named like it, the likeliest first."""
    plain: dict[str, list[str]] = {}
    for column in columns:
        plain.setdefault(_plain(column), []).append(column)
    found = {
        part: [each for name in names for each in plain.get(name, ())] for part, names in _ALIASES.items()
    }
    return {part: names for part, names in found.items() if names}


def is_makeshift(part: str, column: str) -> bool:
    """Whether the column is the part only where a shape needs that and has no better: input as question."""
    return part == "question" and _plain(column) == "input"


def listed(columns: list[str]) -> str:
    """The columns by name, or by number: where a header line is missing, a row's words stand in its place."""
    shown = columns[:_MOST_LISTED]
    if all(map(_is_name, shown)):
        return ", ".join(shown) or "none"
    numbered = ", ".join(f"column {place}" for place in range(1, len(shown) + 1))
    return f"{numbered} (not named here, for they do not look like names; is the header line missing?)"


def _plain(column: str) -> str:
    return column.strip().lower().replace(" ", "_")


def _is_name(column: str) -> bool:
    from shared.privacy import phi  # it takes a while to load, and only a refusal needs it

    return _NAME.fullmatch(column) is not None and not phi.find(column)
