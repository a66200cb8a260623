"""An inference worker whose guard lets everything pass: `python -m benchmarks.unguarded_worker`.

It is there to be measured against (guard_cost.py); nothing that answers people starts it.
"""

import sys
import time
from typing import Any

from services.worker_infer.__main__ import main
from shared.guard import Guard
from shared.guard.gate import Gate, Reading
from shared.guard.verdict import Audience, Verdict


def let_everything_pass() -> None:
    """Take the layers out of every guard of this process; sentences are still cut, stored and released."""

    def gate(self: Guard, audience: Audience = Audience.PATIENT, released: str = "", **_: Any) -> Gate:
        nothing = Reading(refers=lambda _: True, urges=lambda _: True, warns_of_emergency=lambda _: False)
        return Gate(
            lambda *_: Verdict.ALLOWED,
            audience,
            responses=self.responses(),
            reader=nothing,
            clock=time.monotonic,
            released_so_far=released,
        )

    changed: dict[str, Any] = {
        "gate": gate,
        "screen_question": lambda *_: Verdict.ALLOWED_QUESTION,
        "hides_identifiers": False,
    }
    for name, value in changed.items():
        setattr(Guard, name, value)


if __name__ == "__main__":
    let_everything_pass()
    sys.exit(main())
