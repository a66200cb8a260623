"""Makes the start of a program that computes shorter: importing torch and what builds on it takes seconds of
a processor. It knows nothing of what is computed.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import what computes: that leaves no garbage, and looking for it takes a sixth of the time. What was
    imported stays, so that it is not looked through later, either.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def leave_out_bitsandbytes() -> None:
    """For a program that computes nothing in 4 or 8 bits: to whoever asks, bitsandbytes is not installed.

    PEFT imports it wherever it is, which takes a second. Where either is imported already, nothing changes:
    what has been found once is not to be lost.
    """
    if sys.modules.keys().isdisjoint({"peft", "bitsandbytes"}):
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
