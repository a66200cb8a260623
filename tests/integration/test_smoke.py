"""What `medichat smoke` checks and says: it goes red for each trace that is missing from the database."""

import json

import pytest
from sqlalchemy import Delete, Update, delete, text, update

from services import smoke
from services.local import StartFailed
from services.smoke import CheckFailed, check_rows
from shared.db import open_database
from shared.db.tables import audit_events, jobs, messages, released_sentences
from shared.jobs.lifecycle import State
from tests.support import Api, ask_async


@pytest.fixture
def answered(api: Api) -> Api:
    """One question was asked, by somebody who logged in, and answered."""
    ask_async(api.log_in())
    api.answer("Asthma is a disease of the airways.")
    check_rows(api.settings, answers=1)
    return api


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (update(jobs).values(state=State.FAILED), "0 jobs succeeded, not 1"),
        (delete(messages).where(messages.c.role == "assistant"), "1 messages are stored, not 2"),
        (delete(released_sentences), "no released sentences are stored"),
    ],
)
def test_a_missing_row_fails_the_check(answered: Api, lost: Update | Delete, said: str) -> None:
    with answered.gateway.database.write() as connection:
        connection.execute(lost)
    with pytest.raises(CheckFailed, match=said):
        check_rows(answered.settings, answers=1)


@pytest.mark.parametrize("action", ["session.started", "question.asked", "answer.given"])
def test_a_missing_event_fails_the_check(answered: Api, dialect: str, action: str) -> None:
    owner = open_database(answered.settings, owner=True)
    sqlite = dialect == "sqlite"
    trigger = "audit_events_no_delete" if sqlite else "audit_events_no_change ON audit_events"
    with owner.write() as connection:
        connection.execute(text(f"DROP TRIGGER {trigger}"))
        connection.execute(delete(audit_events).where(audit_events.c.action == action))
    owner.close()
    with pytest.raises(CheckFailed, match=action):
        check_rows(answered.settings, answers=1)


def test_an_answer_too_many_fails_the_check(answered: Api) -> None:
    ask_async(answered.log_in())
    answered.answer("It is a disease of the airways.")
    with pytest.raises(CheckFailed, match="2 jobs succeeded, not 1"):
        check_rows(answered.settings, answers=1)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CheckFailed("no sentence was streamed"), "no sentence was streamed"),
        (StartFailed("api did not start"), "api did not start"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (KeyError("what somebody wrote"), "KeyError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_whatever_goes_wrong_is_told_in_a_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    def fail(*_: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr(smoke, "Stack", fail)
    assert smoke.smoke() == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {"ok": False, "error": type(error).__name__}
    assert err == f"medichat smoke: {said}\n"


def test_a_setting_that_is_wrong_is_named_beside_the_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDICHAT_DEVICE", "abacus")
    assert smoke.smoke() == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {"ok": False, "error": "ValidationError"}
    assert err.startswith("medichat smoke: the setting MEDICHAT_DEVICE is wrong: ")
    assert "abacus" not in err
