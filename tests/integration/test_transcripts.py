"""A logged conversation as a reviewer reads it."""

from datetime import UTC, datetime
from typing import Any

import pytest

from shared.conversations import StoredVerdict
from shared.db.tables import data_keys, messages
from shared.errors import NotFound
from shared.guard.verdict import Action, Category, Severity, Side, Verdict
from shared.ids import new_id
from shared.jobs.lifecycle import EventKind, State
from shared.privacy.masking import mask_passages
from shared.transcripts import Transcript, read_transcript
from tests.support import Api, ask_async

DANGER = Verdict(
    side=Side.ANSWER,
    action=Action.REPLACE,
    category=Category.DOSING,
    severity=Severity.HIGH,
    layer="rules",
    source="dosing.as_much",
    score=0.9,
)


@pytest.fixture
def dialect() -> str:
    """Its statements mean the same to every database."""
    return "sqlite"


def read(api: Api, conversation_id: str, *, mask: bool = False) -> Transcript:
    with api.gateway.database.read() as connection:
        return read_transcript(connection, api.gateway.conversations, conversation_id, mask=mask)


def guarded(api: Api, question: str = "How much may I take?") -> str:
    """A conversation whose answer had a sentence replaced; returns its id."""
    asked = ask_async(api.log_in(), question)
    job = api.claim()
    api.release(job, "Pain can be treated. ", 1)
    api.release(job, "Ask a pharmacist. ", 2, verdict=DANGER, suppressed="Take what Mr John Miller takes. ")
    api.finish(job, model_id="demo", model_revision="r1", prompt_version="p1")
    return str(asked["conversation_id"])


def test_an_unknown_conversation_is_not_found(api: Api) -> None:
    with pytest.raises(NotFound):
        read(api, new_id())


def test_an_answer_says_what_wrote_it_and_bears_the_verdicts_in_place(api: Api) -> None:
    conversation = guarded(api)
    transcript = read(api, conversation)
    question, answer = transcript.turns
    assert (transcript.title, transcript.erased, transcript.masked) == ("How much may I take?", False, False)
    assert (question.role, question.text, question.origin) == ("user", "How much may I take?", None)
    assert answer.text == "Pain can be treated. Ask a pharmacist."
    assert answer.origin is not None
    assert (answer.origin.state, answer.origin.model_id, answer.origin.model_revision) == (
        State.SUCCEEDED,
        "demo",
        "r1",
    )
    allowed, replaced = answer.sentences
    assert (allowed.action, allowed.verdict, allowed.suppressed) == (Action.ALLOW, None, None)
    assert replaced.suppressed == "Take what Mr John Miller takes. "
    assert replaced.verdict is not None
    assert (replaced.verdict.category, replaced.verdict.source, replaced.verdict.score) == (
        "dosing",
        "dosing.as_much",
        0.9,
    )


def test_a_verdict_about_the_question_stands_with_the_question(api: Api) -> None:
    asked = api.log_in().post("/predict", json={"query": "I want to kill myself."}).json()
    question, answer = read(api, asked["conversation_id"]).turns
    assert [(each.side, each.category) for each in question.verdicts] == [(Side.QUESTION, "crisis")]
    assert answer.sentences[0].action is Action.CRISIS


def test_what_a_shadow_policy_said_is_no_part_of_it(api: Api) -> None:
    conversation = guarded(api)
    job_id = read(api, conversation).turns[1].job_id
    assert job_id is not None
    with api.gateway.database.write() as connection:
        api.gateway.conversations.store_verdict(
            connection,
            job_id=job_id,
            stored=StoredVerdict(verdict=DANGER, policy_version="s", text="x", shadow_of=1),
            now=datetime.now(UTC),
        )
    _, answer = read(api, conversation).turns
    assert answer.sentences[0].verdict is None
    assert not answer.verdicts


