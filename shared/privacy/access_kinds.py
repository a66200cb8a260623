"""Why somebody may read a conversation of another's unmasked. It does no I/O."""

from enum import StrEnum


class AccessKind(StrEnum):
    """What a row of `access_grants` allows."""

    REVEAL = "reveal"  #: an auditor reads identifiers too
    BREAK_GLASS = "break_glass"  #: an admin reads it in an emergency
