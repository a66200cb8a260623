"""Verifies one claimed adapter: what the serving engine computes under it, against what its trainer saw.

It knows neither Celery nor HTTP. It judges the numbers only, not whether the adapter is any good.
"""

import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, Field, ValidationError
from sqlalchemy import Connection, update
from sqlalchemy.exc import InterfaceError, OperationalError

from services.worker_infer.engines.base import AdapterSource
from services.worker_infer.engines.errors import AdapterUnavailable, EngineUnavailable
from services.worker_infer.model import Model
from shared.answers import record_end
from shared.audit import record
from shared.conversations import Conversations
from shared.db import Database
from shared.db.tables_training import adapters
from shared.errors import AdapterRefused, LeaseLost
from shared.jobs.leases import LeaseKeeper
from shared.jobs.lifecycle import EventKind, Kind
from shared.jobs.records import Job
from shared.jobs.store import JobStore
from shared.logs import where
from shared.queue import Bell
from shared.training.adapter_files import PROBE
from shared.training.adapters import Adapter, active, find
from shared.training.states import AdapterStatus

log = logging.getLogger(__name__)

#: How 4-bit weights are named, here and in a probe.
ROUNDED = "nf4"
#: An adapter that changes no log-likelihood by more than this changes nothing.
LEAST_CHANGE = 1e-3
#: Most that engine and trainer may differ by, in nats: both in float32, or one of them in fewer bits.
MOST_APART = {"float32": 0.02, "fewer bits": 0.25}
#: Where only one of them rounds the weights to 4 bits, single tokens differ by a nat and more. Then only the
#: mean over all tokens of the base counts, in nats.
MOST_APART_ROUNDED = 0.6
#: In any format: how far what the adapter changes may be from the change that its trainer saw, as a share of
#: that (an adapter that is ignored is off by 1).
MOST_OFF = 0.4

_Tokens = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=2, max_length=4096)]
_Numbers = list[Annotated[float, Field(le=0.01, allow_inf_nan=False)]]


class Probe(BaseModel):
    """What the trainer computed on a few prompts and answers of its own."""

    base_revision: str
    dtype: str
    token_ids: Annotated[list[_Tokens], Field(min_length=1, max_length=16)]
    #: log p(token j+1 | tokens up to j) in nats.
    logprobs_base: list[_Numbers]
    logprobs_adapter: list[_Numbers]

    @classmethod
    def read(cls, folder: Path) -> "Probe":
        """The folder's probe. Raises AdapterRefused."""
        refused = AdapterRefused("The adapter's probe.json is missing or malformed: train it again.")
        try:
            probe = cls.model_validate(json.loads((folder / PROBE).read_bytes()))
        except (OSError, ValueError, ValidationError) as error:
            raise refused from error
        lengths = [len(tokens) - 1 for tokens in probe.token_ids]
        if any(
            [len(row) for row in rows] != lengths for rows in (probe.logprobs_base, probe.logprobs_adapter)
        ):
            raise refused
        return probe


class Scorer(Protocol):
    """The part of an engine that is needed here."""

    def score(self, token_ids: list[int], adapter: str | None = None) -> list[float]:
        """See `Engine.score`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found; stored with the adapter."""

    ok: bool
    #: How the serving engine holds the base's weights.
    dtype: str
    #: What is wrong, for people; None when nothing is.
    reason: str | None
    #: Largest change of a log-likelihood by the adapter, and largest distance to the trainer's; in nats.
    max_diff_base: float | None = None
    max_diff_trainer: float | None = None

    def to_json(self, at: datetime) -> dict[str, Any]:
        """As it is stored."""
        return {**self.__dict__, "at": at.isoformat()}


