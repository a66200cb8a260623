"""Names a memory that several processes share, so that one leaves room for another. It computes nothing."""

import json
from collections.abc import Mapping
from pathlib import Path

#: The environment variable in which a training program is told what others will still take: bytes by memory.
WANTED_BY_SERVING = "WANTED_BY_SERVING"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def memory_name(gpu_uuid: str | None) -> str:
    """A GPU's memory, or without one this machine's: the same name in every container of the machine."""
    return f"gpu:{gpu_uuid}" if gpu_uuid else f"machine:{_BOOT_ID.read_text(encoding='ascii').strip()}"


def wanted_by_serving(environment: Mapping[str, str], name: str) -> int:
    """Bytes of this memory that workers which answer will still take; see `WANTED_BY_SERVING`."""
    wanted: dict[str, int] = json.loads(environment.get(WANTED_BY_SERVING, "{}"))
    return int(wanted.get(name, 0))