def test_a_former_answer_is_there_and_marked_as_replaced(api: Api) -> None:
    client = api.log_in()
    asked = ask_async(client)
    api.answer("The first answer.")
    client.post(f"/v1/conversations/{asked['conversation_id']}/regenerate").raise_for_status()
    api.answer("The second answer.")
    turns = read(api, asked["conversation_id"]).turns
    assert [(turn.text, turn.replaced) for turn in turns] == [
        ("What is asthma?", False),
        ("The first answer.", True),
        ("The second answer.", False),
    ]


def test_what_was_released_before_an_answer_failed_is_there_though_no_message_holds_it(api: Api) -> None:
    client = api.log_in()
    asked = ask_async(client)
    api.answer("The first answer.")
    client.post(f"/v1/conversations/{asked['conversation_id']}/regenerate").raise_for_status()
    job = api.claim()
    api.release(job, "Half of the second")
    api.finish(job, EventKind.FAILED, error="out-of-memory", error_detail="Try later.")
    last = read(api, asked["conversation_id"]).turns[-1]
    assert (last.message_id, last.text) == (None, "Half of the second")
    assert last.origin is not None
    assert (last.origin.state, last.origin.error) == (State.FAILED, "out-of-memory")


def test_after_the_key_was_destroyed_the_turns_are_there_without_a_text(api: Api) -> None:
    conversation = guarded(api)
    api.set(data_keys, data_keys.c.owner_id == conversation, wrapped_key=None)
    for mask in (False, True):
        transcript = read(api, conversation, mask=mask)
        assert transcript.erased
        assert [turn.role for turn in transcript.turns] == ["user", "assistant"]
        assert not any(texts_of(transcript))
        verdict = transcript.turns[1].sentences[1].verdict
        assert verdict is not None
        assert verdict.category == "dosing"


def test_a_text_that_was_tampered_with_leaves_the_others_readable(api: Api) -> None:
    conversation = guarded(api)
    api.set(messages, messages.c.role == "user", ciphertext=b"not what it was")
    question, answer = read(api, conversation).turns
    assert question.text is None
    assert answer.text == "Pain can be treated. Ask a pharmacist."


def test_masking_takes_identifiers_out_of_every_text_and_counts_them_by_turn(api: Api) -> None:
    conversation = guarded(api, "I am Maria Gonzalez, born 12/03/1950, MRN 4456123. How much may I take?")
    transcript = read(api, conversation, mask=True)
    question, answer = transcript.turns
    assert question.text == "I am [NAME], born [DATE], MRN [RECORD_NUMBER]. How much may I take?"
    assert question.masked == {"NAME": 1, "DATE": 1, "RECORD_NUMBER": 1}
    assert answer.sentences[1].suppressed == "Take what Mr [NAME] takes. "
    assert answer.masked == {"NAME": 1}
    assert transcript.title == question.text
    assert not any(word in text for text in texts_of(transcript) for word in ("Maria", "Miller", "4456123"))


def test_a_name_that_the_title_cuts_through_is_masked_too(api: Api) -> None:
    question = f"{'Please tell me quickly what helps. ' * 2}I am Maria Gonzalez."
    conversation = guarded(api, question)
    assert "Mari…" in str(read(api, conversation).title)
    assert "Mari" not in str(read(api, conversation, mask=True).title)


def test_a_name_recognised_once_is_masked_in_every_passage() -> None:
    (first,), (second, third) = mask_passages([["Mrs Maria Gonzalez asks."], ["Gonzalez may ", "ask Maria."]])
    assert first.text == "Mrs [NAME] asks."
    assert (second.text, third.text) == ("[NAME] may ", "ask [NAME].")


def test_an_identifier_across_a_border_of_pieces_is_masked_on_both_sides() -> None:
    ((first, second),) = mask_passages([["I saw Mrs Maria ", "Gonzalez today."]])
    assert "Maria" not in first.text
    assert "Gonzalez" not in second.text


def texts_of(transcript: Transcript) -> list[str]:
    """Every text of it."""
    found: list[Any] = [transcript.title]
    for turn in transcript.turns:
        found += [turn.text, *(each.text for each in turn.sentences)]
        found += [each.suppressed for each in turn.sentences]
    return [text for text in found if text]
