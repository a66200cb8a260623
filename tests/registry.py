"""Rows of adapters as training, evaluation and the serving engine leave them, for tests of what follows."""

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from shared.audit.record import Actor
from shared.db.tables import data_keys, jobs
from shared.db.tables_training import adapters, datasets, evaluations, training_runs
from shared.ids import new_id
from shared.jobs.lifecycle import Kind
from shared.jobs.records import NewJob
from shared.privacy.keys import create_data_key
from shared.training.adapter_files import hash_files
from shared.training.adapters import AdapterStore, NewAdapter
from tests.support import Api, Person

GOOD = {"ok": True, "dtype": "float32", "reason": None, "max_diff_base": 1.0, "max_diff_trainer": 0.0}


def sha_of(name: str) -> str:
    """A name for an adapter without files."""
    return hashlib.sha256(name.encode()).hexdigest()


def add_adapter(
    api: Api,
    admin: Person,
    *,
    sha256: str,
    name: str = "doses",
    base_model: str = "demo",
    base_revision: str = "a" * 64,
    verification: dict[str, Any] | None = None,
    checks: list[dict[str, Any]] | None = None,
    status: str = "candidate",
) -> str:
    """An adapter of a finished run; evaluated when `checks` are given. Returns its name."""
    gateway = api.gateway
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        key = create_data_key(connection, gateway.envelope, scope="dataset", owner_id=new_id(), now=now)
        assert connection.execute(select(data_keys.c.key_id).where(data_keys.c.key_id == key.key_id)).one()
        dataset_id, run_id = new_id(), new_id()
        connection.execute(
            datasets.insert().values(
                id=dataset_id,
                name="rows",
                state="ready",
                source="upload",
                source_name="rows.jsonl",
                options={},
                key_id=key.key_id,
                created_by=admin.id,
                created_at=now,
            )
        )
        connection.execute(
            training_runs.insert().values(
                id=run_id,
                name=name,
                job_id=_job(api, connection, admin, Kind.TRAIN),
                dataset_id=dataset_id,
                recipe={},
                base_model=base_model,
                created_by=admin.id,
                created_at=now,
            )
        )
        new = NewAdapter(
            sha256=sha256,
            files_sha256=hash_files(Path(api.settings.storage_url) / "adapters" / sha256),
            name=name,
            run_id=run_id,
            dataset_id=dataset_id,
            base_model=base_model,
            base_revision=base_revision,
            bytes=1,
            card="# A card",
        )
        AdapterStore(gateway.clock, gateway.envelope).add(connection, new, Actor(admin.id))
        connection.execute(
            update(adapters)
            .where(adapters.c.sha256 == sha256)
            .values(verification=verification, status=status)
        )
    if checks is not None:
        add_evaluation(api, admin, sha256, dataset_id=dataset_id, checks=checks, after_s=1)
    return sha256


def add_evaluation(
    api: Api, admin: Person, sha256: str, *, dataset_id: str, checks: list[dict[str, Any]], after_s: float
) -> None:
    """An evaluation on a dataset's rows that ended; `after_s` is how long from now it began."""
    passed = all(check["passed"] for check in checks)
    with api.gateway.database.write() as connection:
        connection.execute(
            evaluations.insert().values(
                id=new_id(),
                job_id=_job(api, connection, admin, Kind.EVALUATE),
                adapter_sha256=sha256,
                dataset_id=dataset_id,
                figures={},
                gate={"passed": passed, "checks": checks},
                passed=passed,
                created_by=admin.id,
                created_at=api.gateway.clock.now(connection) + timedelta(seconds=after_s),
            )
        )


def add_good_adapter(api: Api, admin: Person, sha256: str, **rest: Any) -> str:
    """One that may be promoted."""
    return add_adapter(api, admin, sha256=sha256, verification=GOOD, checks=[], **rest)


def answers_by(api: Api, admin: Person, sha256: str, count: int) -> list[str]:
    """Answers that the adapter gave, one a second; returns their jobs' ids, the oldest first."""
    with api.gateway.database.write() as connection:
        made = [_job(api, connection, admin, Kind.INFER) for _ in range(count)]
        begun = api.gateway.clock.now(connection)
        for number, job_id in enumerate(made):
            asked = begun + timedelta(seconds=number)
            values = {"adapter_sha256": sha256, "created_at": asked, "first_sentence_at": asked}
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))
    return made


def _job(api: Api, connection: Any, admin: Person, kind: Kind) -> str:
    now = api.gateway.clock.now(connection)
    new = NewJob(id=new_id(), kind=kind, user_id=admin.id, audience="patient")  # type: ignore[arg-type]
    return api.gateway.jobs.submit_settled(connection, new, now).id
