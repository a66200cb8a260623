"""The adapters in the database: which there are, which one answers, and how that came. It loads none.

Every method runs in the caller's transaction, and what is done is in the audit log with it. An act that is
refused is not, for that transaction is rolled back: the caller logs it in another. Reasons that people wrote
stay in their columns; the log holds a fingerprint of each (`reason_hmac`), so that one that was changed
afterwards can be told.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, select, update
from sqlalchemy.exc import IntegrityError

from shared.audit import record
from shared.clock import Clock
from shared.db.rows import put
from shared.db.tables import data_keys, jobs
from shared.db.tables_training import adapters, datasets, deployments, evaluations
from shared.errors import AdapterConflict, AdapterRecalled, AdapterRefused, NotFound
from shared.jobs.lifecycle import Kind
from shared.privacy.envelope import Envelope
from shared.registration import served_revisions
from shared.training.states import GONE, AdapterStatus, DeploymentKind, before_now, may_become

# made once: building a statement costs more than sending it
_ACTIVE = (
    select(deployments.c.adapter_sha256)
    .where(deployments.c.base_model == bindparam("base_model"))
    .order_by(deployments.c.seq.desc())
    .limit(1)
)

_GONE = select(datasets.c.id).where(datasets.c.id == bindparam("dataset_id"), datasets.c.error.in_(GONE))

#: A recall, which changes the row, waits for whoever holds it so; many answers hold it at once.
_HELD_STATUS = (
    select(adapters.c.status).where(adapters.c.sha256 == bindparam("sha256")).with_for_update(read=True)
)

#: All in one order, so that no two who change what answers hold what the other waits for.
_HELD = (
    select(adapters.c.sha256)
    .where(adapters.c.base_model == bindparam("base_model"))
    .order_by(adapters.c.sha256)
    .with_for_update(key_share=True)
)

#: How often a version is chosen: each time that it is taken, another run of the name has just ended.
_NUMBERINGS = 10

_NO_ADAPTER = "There is no adapter of this name; GET /v1/adapters lists them."


@dataclass(frozen=True, kw_only=True)
class NewAdapter:
    """What a training run made."""

    sha256: str
    #: Of its configuration and probe; see `adapter_files.hash_files`.
    files_sha256: str
    #: Versions are counted by name.
    name: str
    run_id: str
    dataset_id: str
    base_model: str
    base_revision: str
    bytes: int
    #: The model card, Markdown.
    card: str


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter's row."""

    sha256: str
    files_sha256: str | None
    name: str
    version: int
    run_id: str
    dataset_id: str
    base_model: str
    base_revision: str
    status: AdapterStatus
    bytes: int
    verify_job_id: str | None
    verification: dict[str, Any] | None
    recalled_reason: str | None
    created_at: datetime
    status_at: datetime

    @classmethod
    def from_row(cls, row: Any) -> "Adapter":
        """Build from a row of `adapters`."""
        values = {field.name: getattr(row, field.name) for field in fields(cls)}
        return cls(**{**values, "status": AdapterStatus(values["status"])})


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What the newest evaluation of an adapter on its own held-out rows came to."""

    evaluation_id: str
    passed: bool
    #: Checks that failed, each with `figure`, `limit`, `value` and `message`; see shared/training/gate.py.
    failures: list[dict[str, Any]]

    def describe(self) -> str:
        """Which figures failed, and by how much."""
        return " ".join(failure["message"] for failure in self.failures)


def active(connection: Connection, base_model: str) -> str | None:
    """The adapter that answers for this base model; None: the base model alone."""
    found: str | None = connection.execute(_ACTIVE, {"base_model": base_model}).scalar_one_or_none()
    return found


def find(connection: Connection, sha256: str) -> Adapter:
    """One adapter. Raises NotFound."""
    row = connection.execute(select(adapters).where(adapters.c.sha256 == sha256)).one_or_none()
    if row is None:
        raise NotFound(_NO_ADAPTER)
    return Adapter.from_row(row)


def files_hash(connection: Connection, sha256: str) -> str:
    """What an adapter's configuration and probe must hash to; see `adapter_files.check_adapter`.

    An adapter that was registered before this was kept has no hash until it is verified (again): only then
    is one taken of what the storage holds, beside the proof that it computes what its trainer saw. Nothing
    loads it before. Raises NotFound, or AdapterRefused.
    """
    known = find(connection, sha256).files_sha256
    if known is None:
        raise AdapterRefused(
            "Nobody can tell whether this adapter's configuration is still the one it was trained with: it "
            "was registered by an earlier release. Verify it again."
        )
    return known


def card_of(connection: Connection, sha256: str) -> str:
    """The model card that an adapter was registered with; nothing proves that the one beside its files is
    still the same. Raises NotFound.
    """
    card: str | None = connection.execute(
        select(adapters.c.card).where(adapters.c.sha256 == sha256)
    ).scalar_one_or_none()
    if card is None:
        raise NotFound(_NO_ADAPTER)
    return card


def check_usable(connection: Connection, sha256: str, base_model: str) -> Adapter:
    """The adapter, if it may answer for this base model. Raises NotFound or AdapterRefused."""
    adapter = find(connection, sha256)
    if adapter.status is AdapterStatus.RECALLED:
        raise AdapterRefused("This adapter was recalled and must not answer again; name another.")
    if adapter.base_model != base_model:
        raise AdapterRefused(
            f"This adapter changes the model {adapter.base_model}, and {base_model} is served; name another."
        )
    if adapter.verification is not None and not adapter.verification.get("ok"):
        raise AdapterRefused("The serving engine could not verify this adapter; train it again.")
    return adapter


def check_released(connection: Connection, sha256: str, base_model: str) -> Adapter:
    """The adapter, if everybody may be answered with it. Raises NotFound or AdapterRefused.

    A candidate answers in comparisons only: nobody has judged it yet.
    """
    adapter = check_usable(connection, sha256, base_model)
    if adapter.status is AdapterStatus.CANDIDATE:
        raise AdapterRefused("This adapter is a candidate that was not promoted yet; name another.")
    return adapter


def hold_unrecalled(connection: Connection, sha256: str) -> None:
    """Keep the adapter from being recalled until this transaction ends, so that nothing which it wrote is
    committed after its recall. Raises AdapterRecalled.
    """
    if connection.execute(_HELD_STATUS, {"sha256": sha256}).scalar_one() == AdapterStatus.RECALLED:
        raise AdapterRecalled


def newest_gate(connection: Connection, sha256: str) -> Gate | None:
    """The outcome of the adapter's newest evaluation that ended; None when there is none.

    Only rows held out of what it was trained on decide; whoever chose others could choose easy ones.
    """
    row = connection.execute(
        select(evaluations.c.id, evaluations.c.passed, evaluations.c.gate)
        .join(adapters, adapters.c.sha256 == evaluations.c.adapter_sha256)
        .where(
            adapters.c.sha256 == sha256,
            evaluations.c.dataset_id == adapters.c.dataset_id,
            evaluations.c.passed.is_not(None),
        )
        .order_by(evaluations.c.created_at.desc(), evaluations.c.id.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    failures = [check for check in (row.gate or {}).get("checks", []) if not check["passed"]]
    return Gate(evaluation_id=row.id, passed=bool(row.passed), failures=failures)


def why_unmeasurable(connection: Connection, dataset_id: str, *, on_others: bool = False) -> str | None:
    """Why an adapter of this dataset cannot be evaluated on its rows, or on rows of `on_others`, ever; None
    when it can. On others too it takes the rows that it learnt, to leave them out and to see what it recites.
    """
    row = connection.execute(
        select(datasets.c.rows_validation, data_keys.c.wrapped_key)
        .join(data_keys, data_keys.c.key_id == datasets.c.key_id)
        .where(datasets.c.id == dataset_id)
    ).one()
    if row.wrapped_key is None:
        return "that dataset was erased"
    return None if on_others or row.rows_validation else "that dataset has no held-out rows"


def is_dataset_gone(connection: Connection, dataset_id: str) -> bool:
    """Whether what an adapter was trained on was erased since, or withdrawn; it has learnt it all along."""
    return connection.execute(_GONE, {"dataset_id": dataset_id}).first() is not None


def answers_of(sha256: str) -> Select[Any]:
    """The answers of which a person saw at least one sentence that this adapter wrote, in no order."""
    return select(jobs.c.id, jobs.c.conversation_id, jobs.c.created_at, jobs.c.finished_at).where(
        jobs.c.adapter_sha256 == sha256, jobs.c.kind == Kind.INFER, jobs.c.first_sentence_at.is_not(None)
    )


class AdapterStore:
    """Changes adapters and who answers; safe to share between threads."""

    def __init__(self, clock: Clock, envelope: Envelope, *, heartbeat_s: float = 10.0) -> None:
        """`heartbeat_s`: how often workers report; one that was silent for three times as long is gone."""
        self._clock, self._envelope, self._heartbeat_s = clock, envelope, heartbeat_s

    def add(self, connection: Connection, new: NewAdapter, actor: record.Actor) -> Adapter:
        """A new candidate with the next version of its name; the same weights again are the same adapter.

        When two runs of one name end together, the second waits for the first and is numbered after it.
        """
        for tries_left in reversed(range(_NUMBERINGS)):
            known = connection.execute(select(adapters).where(adapters.c.sha256 == new.sha256)).one_or_none()
            if known is not None:
                return Adapter.from_row(known)
            try:
                with connection.begin_nested():  # what the caller has done stays when the version is taken
                    self._add(connection, new, actor)
                break
            except IntegrityError:
                if not tries_left:
                    raise
        return find(connection, new.sha256)

    def approve(self, connection: Connection, sha256: str, actor: record.Actor) -> Adapter:
        """Let questions name a candidate that was verified and passed its gate; what answers stays.

        Raises AdapterConflict, saying what is missing or which figure failed and by how much.
        """
        adapter = find(connection, sha256)
        return self._approve(
            connection, adapter, actor, self._check_fit(connection, adapter), overridden=False
        )

    def promote(
        self,
        connection: Connection,
        sha256: str,
        actor: record.Actor,
        *,
        override_reason: str | None = None,
        if_answers: Collection[str | None] | None = None,
    ) -> Adapter:
        """Let an adapter answer from now on, and archive the one before it.

        An override reaches past the gate, never past the verification or where the weights that it was
        trained on are served no more. Raises AdapterConflict, as `approve`, and when none of `if_answers`
        (None in it: the base model alone) is what answers; without it whatever does is replaced.
        """
        before = self._take_turn(connection, find(connection, sha256).base_model)
        adapter = find(connection, sha256)
        if adapter.status is AdapterStatus.ACTIVE:
            raise AdapterConflict("This adapter answers already.", reason="answers-already")
        _check_answers(before, if_answers)
        gate = self._check_fit(connection, adapter, override_reason)
        failed = gate is None or not gate.passed
        if adapter.status is AdapterStatus.CANDIDATE:
            adapter = self._approve(connection, adapter, actor, gate, overridden=failed)
        if before is not None:
            self._move(connection, find(connection, before), AdapterStatus.ARCHIVED)
        self._move(connection, adapter, AdapterStatus.ACTIVE)
        reason = override_reason if failed else None
        self._deploy(connection, adapter.base_model, sha256, DeploymentKind.PROMOTE, actor, reason)
        details = {
            "before": before,
            "overridden": failed,
            "reason_hmac": self._envelope.fingerprint(reason) if reason is not None else None,
            "evaluation": gate.evaluation_id if gate else None,
        }
        self._log(connection, actor, self._clock.now(connection), "adapter.promoted", sha256, details)
        return find(connection, sha256)

    def roll_back(
        self,
        connection: Connection,
        base_model: str,
        actor: record.Actor,
        *,
        if_answers: Collection[str | None] | None = None,
    ) -> str | None:
        """Let the adapter before answer again, unless the engine could not verify it since, or the weights
        that it was trained on are served no more; returns it, None for the base model.

        Raises AdapterConflict when no adapter answers, or none of `if_answers`, as `promote`.
        """
        now_active = self._take_turn(connection, base_model)
        _check_answers(now_active, if_answers)
        if now_active is None:
            raise AdapterConflict(
                "The base model answers already; there is nothing to roll back to.", reason="nothing-before"
            )
        self._move(connection, find(connection, now_active), AdapterStatus.ARCHIVED)
        before = self._step_back(connection, base_model, now_active, DeploymentKind.ROLL_BACK, actor)
        details = {"base_model": base_model, "to": before}
        self._log(connection, actor, self._clock.now(connection), "adapter.rolled_back", now_active, details)
        return before

    def recall(self, connection: Connection, sha256: str, actor: record.Actor, *, reason: str) -> Adapter:
        """Never let the adapter answer again; if it does now, the one before it answers. Answers under way
        end; see `hold_unrecalled`.

        Raises AdapterConflict when it was recalled already.
        """
        self._take_turn(connection, find(connection, sha256).base_model)
        adapter = find(connection, sha256)
        self._move(connection, adapter, AdapterStatus.RECALLED, recalled_reason=reason)
        details: dict[str, Any] = {"was": adapter.status, "reason_hmac": self._envelope.fingerprint(reason)}
        if adapter.status is AdapterStatus.ACTIVE:
            details["to"] = self._step_back(
                connection, adapter.base_model, sha256, DeploymentKind.RECALL, actor
            )
        self._log(connection, actor, self._clock.now(connection), "adapter.recalled", sha256, details)
        return find(connection, sha256)

    def is_base_served(self, connection: Connection, adapter: Adapter) -> bool | None:
        """Whether a worker that lives has the weights that the adapter was trained on; None when nobody can
        tell, as none lives. A verification does not say: the weights may have changed since.
        """
        served = self._served(connection, adapter.base_model)
        return adapter.base_revision in served if served else None

    # -- inside

    def _take_turn(self, connection: Connection, base_model: str) -> str | None:
        """Wait for whoever changes what answers for this base model; returns what does then, which nobody
        else changes until this transaction ends.
        """
        connection.execute(_HELD, {"base_model": base_model})
        return active(connection, base_model)

    def _served(self, connection: Connection, base_model: str) -> set[str]:
        return served_revisions(connection, base_model, self._clock.now(connection), self._heartbeat_s)

    def _add(self, connection: Connection, new: NewAdapter, actor: record.Actor) -> None:
        """Raises sqlalchemy's IntegrityError when another took the version or added the weights meanwhile."""
        now = self._clock.now(connection)
        newest = connection.execute(
            select(func.max(adapters.c.version)).where(adapters.c.name == new.name)
        ).scalar()
        row = {
            **new.__dict__,
            "version": (newest or 0) + 1,
            "status": AdapterStatus.CANDIDATE,
            "created_at": now,
            "status_at": now,
        }
        put(connection, adapters, row)
        details = {"run": new.run_id, "base_model": new.base_model, "base_revision": new.base_revision}
        self._log(connection, actor, now, "adapter.added", new.sha256, details)

    def _check_fit(
        self, connection: Connection, adapter: Adapter, override_reason: str | None = None
    ) -> Gate | None:
        """The newest gate, if the adapter may answer. Raises AdapterConflict."""
        if adapter.status is AdapterStatus.RECALLED:
            raise AdapterConflict("This adapter was recalled and must not answer again.", reason="recalled")
        if adapter.verification is None:
            raise AdapterConflict(
                "The serving engine has not verified this adapter yet; verify it first.",
                reason="not-verified",
            )
        if not adapter.verification.get("ok"):
            raise AdapterConflict(
                f"The verification failed: {adapter.verification.get('reason')}", reason="verification-failed"
            )
        if adapter.files_sha256 is None:
            raise AdapterConflict(
                "This adapter was registered and verified by an earlier release, which kept no hash of its "
                "configuration: verify it again.",
                reason="not-verified",
            )
        if self.is_base_served(connection, adapter) is False:
            raise AdapterConflict(
                f"The workers serve other weights under the name {adapter.base_model} than this adapter was "
                "trained on, so every answer with it would fail: train it again, or serve those weights.",
                reason="other-base",
            )
        gate = newest_gate(connection, adapter.sha256)
        if override_reason is not None:
            return gate
        if gate is None:
            gone = why_unmeasurable(connection, adapter.dataset_id)
            what = f", and cannot be: {gone}. Override" if gone else "; evaluate it first, or override"
            raise AdapterConflict(
                f"This adapter was never evaluated on the rows held out of its own dataset{what} with a "
                "reason.",
                reason="not-evaluated",
            )
        if not gate.passed:
            raise AdapterConflict(
                f"The gate failed. {gate.describe()} Train it again, or override with a reason.",
                reason="gate-failed",
            )
        return gate

    def _approve(
        self,
        connection: Connection,
        adapter: Adapter,
        actor: record.Actor,
        gate: Gate | None,
        *,
        overridden: bool,
    ) -> Adapter:
        self._move(connection, adapter, AdapterStatus.APPROVED)
        details = {
            "evaluation": gate.evaluation_id if gate else None,
            "overridden": overridden,
            "failed_figures": [failure["figure"] for failure in gate.failures] if gate else [],
        }
        self._log(connection, actor, self._clock.now(connection), "adapter.approved", adapter.sha256, details)
        return find(connection, adapter.sha256)

    def _step_back(
        self,
        connection: Connection,
        base_model: str,
        now_active: str,
        kind: DeploymentKind,
        actor: record.Actor,
    ) -> str | None:
        """Deploy the adapter before `now_active` that may still answer."""
        rows = connection.execute(
            select(deployments.c.kind, deployments.c.adapter_sha256)
            .where(deployments.c.base_model == base_model)
            .order_by(deployments.c.seq)
        )
        history = [(DeploymentKind(row.kind), row.adapter_sha256) for row in rows]
        known = connection.execute(
            select(
                adapters.c.sha256,
                adapters.c.files_sha256,
                adapters.c.status,
                adapters.c.verification,
                adapters.c.base_revision,
            ).where(adapters.c.base_model == base_model)
        )
        served = self._served(connection, base_model)
        unfit = {
            row.sha256
            for row in known
            if row.status == AdapterStatus.RECALLED
            or not (row.verification or {}).get("ok")
            or row.files_sha256 is None
            or (served and row.base_revision not in served)
        }
        before = before_now(history, {*unfit, now_active})
        if before is not None:
            self._move(connection, find(connection, before), AdapterStatus.ACTIVE)
        self._deploy(connection, base_model, before, kind, actor, None)
        return before

    def _move(self, connection: Connection, adapter: Adapter, after: AdapterStatus, **values: Any) -> None:
        """Change the status, unless somebody else did meanwhile. Raises AdapterConflict."""
        if not may_become(adapter.status, after):
            raise AdapterConflict(
                f"This adapter is {adapter.status} and cannot become {after}.", reason=f"is-{adapter.status}"
            )
        moved = connection.execute(
            update(adapters)
            .where(adapters.c.sha256 == adapter.sha256, adapters.c.status == adapter.status)
            .values(status=after, status_at=self._clock.now(connection), **values)
        )
        if moved.rowcount != 1:
            raise AdapterConflict

    def _deploy(
        self,
        connection: Connection,
        base_model: str,
        sha256: str | None,
        kind: DeploymentKind,
        actor: record.Actor,
        override_reason: str | None,
    ) -> None:
        newest = connection.execute(select(func.max(deployments.c.seq))).scalar()
        row = {
            "seq": (newest or 0) + 1,
            "base_model": base_model,
            "adapter_sha256": sha256,
            "kind": kind,
            "override_reason": override_reason,
            "by": actor.id,
            "at": self._clock.now(connection),
        }
        put(connection, deployments, row)

    def _log(
        self,
        connection: Connection,
        actor: record.Actor,
        now: datetime,
        action: str,
        sha256: str,
        details: Mapping[str, Any],
    ) -> None:
        record.append(
            connection, now=now, actor=actor, action=action, object=f"adapter:{sha256}", details=dict(details)
        )


def _check_answers(now: str | None, if_answers: Collection[str | None] | None) -> None:
    if if_answers is not None and now not in if_answers:
        raise AdapterConflict(
            "Another adapter answers by now; look again before you change that.", reason="another-answers"
        )
