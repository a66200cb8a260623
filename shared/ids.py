"""Makes identifiers. It does not know what they name."""

import uuid_utils


def new_id() -> str:
    """A time-ordered UUID (version 7, RFC 9562) as text of 36 characters."""
    return str(uuid_utils.uuid7())
