"""The program that judges the newest answers again: `python -m services.worker_train.replay --replay ID`.

It reads what the model wrote, also what the guard replaced, judges it under the replay's version, and
compares with the verdicts of then. It changes nothing; no text leaves it, only numbers, ids and categories.
It has no model: what the judge by a language model decided then cannot be decided again, and is left out.
"""

import argparse
import signal
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from services.worker_train import child
from services.worker_train.child import Exit, Refused
from shared.conversations import Conversations
from shared.db import open_database
from shared.db.tables import jobs
from shared.errors import NotFound
from shared.guard import Guard
from shared.guard.gate import ADDED, CONTEXT_CHARS
from shared.guard.layers import JUDGE_LAYER
from shared.guard.verdict import Action, Audience, Side
from shared.jobs.lifecycle import Kind, State
from shared.policies.live import compile_version
from shared.policies.replays import find
from shared.privacy.envelope import CannotDecrypt
from shared.privacy.master_keys import open_envelope
from shared.settings import Settings, load_settings

_PROGRESS_S = 1.0
#: Changes that are kept to be looked at; all are counted.
MOST_CHANGES = 2000


@dataclass(frozen=True)
class Judged:
    """What was, or is, made of one text."""

    action: Action
    category: str | None

    @property
    def allowed(self) -> bool:
        """Whether the text itself is shown or answered."""
        return self.action.shows


@dataclass
class Tally:
    """What a replay found."""

    answers: int = 0
    sentences: int = 0
    questions: int = 0
    #: Answers whose texts were erased.
    erased: int = 0
    #: Sentences left out, for the judge by a language model decided on them then.
    by_model: int = 0
    #: By category: judged otherwise, stopped now and shown then, shown now and stopped then.
    changed: Counter[str] = field(default_factory=Counter)
    newly_stopped: Counter[str] = field(default_factory=Counter)
    newly_released: Counter[str] = field(default_factory=Counter)
    changes: list[dict[str, Any]] = field(default_factory=list)

    def compare(self, job_id: str, side: Side, seq: int, before: Judged, after: Judged) -> None:
        """Count one text that was judged then and is judged now."""
        if before == after:
            return
        category = str(after.category or before.category or "not checked")
        self.changed[category] += 1
        if before.allowed and not after.allowed:
            self.newly_stopped[category] += 1
        elif after.allowed and not before.allowed:
            self.newly_released[category] += 1
        if len(self.changes) < MOST_CHANGES:
            self.changes.append(
                {
                    "job": job_id,
                    "side": side,
                    "seq": seq,
                    "before": [before.action, before.category],
                    "after": [after.action, after.category],
                }
            )

    def counts(self) -> dict[str, Any]:
        """As they are stored."""
        return {
            "answers": self.answers,
            "sentences": self.sentences,
            "questions": self.questions,
            "erased": self.erased,
            "by_model": self.by_model,
            "changed": dict(self.changed),
            "newly_stopped": dict(self.newly_stopped),
            "newly_released": dict(self.newly_released),
        }


def main() -> None:
    """Replay and tell the supervisor; the exit status is one of `child.Exit`."""
    parser = argparse.ArgumentParser(description="Judge answers again under another policy.")
    parser.add_argument("--replay", required=True)
    replay_id = parser.parse_args().replay
    child.follow_parent()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        tally = replay(load_settings(), replay_id)
    except KeyboardInterrupt:
        child.stop(
            Exit.DRAINED, "drained", "The replay was told to stop; it starts again from the beginning."
        )
    except Refused as refusal:
        child.stop(Exit.REFUSED, refusal.reason, refusal.detail)
    child.emit("done", counts=tally.counts(), changes=tally.changes)


def replay(settings: Settings, replay_id: str) -> Tally:
    """Judge the answers that a replay of the database asks for. Raises Refused."""
    conversations = Conversations(open_envelope(settings))
    database = open_database(settings, pool_size=1)
    with closing(database), database.read() as connection:
        try:
            asked = find(connection, replay_id)
            guard = compile_version(connection, asked.version)
        except NotFound as error:
            raise Refused(error.code, error.detail) from None
        except ValueError:
            raise Refused("policy-refused", "This version cannot be compiled by this release.") from None
        return _judge_again(connection, conversations, guard, asked.answers)


def _judge_again(connection: Connection, talk: Conversations, guard: Guard, number: int) -> Tally:
    newest = connection.execute(
        select(jobs.c.id, jobs.c.conversation_id, jobs.c.question_id, jobs.c.audience)
        .where(jobs.c.kind == Kind.INFER, jobs.c.state == State.SUCCEEDED)
        .order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
        .limit(number)
    ).all()
    tally, told = Tally(), time.monotonic()
    for row in newest:
        try:
            _judge_answer(connection, talk, guard, row, tally)
            tally.answers += 1
        except CannotDecrypt:
            tally.erased += 1
        if time.monotonic() - told >= _PROGRESS_S:
            told = time.monotonic()
            child.emit("progress", done=tally.answers + tally.erased, total=len(newest), what="answers")
    return tally


def _judge_answer(connection: Connection, talk: Conversations, guard: Guard, job: Any, tally: Tally) -> None:
    """Raises CannotDecrypt."""
    audience = Audience(job.audience)
    key = talk.key(connection, job.conversation_id)
    said = talk.read_reviewed(connection, job.id, key=key)
    # whether the guard wrote this answer, and no model
    at_once = bool(said) and said[0].action in (Action.CRISIS, Action.REFUSE)
    before = Judged(said[0].action, said[0].category) if at_once else Judged(Action.ALLOW, None)
    verdict = guard.screen_question(talk.read_text(connection, job.question_id, key=key), audience)
    tally.questions += 1
    tally.compare(job.id, Side.QUESTION, 0, before, Judged(verdict.action, verdict.category))
    context = ""
    for sentence in () if at_once else said:
        if sentence.source in ADDED:
            continue
        if sentence.layer == JUDGE_LAYER:
            tally.by_model += 1
        else:
            text = sentence.text if sentence.suppressed is None else sentence.suppressed
            verdict = guard.judge_answer(text, context, audience)
            tally.sentences += 1
            tally.compare(
                job.id,
                Side.ANSWER,
                sentence.seq,
                Judged(sentence.action, sentence.category),
                Judged(verdict.action, verdict.category),
            )
        context = (context + sentence.text)[-CONTEXT_CHARS:]


if __name__ == "__main__":
    main()
