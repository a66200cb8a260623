"""Says which filters a search had, as the log may keep them. It does not know what they filter."""

from collections.abc import Mapping
from typing import Any

from shared.privacy.envelope import Envelope

#: A filter's value, and whether it names nobody: an id, a code, a moment.
Filter = tuple[Any, bool]


def told(envelope: Envelope, filters: Mapping[str, Filter]) -> dict[str, Any]:
    """What was given: what names nobody as it is, all else as its HMAC, under its name with `_hmac`.

    Somebody may have typed a patient's name, and nothing is ever erased from the log.
    """
    kept: dict[str, Any] = {}
    for name, (value, harmless) in filters.items():
        if value in (None, ""):
            continue
        if harmless:
            kept[name] = value
        else:
            kept[f"{name}_hmac"] = envelope.fingerprint(str(value))
    return kept