def verify(engine: Scorer, probe: Probe, adapter: str, *, base_revision: str, dtype: str) -> Verification:
    """Load the adapter in the engine and compare what it computes.

    Raises AdapterUnavailable or EngineUnavailable.
    """
    if probe.base_revision != base_revision:
        return Verification(
            ok=False,
            dtype=dtype,
            reason="It was trained on another base model, or on another revision of it.",
        )
    base = [engine.score(tokens) for tokens in probe.token_ids]
    changed = [engine.score(tokens, adapter) for tokens in probe.token_ids]
    change, apart = _largest(changed, base), _largest(changed, probe.logprobs_adapter)
    if not math.isfinite(change + apart):
        return Verification(ok=False, dtype=dtype, reason="The model computes no finite numbers under it.")
    trainers = probe.dtype.removeprefix("torch.")
    rounding = statistics.fmean(_differences(base, probe.logprobs_base))
    one_rounds = (dtype == ROUNDED) != (trainers == ROUNDED)
    limit = MOST_APART["float32" if {dtype, trainers} == {"float32"} else "fewer bits"]
    base_apart = _largest(base, probe.logprobs_base)
    reason = None
    if (rounding > MOST_APART_ROUNDED) if one_rounds else (base_apart > limit):
        reason = "The base model here does not compute what the trainer's did: it is another one."
    elif change <= LEAST_CHANGE:
        reason = "It changes nothing: the model says the same with it as without."
    elif apart > limit and not one_rounds:
        reason = f"It does not compute what its trainer saw: {apart:.3g} nats apart, the limit is {limit}."
    else:
        seen = _changes(probe.logprobs_adapter, probe.logprobs_base)
        if one_rounds:
            rounding = 0.0
        # what the trainer saw holds its own rounding twice: its share of what the base is apart, whose square
        # is pi / 2 times that of its mean, as of anything normal
        rounded = [each for each in (trainers, dtype) if each != "float32"]
        share = 0.0 if trainers == "float32" else 1 / len(rounded)
        chance = 2 * share * (math.pi / 2) * rounding**2
        reason = _unlike(_changes(changed, base), seen, rounding=rounding, chance=chance)
    return Verification(
        ok=reason is None, dtype=dtype, reason=reason, max_diff_base=change, max_diff_trainer=apart
    )


def _unlike(here: list[float], seen: list[float], *, rounding: float, chance: float) -> str | None:
    """What is wrong with the change of the log-likelihoods here, beside the one that the trainer saw.

    `rounding` is how far the base's own are apart, the mean over all tokens of the absolute value. A change
    of that size hides in it token by token, but its strength shows over all of them: the least-squares factor
    of `here` over `seen` is 1 for the true adapter, and 0 for one that is ignored. `chance` is the square
    that rounding adds to each of `seen`, in the mean: it is no strength, and taken off.
    """
    size = max(statistics.fmean(map(abs, seen)), 1e-9)
    off = statistics.fmean([abs(a - b) for a, b in zip(here, seen, strict=True)]) / size
    if off <= MOST_OFF:
        return None
    if MOST_OFF * size >= 2 * rounding:  # with and without the adapter: no more than twice comes of rounding
        return (
            f"It does not compute what its trainer saw: its change of the model is off by {off:.0%} of what "
            f"its trainer saw, the limit is {MOST_OFF:.0%}."
        )
    products = sum(a * b for a, b in zip(here, seen, strict=True))
    squares = sum(b * b for b in seen) - len(seen) * chance
    if squares > 0 and abs(products / squares - 1) <= MOST_OFF:
        return None
    return (
        "It does not compute what its trainer saw, or changes too little for that to be told from rounding "
        f"({size:.2g} nats a token, where the base itself is {rounding:.2g} apart). Train it longer or at a "
        "higher learning rate, or train and serve it in float32."
    )


def _changes(adapted: list[list[float]], base: list[list[float]]) -> list[float]:
    return [
        a - b for left, right in zip(adapted, base, strict=True) for a, b in zip(left, right, strict=True)
    ]


def _differences(mine: list[list[float]], theirs: list[list[float]]) -> list[float]:
    return [abs(change) for change in _changes(mine, theirs)]


def _largest(mine: list[list[float]], theirs: list[list[float]]) -> float:
    """The largest absolute difference; NaN counts as infinite."""
    return max(math.inf if math.isnan(one) else one for one in _differences(mine, theirs))


