"""Makes identifiers. It does not know what they name."""

import re
from datetime import UTC, datetime

import uuid_utils

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def new_id() -> str:
    """A time-ordered UUID (version 7, RFC 9562) as text of 36 characters."""
    return str(uuid_utils.uuid7())


def is_id(text: str) -> bool:
    """Whether the text looks like an id; not whether it names anything."""
    return _ID.fullmatch(text) is not None


def first_id_at(moment: datetime) -> str:
    """What ids made at `moment` or later sort after, and ids made before it do not."""
    milliseconds = f"{max(0, int(moment.timestamp() * 1000)):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}-0000-0000-000000000000"


def moment_of(id: str) -> datetime:
    """When the id was made, to the millisecond, by the clock of the host that made it."""
    return datetime.fromtimestamp(int(id[:8] + id[9:13], 16) / 1000, UTC)
