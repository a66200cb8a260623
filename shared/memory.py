"""Names a memory that several processes share, so that one leaves room for another, and says how much of the
machine's a container has. It does not know who needs how much.
"""

import json
from collections.abc import Mapping
from pathlib import Path

#: The environment variable in which a training program is told what others will still take: bytes by memory.
WANTED_BY_SERVING = "WANTED_BY_SERVING"
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def memory_name(gpu_uuid: str | None) -> str:
    """A GPU's memory, or without one this machine's: the same name in every container of the machine."""
    return f"gpu:{gpu_uuid}" if gpu_uuid else f"machine:{_BOOT_ID.read_text(encoding='ascii').strip()}"


def wanted_by_serving(environment: Mapping[str, str], name: str) -> int:
    """Bytes of this memory that workers which answer will still take; see `WANTED_BY_SERVING`."""
    wanted: dict[str, int] = json.loads(environment.get(WANTED_BY_SERVING, "{}"))
    return int(wanted.get(name, 0))


def control_group() -> Path:
    """This process's folder in the second version of Linux's control groups. Raises OSError."""
    own = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("::")[2].strip()
    return Path(f"{_CONTROL_GROUPS}{own}")


def within_control_group(free: int, total: int) -> tuple[int, int]:
    """How much of so many bytes that the machine has free, and in all, is this process's: a container, and
    what it lies in, may be allowed less. Files that the kernel only keeps at hand count as free.
    """
    try:
        group = control_group()
    except OSError:
        return free, total
    for folder in (group, *group.parents):
        try:
            limit, used = ((folder / f"memory.{name}").read_text("ascii") for name in ("max", "current"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
        except OSError:
            continue  # the machine's own, or no group at all
        if limit.strip() != "max":
            left = int(limit) - int(used) + int(stat["inactive_file"])
            free, total = max(0, min(free, left)), min(total, int(limit))
    return free, total
