"""Writes what the check of a dataset found, and its rows, as lines to read at a terminal. It asks nobody."""

from collections.abc import Iterator, Sequence

from services.cli_client import Json

#: Rows, or lines of a finding, that are named; `--json` has all that the report holds.
_NAMED = 20


def told(report: Json) -> list[str]:
    """The figures of a report, then its findings, a line each; no row's text."""
    return [
        *_read_as(report),
        *_figures(report),
        *_people(report["phi"]),
        *_dangerous(report["dangerous"]),
        *_foreign(report),
        *_dropped(report["dropped"]),
        *(f"note: {note}" for note in report["notes"]),
    ]


def row_told(row: Json) -> Iterator[str]:
    """A row of a dataset: its number, what is to be known of it, and what each side says."""
    facts = [f"row {row['id']}"]
    if row["line"] is not None:
        facts.append(f"line {row['line']}")
    facts += [f"{name} {_shown(row[name])}" for name in ("reason", "group", "image") if row[name]]
    yield f"-- {', '.join(facts)}"
    for message in row["messages"]:
        yield f"{message['role']}: {_text(message['content'])}"


def _read_as(report: Json) -> Iterator[str]:
    mapping = report["mapping"]
    columns = ", ".join(f"{part} ← {_shown(column)}" for part, column in mapping.items())
    yield f"read as: {_words(report['shape'])}, from {report['format']}: {columns}"
    unused = [_shown(column) for column in report["columns"] if column not in mapping.values()]
    if unused:
        yield f"columns not used: {', '.join(unused)}"


def _figures(report: Json) -> Iterator[str]:
    """What is a number, and counts by name."""
    for name, value in report.items():
        if isinstance(value, int | float):
            yield f"{_words(name)}: {value}"
        elif name in ("rows_out", "languages"):
            yield f"{_words(name)}: {', '.join(f'{each} {count}' for each, count in value.items())}"


def _people(phi: Json) -> Iterator[str]:
    if phi["rows"]:
        kinds = ", ".join(f"{kind} {count}" for kind, count in phi["by_type"].items())
        yield f"phi ({phi['policy']}): {kinds}; in {phi['rows']} rows; {_lines(phi['lines'], phi['rows'])}"


def _dangerous(dangerous: Sequence[Json]) -> Iterator[str]:
    for each in dangerous:
        count = each["count"]
        yield f"dangerous: {_words(each['category'])} {count}; {_lines(each['lines'], count)}"


def _foreign(report: Json) -> Iterator[str]:
    others = {code: rows for code, rows in report["languages"].items() if code not in ("en", "und")}
    if others:
        named = ", ".join(f"{code} {rows}" for code, rows in others.items())
        yield f"not English: {named}; {_lines(report['not_english_lines'], sum(others.values()))}"


def _dropped(dropped: Sequence[Json]) -> Iterator[str]:
    """How many rows for which reason, then the first of them, by line."""
    if not dropped:
        return
    yield f"dropped: {', '.join(map(_counted, dropped))}"
    rows = sorted(
        (row["line"], _words(each["reason"]), row["advice"]) for each in dropped for row in each["rows"]
    )
    for line, reason, advice in rows[:_NAMED]:
        yield f"line {line}: {reason}: {advice}"
    more = sum(each["count"] for each in dropped) - len(rows[:_NAMED])
    if more:
        yield f"and {more} more; `medichat dataset show ID --json` prints the whole report"


def _counted(each: Json) -> str:
    """Rows left out for one reason, and how many of them the report names where it names not all, as one of
    an earlier release does.
    """
    listed, count = len(each["rows"]), each["count"]
    named_all = listed == count or "all_lines" in each
    few = "" if named_all else f" (the first {listed} of {count} by line in the report)"
    return f"{_words(each['reason'])} {count}{few}"


def _lines(lines: Sequence[int], count: int) -> str:
    named = f"lines {', '.join(map(str, lines[:_NAMED]))}"
    return named if count <= _NAMED else f"{named} and {count - len(lines[:_NAMED])} more"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shown(name: str) -> str:
    """A name, from a file that anybody may have written, without what would steer a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in name)


def _text(said: str) -> str:
    """What may have several lines; those after the first are indented."""
    return "\n  ".join(_shown(line.replace("\t", "  ")) for line in said.splitlines())
