"""Finds what is wrong with the tables of facts and with their wordings. It judges no text."""

from __future__ import annotations

from collections.abc import Mapping

from shared.guard.doses import read_amount
from shared.guard.located import Located
from shared.guard.names import listed
from shared.guard.pattern_check import PatternCheck


def check_facts(located: Mapping[str, Located], tags: set[str]) -> None:
    """Check doses.yaml, interactions.yaml and facts.yaml, whose keys and values were found to be allowed.

    Args:
        located: every file of the policy.
        tags: the classes of words that patterns may name.

    Raises:
        PolicyRefused: the first thing that is wrong, with file, line and reason.
    """
    _check_doses(located["doses.yaml"])
    _check_pairs(located["interactions.yaml"])
    _check_wordings(located["facts.yaml"], located["rules_answer.yaml"], tags)


def _check_doses(located: Located) -> None:
    seen: set[str] = set()
    for number, row in enumerate(located.document["medicines"]):
        place = ("medicines", number)
        names = listed(row["names"])
        if not seen.isdisjoint(names) or len(set(names)) < len(names):
            raise located.refusal((*place, "names"), "a name stands in this file twice")
        seen.update(names)
        if not {"dose", "day", "hours"} & row.keys():
            raise located.refusal(place, "a medicine has a dose, a day or hours")
        if "dose" in row and "day" in row and read_amount(row["day"]) < read_amount(row["dose"]):
            raise located.refusal((*place, "day"), "less in a day than at once")


def _check_pairs(located: Located) -> None:
    document = located.document
    for name, group in document["classes"].items():
        if not group["members"] and "called" not in group:
            raise located.refusal(("classes", name), "the class is empty")
    unused = set(document["classes"])
    ids: set[str] = set()
    for number, pair in enumerate(document["pairs"]):
        place = ("pairs", number)
        for side, name in enumerate(pair["between"]):
            if name not in document["classes"]:
                raise located.refusal((*place, "between", side), "there is no class of this name")
            unused.discard(name)
        if pair["id"] in ids:
            raise located.refusal((*place, "id"), "another pair has the same id")
        ids.add(pair["id"])
    for name in document["classes"]:
        if name in unused:
            raise located.refusal(("classes", name), "no pair names this class")


def _check_wordings(located: Located, rules: Located, tags: set[str]) -> None:
    document = located.document
    patterns = PatternCheck(located, tags, rules.document["macros"])
    scopes = {**rules.document["scopes"], **document["scopes"]}
    patterns.check_scopes(document["scopes"])
    patterns.check_names(("dose", "unless"), document["dose"]["unless"], scopes)
    for number, wording in enumerate(document["pair"]):
        patterns.check(("pair", number, "any"), wording["any"])
        patterns.check_names(("pair", number, "unless"), wording["unless"], scopes)
    patterns.check(("together",), document["together"])
