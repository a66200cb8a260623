"""Finds a word in files in whatever way it may have been written there. It knows no program's formats."""

import base64
import json
from pathlib import Path
from urllib.parse import quote


def ways_to_write(word: str) -> set[bytes]:
    """The word as text of each encoding, in JSON, in a URL, and within something that is base64."""
    spelt = {word, word.lower(), word.upper(), word.capitalize()}
    plain = {each.encode(code) for each in spelt for code in ("utf-8", "utf-16-le", "utf-16-be")}
    quoted = {form.encode() for each in spelt for form in (json.dumps(each)[1:-1], quote(each))}
    return plain | quoted | {form for each in spelt for form in _in_base64(each.encode())}


def _in_base64(data: bytes) -> set[bytes]:
    """What of it stands in base64 wherever it begins within three bytes, in either alphabet."""
    forms = set()
    for offset in range(3):
        first, last = -(-offset * 8 // 6), (offset + len(data)) * 8 // 6
        for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
            forms.add(encode(b"\0" * offset + data)[first:last])
    return forms


def traces(word: str, folder: Path) -> list[Path]:
    """The files below the folder that hold the word in any of these ways."""
    forms = ways_to_write(word)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in files if any(form in path.read_bytes() for form in forms)]
