"""Signed checkpoints: the public example of the format, and what is refused."""

import base64
from datetime import UTC, datetime

import pytest

from shared.audit.checkpoint import BadCheckpoint, Signer, Verifier

# the example of golang.org/x/mod/sumdb/note
KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKv"
    "qfqdngotpRZb6KE6RyyBwJnAM=\n"
)
NOW = datetime(2026, 11, 2, 9, 15, tzinfo=UTC)
ROOT = bytes(range(32))


def signer(number: int = 1) -> Signer:
    return Signer(base64.b64encode(bytes([number]) * 32).decode())


def test_the_public_example_of_a_signed_note_is_read() -> None:
    verifier = Verifier.from_text(KEY)
    assert str(verifier) == KEY
    assert verifier.open(NOTE).endswith("what your problem is.\n")


def test_a_checkpoint_says_what_was_signed() -> None:
    note = signer().sign(size=7, root=ROOT, now=NOW)
    assert note.splitlines()[:4] == [
        signer().origin,
        "7",
        base64.b64encode(ROOT).decode(),
        "signed 2026-11-02T09:15:00+00:00",
    ]
    read = signer().verifier.read(note)
    assert (read.size, read.root, read.signed_at) == (7, ROOT, NOW)


@pytest.mark.parametrize("at", range(4))
def test_a_changed_line_is_no_longer_signed(at: int) -> None:
    lines = signer().sign(size=7, root=ROOT, now=NOW).split("\n")
    lines[at] = {1: "8", 2: base64.b64encode(bytes(32)).decode()}.get(at, lines[at] + "x")
    with pytest.raises(BadCheckpoint):
        signer().verifier.read("\n".join(lines))


def test_another_key_under_the_same_name_is_refused() -> None:
    forged = Verifier(signer(1).origin, b"\x02" * 32)
    with pytest.raises(BadCheckpoint, match="not signed by"):
        forged.read(signer(1).sign(size=7, root=ROOT, now=NOW))


def test_a_signature_of_another_beside_it_does_no_harm() -> None:
    note = signer().sign(size=7, root=ROOT, now=NOW) + "— witness.example AAAAAAAA\n"
    assert signer().verifier.read(note).size == 7


@pytest.mark.parametrize(
    "text", ["", "x", "\n\n", "a\n1\nx\n\n— a b\n", "medichat\n-1\nAAAA\n\n", "— a b\n\n— a b\n"]
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(BadCheckpoint):
        signer().verifier.read(text)


@pytest.mark.parametrize("secret", ["", "x", base64.b64encode(b"short").decode()])
def test_a_key_of_another_length_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="audit key"):
        Signer(secret)


@pytest.mark.parametrize("text", ["", "a+b+c", KEY[:-4] + "AAAA", KEY.replace("c74f", "c75f")])
def test_a_key_that_does_not_fit_its_name_is_refused(text: str) -> None:
    with pytest.raises(BadCheckpoint):
        Verifier.from_text(text)
