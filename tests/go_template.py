"""As much of Go's text/template as a template of Ollama's needs; what it does not know raises KeyError."""

import re
from collections import deque
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

_WORD = re.compile(r'"[^"]*"|[()]|[^\s()]+')
_FUNCTIONS = MappingProxyType(
    {
        "eq": lambda one, other: one == other,
        "ne": lambda one, other: one != other,
        "and": lambda *all_of: all(all_of),
        "or": lambda *any_of: any(any_of),
        "not": lambda value: not value,
        "len": len,
        "slice": lambda items, start: items[start:],
    }
)


class Branch(NamedTuple):
    """`if` or `range`: its condition or sequence, and what is rendered or else rendered."""

    action: str
    body: list[Any]
    otherwise: list[Any]


class Action(str):
    """What stands in braces; anything else is text."""


def render(template: str, **data: Any) -> str:
    """The template's text for the data."""
    nodes, _ = _parse(_pieces(template))
    out: list[str] = []
    _run(nodes, {"$": data}, data, out)
    return "".join(out)


def _pieces(template: str) -> "deque[str]":
    trimmed = re.sub(r"-\}\}\s*", "}}", re.sub(r"\s*\{\{-", "{{", template))
    parts = re.split(r"\{\{(.*?)\}\}", trimmed)
    return deque(Action(part.strip()) if number % 2 else part for number, part in enumerate(parts))


def _parse(pieces: "deque[str]") -> tuple[list[Any], str]:
    """The nodes up to the `end` or `else` of this block, and which it was."""
    nodes: list[Any] = []
    while pieces:
        piece = pieces.popleft()
        word = piece.split(maxsplit=1)[0] if isinstance(piece, Action) else ""
        if word in ("end", "else"):
            return nodes, piece
        nodes.append(_branch(piece, pieces) if word in ("if", "range") else piece)
    return nodes, "end"


def _branch(action: str, pieces: "deque[str]") -> Branch:
    body, closing = _parse(pieces)
    if closing == "end":
        return Branch(action, body, [])
    if closing == "else":
        return Branch(action, body, _parse(pieces)[0])
    return Branch(action, body, [_branch(closing.removeprefix("else "), pieces)])


def _run(nodes: list[Any], names: dict[str, Any], dot: Any, out: list[str]) -> None:
    for node in nodes:
        if isinstance(node, Branch):
            _run_branch(node, names, dot, out)
        elif not isinstance(node, Action):
            out.append(node)
        elif assigned := re.fullmatch(r"(\$\w+) :?= (.*)", node):
            names[assigned[1]] = _value(assigned[2], names, dot)
        else:
            out.append(str(_value(node, names, dot)))


def _run_branch(node: Branch, names: dict[str, Any], dot: Any, out: list[str]) -> None:
    word, rest = node.action.split(maxsplit=1)
    if word == "if":
        _run(node.body if _value(rest, names, dot) else node.otherwise, names, dot, out)
        return
    index, item, items = re.fullmatch(r"(\$\w+), (\$\w+) := (.*)", rest).groups()  # type: ignore[union-attr]
    for number, each in enumerate(_value(items, names, dot)):
        names |= {index: number, item: each}
        _run(node.body, names, each, out)


def _value(expression: str, names: dict[str, Any], dot: Any) -> Any:
    words = deque(_WORD.findall(expression))
    return _call(words, names, dot)


def _call(words: "deque[str]", names: dict[str, Any], dot: Any) -> Any:
    """A value, or a function with its arguments, up to the end or a closing bracket."""
    values: list[Any] = []
    function: Callable[..., Any] | None = None
    while words and (word := words.popleft()) != ")":
        if word == "(":
            values.append(_call(words, names, dot))
        elif word[0] in '$."' or word.isdigit():
            values.append(_operand(word, names, dot))
        else:
            function = _FUNCTIONS[word]
    return function(*values) if function else values[0]


def _operand(word: str, names: dict[str, Any], dot: Any) -> Any:
    if word[0] == '"':
        return word[1:-1]
    if word.isdigit():
        return int(word)
    start, *fields = word.split(".")
    value = names[start] if start else dot
    for field in fields:
        value = value[field]
    return value


def as_ollama_says(template: str, messages: Sequence[dict[str, str]]) -> str:
    """The prompt that Ollama makes: what the system says comes apart from the turns, and among them too."""
    return render(
        template,
        System="\n\n".join(turn["content"] for turn in messages if turn["role"] == "system"),
        Messages=[{"Role": turn["role"], "Content": turn["content"]} for turn in messages],
    )
