"""Makes text safe to show. It calls no one."""

import re
from datetime import datetime

#: Largest file that a page takes, in MB: it passes through the dashboard's memory.
UPLOAD_MB = 200

#: Would start a picture or link (whose address a browser fetches), a formula, HTML, a character by its name,
#: or take the power from a backslash that is put in front of one of these.
_ACTIVE = re.compile(r"([\\\[\]<$`&])")
_MARKUP = re.compile(r"([\\\[\]<$`&*_#>~|+\-!])")
#: Stands invisibly between two characters that would act together. Streamlit looks for addresses, emoji,
#: icons and arrows in the text that is left when escapes are resolved, so that no escape holds it off.
_JOINER = "\u2060"
#: Where an address (www.…, http://…, name@host), an emoji, an icon or a directive (:name) is cut in two.
_SHORTHAND = re.compile(
    r"(?<=www)(?=\.)|(?<=[-.+\w])(?=@)|(?<=:)(?=/|[^\W\d]|[-+]\d+:|[-\w]+:)", re.IGNORECASE
)
#: What Streamlit writes as one typographic sign.
_SIGN = re.compile(r"(?<!\S)([<>~-])(?=(?:->|[-=>])(?!\S))")


def answer_markdown(text: str) -> str:
    """A model's answer as Markdown: paragraphs, lists and emphasis work, all else is shown as written."""
    return _ACTIVE.sub(r"\\\1", _SHORTHAND.sub(_JOINER, text))


def plain_markdown(text: str) -> str:
    """What a person typed, as Markdown that shows exactly that."""
    cut = _SIGN.sub(rf"\1{_JOINER}", _SHORTHAND.sub(_JOINER, text))
    quoted = _MARKUP.sub(r"\\\1", cut)
    # a number and a full stop at the start of a line would become a list
    quoted = re.sub(r"(?m)^(\s*\d+)([.)])", r"\1\\\2", quoted)
    return quoted.replace("\n", "  \n")


def beginning(text: str, width: int) -> str:
    """One line of at most this many characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def words(code: str | None) -> str:
    """A code such as `false_cure` as a person would say it."""
    return (code or "").replace("_", " ").replace(".", " ").replace("-", " ").strip()


def moment(value: str | None) -> str:
    """An ISO 8601 moment as date and time, in UTC."""
    return "" if value is None else datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M:%S")


def seconds_between(start: str | None, end: str | None) -> float | None:
    """Seconds from one ISO 8601 moment to another."""
    if start is None or end is None:
        return None
    return round((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds(), 2)