class Verifier:
    """Verifies adapters, one per call of `verify_next`; safe to share between threads."""

    def __init__(
        self,
        *,
        worker_id: str,
        model: Model,
        source: AdapterSource,
        database: Database,
        jobs: JobStore,
        conversations: Conversations,
        bell: Bell,
        keeper: LeaseKeeper,
    ) -> None:
        self._worker_id = worker_id
        self._model = model
        self._source = source
        self._database = database
        self._jobs = jobs
        self._conversations = conversations
        self._bell = bell
        self._keeper = keeper
        self._actor = record.Actor(record.SYSTEM, worker_id)

    def verify_next(self) -> bool:
        """Claim the best queued job and bring it to an end, or back to the queue.

        Returns whether to look for another.
        """
        with self._database.write() as connection:
            job = self._jobs.claim(connection, Kind.VERIFY, self._worker_id)
        if job is None:
            return False
        again = True
        with self._keeper.holding(job.claim, lambda: None):
            try:
                self._verify(job)
            except EngineUnavailable:
                again = False
                self._end(job, lambda connection: self._jobs.drain(connection, job.claim))
                self._bell.work(job.kind, job.id)
            except AdapterUnavailable as error:
                self._retry(job, "adapter-unavailable", str(error))
            except (OperationalError, InterfaceError):
                raise
            except Exception as error:  # a bug must not leave a job running for ever
                log.error("job %s failed in %s", job.id, where(error))
                self._retry(
                    job, "internal", "Something went wrong inside MediChat; tell your admin the job's id."
                )
        self._bell.news(job.id)
        return again

    def _verify(self, job: Job) -> None:
        assert job.adapter_sha256 is not None
        with self._database.read() as connection:
            adapter = find(connection, job.adapter_sha256)
        if adapter.status is AdapterStatus.RECALLED:  # since this was asked for; it must not be loaded again
            self._fail(job, AdapterRefused.code, "The adapter was recalled, so it is not loaded.")
            return
        if adapter.base_model != self._model.name:
            self._retry(
                job,
                "other-base",
                f"The adapter changes the model {adapter.base_model}, and this worker serves another.",
            )
            return
        began = time.monotonic()
        found, files_sha256 = self._look(adapter)
        log.info("adapter %s: verified in %.1f s, ok %s", adapter.sha256, time.monotonic() - began, found.ok)

        def finish(connection: Connection) -> Job:
            values = {"model_id": self._model.model_id, "model_revision": self._model.revision}
            ended = self._jobs.finish(connection, job.claim, EventKind.SUCCEEDED, **values)
            kept: dict[str, Any] = {"verification": found.to_json(self._jobs.clock.now(connection))}
            if found.ok:  # else nothing was proven of what is stored
                kept["files_sha256"] = files_sha256
            connection.execute(update(adapters).where(adapters.c.sha256 == adapter.sha256).values(**kept))
            if not found.ok:
                record.append(
                    connection,
                    now=self._jobs.clock.now(connection),
                    actor=self._actor,
                    action="adapter.verification_failed",
                    object=f"adapter:{adapter.sha256}",
                    details={
                        "job": job.id,
                        "answering": active(connection, adapter.base_model) == adapter.sha256,
                    },
                )
            return ended

        self._end(job, finish)

    def _look(self, adapter: Adapter) -> tuple[Verification, str | None]:
        """What was found, and the hash of the configuration and probe that it was found of.

        Raises AdapterUnavailable when it may be loaded another time, and EngineUnavailable.
        """
        model, sha256 = self._model, adapter.sha256
        known = adapter.files_sha256
        try:
            with self._on_trial(sha256) if known is None else nullcontext(known) as files_sha256:
                probe = Probe.read(self._source.fetch(sha256).folder)
                found = verify(model.engine, probe, sha256, base_revision=model.revision, dtype=model.dtype)
            return found, files_sha256
        except AdapterRefused as error:
            return Verification(ok=False, dtype=model.dtype, reason=error.detail), None
        except AdapterUnavailable as error:
            if error.may_pass:
                raise
            return Verification(ok=False, dtype=model.dtype, reason=str(error)), None
        except OSError as error:
            raise AdapterUnavailable(
                "The adapter's files cannot be read; see that the storage can be reached.", may_pass=True
            ) from error

    @contextmanager
    def _on_trial(self, sha256: str) -> Iterator[str]:
        """See `AdapterSource.on_trial`; the engine holds nothing of before, and keeps nothing of this trial:
        its hash may never be kept, and the next one may find other files.
        """
        with self._source.on_trial(sha256) as files_sha256:
            self._model.engine.forget(sha256)
            try:
                yield files_sha256
            finally:
                self._model.engine.forget(sha256)

    def _fail(self, job: Job, error: str, detail: str) -> None:
        ended = {"error": error, "error_detail": detail}
        self._end(job, lambda connection: self._jobs.finish(connection, job.claim, EventKind.FAILED, **ended))

    def _retry(self, job: Job, error: str, detail: str) -> None:
        self._end(
            job, lambda connection: self._jobs.retry(connection, job.claim, error=error, error_detail=detail)
        )

    def _end(self, job: Job, move: Callable[[Connection], Job]) -> None:
        """Move the job and log its end, in one transaction. A lost lease is somebody else's end."""
        try:
            with self._database.write() as connection:
                moved = move(connection)
                now = self._jobs.clock.now(connection)
                record_end(connection, self._conversations, moved, actor=self._actor, now=now)
        except LeaseLost:
            log.warning("job %s belongs to another worker now; this one wrote nothing", job.id)
