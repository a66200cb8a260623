"""Keeps the work of this machine from taking the memory that answers will need. It does not know how much a
work needs.
"""

import os
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]
import torch

from services.worker_train import base, child
from shared.errors import MediChatError
from shared.memory import memory_name, wanted_by_serving, within_control_group


class MustWait(MediChatError):
    """There is no room beside what runs now; try again later."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """A device's memory, in bytes."""

    device: torch.device
    total: int
    #: What answers may still need.
    kept: int
    #: What is free now, without what is kept.
    free: int

    @classmethod
    def on(cls, device: torch.device) -> "Room":
        """As it is now."""
        free, total = _free_memory(device)
        kept = wanted_by_serving(os.environ, memory_name(base.gpu_uuid(device)))
        return cls(device=device, total=total, kept=kept, free=max(0, free - kept))

    def take(self, needed: float) -> None:
        """Start what needs so many bytes. Raises MustWait when they are not free."""
        if needed > self.free:
            then = "it starts" if child.is_supervised() else "run it again"
            raise MustWait(
                f"This needs about {needed / 1e9:.1f} GB, and beside what runs now {self.free / 1e9:.1f} GB "
                f"of {self.total / 1e9:.1f} GB are free"
                f"{f', without {self.kept / 1e9:.1f} GB that answers may still need' if self.kept else ''}; "
                f"{then} when there is room."
            )
        if (
            self.device.type == "cuda"
        ):  # should it take more than it was judged to, it fails, and not an answer
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.free / self.total), self.device)


def _free_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that are free now, and bytes in all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    memory = psutil.virtual_memory()
    return within_control_group(memory.available, memory.total)
