"""The program that checks a proof without MediChat: what is proved, and every forgery that it refuses."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from shared.audit.check_proof import NotProved, check
from shared.audit.checkpoint import Signer
from shared.audit.merkle import inclusion_path, leaf_hash, root_of, tree_root
from shared.audit.proofs import FORMAT
from shared.ids import new_id

SIGNER = Signer(base64.b64encode(bytes(range(32))).decode())
CONVERSATION, JOB, SIZE, PLACES = new_id(), new_id(), 700, (131, 400, 690)


def event(action: str, object: str | None, **details: Any) -> bytes:
    told = {"action": action, "object": object, "details": details}
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode()


def make_proof(foreign: bytes | None = None) -> dict[str, Any]:
    """A proof of three events among 700; `foreign` takes the place of the last one."""
    own = [
        event("question.asked", f"job:{JOB}", conversation=CONVERSATION, message="m"),
        event("guard.stepped_in", f"job:{JOB}"),
        foreign or event("conversation.renamed", f"conversation:{CONVERSATION}"),
    ]
    leaves = [event("test.event", None, number=number) for number in range(SIZE)]
    for place, data in zip(PLACES, own, strict=True):
        leaves[place] = data
    hashes = [leaf_hash(data) for data in leaves]

    def nodes(level: int, number: int) -> bytes:
        return root_of(hashes[number << level : (number + 1) << level])

    now = datetime(2026, 11, 2, 9, 15, tzinfo=UTC)
    return {
        "format": FORMAT,
        "conversation": CONVERSATION,
        "key": str(SIGNER.verifier),
        "checkpoint": SIGNER.sign(size=SIZE, root=tree_root(SIZE, nodes), now=now),
        "entries": [
            {
                "index": place,
                "event": leaves[place].decode(),
                "path": [base64.b64encode(each).decode() for each in inclusion_path(place, SIZE, nodes)],
            }
            for place in PLACES
        ],
    }


def test_what_is_in_the_signed_log_is_proved() -> None:
    proved = check(make_proof(), str(SIGNER.verifier), CONVERSATION)
    assert [each["action"] for each in proved] == [
        "question.asked",
        "guard.stepped_in",
        "conversation.renamed",
    ]


@pytest.mark.parametrize(
    "foreign",
    [
        event("conversation.renamed", f"conversation:{new_id()}"),
        event("job.cancel_asked", f"job:{new_id()}"),
        event("question.asked", f"job:{new_id()}", conversation=new_id(), message="m"),
        event("test.event", None),
    ],
    ids=["another conversation", "a job of nobody", "a job of another", "nothing"],
)
def test_an_entry_of_the_log_that_is_not_of_the_conversation_is_refused(foreign: bytes) -> None:
    with pytest.raises(NotProved, match="not of this conversation"):
        check(make_proof(foreign), str(SIGNER.verifier))


def other_key(proof: dict[str, Any]) -> None:
    proof["key"] = str(Signer(base64.b64encode(bytes(32)).decode()).verifier)


def other_event(proof: dict[str, Any]) -> None:
    proof["entries"][0]["event"] = proof["entries"][0]["event"].replace("question.asked", "question.askEd")


def other_place(proof: dict[str, Any]) -> None:
    proof["entries"][0]["index"] -= 1


def short_path(proof: dict[str, Any]) -> None:
    proof["entries"][0]["path"].pop()


def wrong_path(proof: dict[str, Any]) -> None:
    proof["entries"][0]["path"][3] = base64.b64encode(bytes(32)).decode()


def twice(proof: dict[str, Any]) -> None:
    proof["entries"].insert(0, proof["entries"][0])


def none(proof: dict[str, Any]) -> None:
    proof["entries"] = []


def other_size(proof: dict[str, Any]) -> None:
    head, size, *rest = proof["checkpoint"].split("\n")
    proof["checkpoint"] = "\n".join([head, str(int(size) + 1), *rest])


def other_conversation(proof: dict[str, Any]) -> None:
    proof["conversation"] = new_id()


def no_object(proof: dict[str, Any]) -> None:
    proof["entries"] = [[]]


@pytest.mark.parametrize(
    "forge",
    [
        other_key,
        other_event,
        other_place,
        short_path,
        wrong_path,
        twice,
        none,
        other_size,
        other_conversation,
        no_object,
    ],
)
def test_a_forged_proof_is_refused(forge: Callable[[dict[str, Any]], None]) -> None:
    proof = make_proof()
    assert check(proof, str(SIGNER.verifier), CONVERSATION)
    forge(proof)
    with pytest.raises(NotProved):
        check(proof, str(SIGNER.verifier))


def test_a_proof_made_with_another_key_than_the_trusted_one_is_refused() -> None:
    trusted = Signer(base64.b64encode(bytes(32)).decode()).verifier
    with pytest.raises(NotProved, match="another key"):
        check(make_proof(), str(trusted))
