"""A word that was left in a file is found, however it is written there."""

import base64
import json
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.traces import traces

WORD = "zymurgyphobié"


@pytest.mark.parametrize(
    "content",
    [
        f"a line with {WORD.upper()}".encode(),
        f"a line with {WORD}".encode("utf-16"),
        f"a line with {WORD}".encode("utf-16-be"),
        json.dumps({"query": f"What is {WORD}?"}).encode(),
        urlencode({"q": f"What is {WORD}?"}).encode(),
        *(base64.b64encode(b"x" * offset + f"{WORD} and more".encode()) for offset in range(6)),
        base64.urlsafe_b64encode(f"xx?{WORD}".encode()),
    ],
)
def test_a_word_is_found_in_whatever_way_it_was_left(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/file").write_bytes(b"\0\xff" + content)
    (tmp_path / "other").write_bytes(b"nothing of it")
    assert traces(WORD, tmp_path) == [tmp_path / "below/file"]
