"""Writes a person's data as JSON and as a page to read, and both as a zip that is sent while it is made.

It holds one page of rows at a time. The page has no scripts, and names no other host.
"""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from html import escape
from typing import Any

from shared.privacy.own_data import OwnData, Value, as_json

FILE_NAME = "medichat-my-data.zip"
#: Bytes that are collected before they are sent.
_PIECE_BYTES = 1 << 16
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>My data in MediChat</title>
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<style>
body { font: 16px/1.5 sans-serif; color: #1f2933; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
h2 { border-bottom: 1px solid #cbd2d9; margin-top: 3rem }
article { border: 1px solid #cbd2d9; border-radius: 6px; padding: 0 1rem 1rem; margin: 1rem 0 }
.user, .assistant { padding: .5rem .75rem; margin: .5rem 0; border-radius: 6px; background: #f1f5f8 }
.assistant { background: #e6f4f1 }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .25rem 0 }
dl { display: grid; grid-template-columns: 12rem 1fr; gap: 0 1rem; margin: .5rem 0; font-size: 14px }
dt { color: #52606d } dd { margin: 0; overflow-wrap: anywhere }
img { max-width: 100% }
.row { border-top: 1px solid #e4e7eb }
</style></head><body><h1>My data in MediChat</h1>
<p>What this installation keeps about you. <code>data.json</code> holds the same
for programs. Times are in UTC. The last part says what is left out.</p>
"""
_TITLES = {
    "account": "Account",
    "consents": "What you agreed to",
    "conversations": "Conversations",
    "jobs": "Answers and other work that you asked for",
    "api_keys": "API keys",
    "log_ins": "Log-ins",
    "saved_views": "Views of the log that you keep",
    "comparisons": "Answers that you compared",
    "reviews_by_you": "Reviews that you gave or began",
    "unmasked_readings_by_you": "Conversations that you might read unmasked",
    "reviews_of_your_answers": "How reviewers judged your answers",
    "data_made_from_your_conversations": "Data to train on that was made from your conversations",
    "unmasked_readings_of_your_conversations": "Who might read your conversations unmasked, and why",
    "events_by_you": "What the log says that you did",
    "events_about_you": "What the log says that others did with your data",
    "left_out": "What is left out on purpose",
}


def zipped(own: OwnData) -> Iterator[bytes]:
    """The zip, piece by piece."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, texts in (("data.json", to_json(own)), ("data.html", to_html(own))):
            with archive.open(name, "w", force_zip64=True) as file:
                for text in _together(texts):
                    file.write(text.encode())
                    if sink.waiting >= _PIECE_BYTES:
                        yield sink.take()
    yield sink.take()


def to_json(own: OwnData) -> Iterator[str]:
    """The data as one JSON object, piece by piece."""
    return _json(dict(own.sections()))


def to_html(own: OwnData) -> Iterator[str]:
    """The data as a page, piece by piece."""
    yield _HEAD
    for name, value in own.sections():
        yield f"<h2>{escape(_TITLES[name])}</h2>\n"
        if isinstance(value, Mapping):
            yield _facts(value)
            continue
        empty = True
        for item in value:
            empty = False
            yield from _conversation(item) if name == "conversations" else [_row(item)]
        if empty:
            yield "<p>Nothing.</p>\n"
    yield "</body></html>\n"


def _together(texts: Iterator[str]) -> Iterator[str]:
    """The same in fewer pieces: to hand over a word costs as much as a page."""
    waiting, length = [], 0
    for text in texts:
        waiting.append(text)
        length += len(text)
        if length >= _PIECE_BYTES:
            yield "".join(waiting)
            waiting, length = [], 0
    yield "".join(waiting)


class _Sink(io.RawIOBase):
    """Where the zip is written to, which cannot be gone back in; keeps what is not sent yet."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting = bytearray()

    @property
    def waiting(self) -> int:
        """How many bytes were written since the last `take`."""
        return len(self._waiting)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._waiting += data
        return len(data)

    def take(self) -> bytes:
        """What was written since the last time."""
        taken = bytes(self._waiting)
        self._waiting.clear()
        return taken


def _json(value: Value) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield "{"
        for number, (name, inner) in enumerate(value.items()):
            yield f"{',' if number else ''}\n{json.dumps(name)}: "
            yield from _json(inner)
        yield "}"
    elif isinstance(value, Iterator):
        yield "["
        for number, item in enumerate(value):
            yield ",\n" if number else "\n"
            yield from _json(item)
        yield "]"
    else:
        yield json.dumps(value, ensure_ascii=False, default=as_json)


def _conversation(item: Mapping[str, Value]) -> Iterator[str]:
    if item.get("erased"):
        yield f"<article><h3>Erased</h3>{_facts(item)}</article>\n"
        return
    lists = ("messages", "unfinished_answers")
    yield f"<article><h3>{escape(item['title'])}</h3>"
    yield _facts({name: value for name, value in item.items() if name not in ("title", *lists)})
    for message in item["messages"]:
        yield from _said(message)
    for answer in item["unfinished_answers"]:
        yield from _said({**answer, "role": "assistant", "not finished": True})
    yield "</article>\n"


def _said(message: Mapping[str, Value]) -> Iterator[str]:
    who = "You" if message["role"] == "user" else "MediChat"
    if given := message.get("given"):
        who = "Your program, as said before by " + ("MediChat" if given == "assistant" else f"the {given}")
    text = message["text"] if message["text"] is not None else "(cannot be read)"
    left_out = ("role", "text", "id", "job_id", "given", "images")
    facts = {name: value for name, value in message.items() if name not in left_out}
    yield f'<div class="{message["role"]}"><b>{who}</b><p class="text">{escape(text)}</p>'
    for image in message.get("images", ()):
        yield _image(image)
    yield f"{_facts(facts)}</div>\n"


def _image(image: Mapping[str, Value]) -> str:
    if image["png"] is None:
        return "<p>(a picture that cannot be read)</p>"
    return f'<p><img alt="A picture that you sent" src="data:image/png;base64,{image["png"]}"></p>'


def _row(item: Mapping[str, Value]) -> str:
    return f'<div class="row">{_facts(item)}</div>\n'


def _facts(facts: Mapping[str, Value]) -> str:
    shown = [(name, value) for name, value in facts.items() if value not in (None, [], {}, "")]
    pairs = (
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_told(value))}</dd>" for name, value in shown
    )
    return f"<dl>{''.join(pairs)}</dl>"


def _told(value: Value) -> str:
    if isinstance(value, datetime):
        return f"{value:%d %b %Y, %H:%M:%S}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')}: {_told(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return "; ".join(_told(inner) for inner in value)
    return str(value)
