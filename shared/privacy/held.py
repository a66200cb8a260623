"""Keeps the list of legal holds outside of the database, for restores. It places and lifts none itself.

A file `holds/<id>` beside the signed checkpoints of the log says whom or what a hold is on, and for which
case; an empty file `holds/<id>.lifted` that it was lifted. A backup that is older than a hold lacks it, and
periods of retention would end what is held. The list holds ids and numbers of cases only.
"""

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, or_, select

from shared.db.tables_privacy import legal_holds
from shared.errors import Conflict
from shared.ids import is_id
from shared.storage import Storage

_FOLDER, _LIFTED = "holds", ".lifted"


class ListedHold(BaseModel):
    """A hold as it is listed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    subject: str = Field(pattern="^(user|conversation):[0-9a-f-]{36}$")
    reference: str = Field(max_length=64)
    placed_at: AwareDatetime
    #: The account of who placed it.
    placed_by: str
    lifted: bool = False


def holds_since(connection: Connection, since: datetime | None) -> list[ListedHold]:
    """Holds that were placed or lifted since, or all there are."""
    found = select(legal_holds).order_by(legal_holds.c.id)
    if since is not None:
        found = found.where(or_(legal_holds.c.placed_at >= since, legal_holds.c.lifted_at >= since))
    return [_listed(row) for row in connection.execute(found)]


def hold_of(connection: Connection, hold_id: str) -> ListedHold:
    """One hold that is there."""
    return _listed(connection.execute(select(legal_holds).where(legal_holds.c.id == hold_id)).one())


def note_holds(place: Storage, holds: Iterable[ListedHold]) -> None:
    """List these in `Storage.of_checkpoints(settings)`; safe to repeat.

    Call it after the commit; maintenance lists what could not be listed then. Raises OSError as `Storage`
    does.
    """
    known = set(place.list(_FOLDER))
    for hold in holds:
        files = {f"{_FOLDER}/{hold.id}": hold.model_dump_json(exclude={"lifted"}).encode()}
        if hold.lifted:
            files[f"{_FOLDER}/{hold.id}{_LIFTED}"] = b""
        for path in files.keys() - known:
            with place.create(path) as file:
                file.write(files[path])


def read_holds(place: Storage) -> list[ListedHold]:
    """All that were ever listed, by id, which is the order in which they were placed.

    Raises OSError as `Storage` does, and Conflict, with the way out, for a file that is none of this list.
    """
    names = {path.rpartition("/")[2] for path in place.list(_FOLDER)}
    return [_read(place, name, lifted=name + _LIFTED in names) for name in sorted(filter(is_id, names))]


def _read(place: Storage, hold_id: str, *, lifted: bool) -> ListedHold:
    path = f"{_FOLDER}/{hold_id}"
    with place.open(path) as file:
        text = file.read()
    with suppress(ValidationError):
        hold = ListedHold.model_validate_json(text)
        if hold.id == hold_id:
            return hold.model_copy(update={"lifted": lifted})
    raise Conflict(f"{path} is no legal hold (in MEDICHAT_CHECKPOINT_URL): look why, then move the file away")


def _listed(row: Any) -> ListedHold:
    return ListedHold(
        id=row.id,
        subject=row.subject,
        reference=row.reference,
        placed_at=row.placed_at,
        placed_by=row.placed_by,
        lifted=row.lifted_at is not None,
    )
