"""`medichat adapter compare`: one question to two adapters, side by side, and a vote. It measures nothing."""

import argparse
import sys
import time

import httpx

from services.cli_client import DONE, FAILED, Json, ProgressLine, expect

_POLL_S = 0.5
_VOTES = {"l": "left", "r": "right", "t": "tie"}
_CHOICES = "Better: [l]eft, [r]ight, [t]ie, or Enter for no vote: "


def add_arguments(compare: argparse.ArgumentParser) -> None:
    """What the command takes, beside the two adapters."""
    compare.add_argument("question", help="what both are asked")
    compare.add_argument("--blind", action="store_true", help="which is which is told after the vote only")
    compare.add_argument(
        "--vote", choices=list(_VOTES.values()), help="which is better; asked for at a terminal, if left out"
    )


def compare(client: httpx.Client, left: str | None, right: str | None, options: argparse.Namespace) -> int:
    """Ask both (None: the base model alone), print the answers, take a vote."""
    body = {"question": options.question, "left": left, "right": right, "blind": options.blind}
    comparison = expect(client.post("/v1/comparisons", json=body))
    line = ProgressLine()
    try:
        while comparison["state"] != "done":
            line.show("waiting for both answers")
            time.sleep(_POLL_S)
            comparison = expect(client.get(f"/v1/comparisons/{comparison['id']}"))
    finally:
        line.end()
    for side in ("left", "right"):
        print(f"--- {side}{_named(comparison, side)}\n{_said(comparison[side])}\n")
    if any(comparison[side]["error"] for side in ("left", "right")):
        return FAILED
    if any(comparison[side]["by_guard"] for side in ("left", "right")):
        print("The guard answered this itself: there is nothing to vote on. Ask another question.")
        return FAILED if options.vote else DONE
    vote = options.vote or _ask()
    if vote is None:
        return DONE
    voted = expect(client.post(f"/v1/comparisons/{comparison['id']}/vote", json={"vote": vote}))
    print(f"voted {vote}; left{_named(voted, 'left')}, right{_named(voted, 'right')}")
    return DONE


def _named(comparison: Json, side: str) -> str:
    if not comparison["told"]:
        return ""
    sha256 = comparison[f"adapter_{side}"]
    return f": {sha256[:12] if sha256 else 'the base model alone'}"


def _said(side: Json) -> str:
    return str(side["error"]["detail"] if side["error"] else side["answer"])


def _ask() -> str | None:
    """The vote of who sits at a terminal; None for none."""
    if not sys.stdin.isatty():
        return None
    try:
        while (letter := input(_CHOICES).strip().lower()[:1]) and letter not in _VOTES:
            continue
    except EOFError:
        return None
    return _VOTES.get(letter)
