"""Maps events of the log to AuditEvent of FHIR R4 (http://hl7.org/fhir/R4/auditevent.html). It does no I/O.

A pointer, never the text: conversations, jobs and persons are named by ids, and of an event's details only
ids and hashes are taken over. Where a code is HL7's or DICOM's it is theirs; our own action is the subtype.
"""

import re
from collections.abc import Mapping
from typing import Any

from shared.ids import is_id
from shared.training.states import BASE

_DICOM = "http://dicom.nema.org/resources/ontology/DCM"
_HL7 = "http://terminology.hl7.org/CodeSystem"

#: What kind of event it is, by the first part of our action.
_TYPES = {
    "session": ("110114", "User Authentication"),
    "access": ("110113", "Security Alert"),
    "user": ("110113", "Security Alert"),
    "api_key": ("110113", "Security Alert"),
    "consent": ("110110", "Patient Record"),
    "conversation": ("110110", "Patient Record"),
    "feedback": ("110110", "Patient Record"),
    "question": ("110110", "Patient Record"),
    "answer": ("110110", "Patient Record"),
    "audit": ("110112", "Query"),
    "conversations": ("110112", "Query"),
    "users": ("110112", "Query"),
}
_EXPORT, _ACTIVITY = ("110106", "Export"), ("110100", "Application Activity")
#: Create, read, update or delete, by the last word of our action; all else is "execute".
_ACTS = {
    **dict.fromkeys(("asked", "created", "given", "received", "saved", "submitted"), "C"),
    **dict.fromkeys(("exported", "listed", "opened", "read", "revealed", "searched"), "R"),
    **dict.fromkeys(
        ("activated", "approved", "changed", "hidden", "promoted", "recalled", "renamed", "set"), "U"
    ),
    **dict.fromkeys(("erased", "deleted", "purged", "removed", "revoked", "back"), "D"),
}
#: What became of the object (dicom-audit-lifecycle), by the same; where nothing stands nothing is said.
_LIFECYCLES = {
    **dict.fromkeys(("asked", "created", "given", "saved", "submitted"), ("1", "Origination / Creation")),
    "received": ("2", "Import / Copy"),
    **dict.fromkeys(("changed", "renamed"), ("3", "Amendment")),
    **dict.fromkeys(("listed", "opened", "read", "searched"), ("6", "Access / Use")),
    "exported": ("10", "Export"),
    "revealed": ("11", "Disclosure"),
    "hidden": ("14", "Logical deletion"),
    **dict.fromkeys(("erased", "purged"), ("15", "Permanent erasure / Physical destruction")),
}
#: What part an object of a kind plays (object-role).
_ROLES = {
    **dict.fromkeys(("conversation", "message"), ("4", "Domain Resource")),
    "user": ("11", "Security User Entity"),
    **dict.fromkeys(("api_key", "session"), ("13", "Security Resource")),
    "job": ("20", "Job"),
}
_OUTCOMES = {"done": "0", "denied": "4", "failed": "8"}
_CODE = re.compile(r"[a-z][a-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: What the event's details point at, as entities of their own.
_POINTERS = ("conversation", "message")


def audit_event(event: Mapping[str, Any], *, asked_by: str | None, observer: str) -> dict[str, Any]:
    """One event as an AuditEvent.

    Args:
        event: `id, occurred_at` (aware), `actor, action, object, outcome, reason, details` of the log.
        asked_by: whose job the event's object is, where it is one: who an answer was written for.
        observer: the address of this installation, which saw it happen.
    """
    action = str(event["action"])
    act = re.split(r"[._]", action)[-1]
    resource: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": event["id"],
        "type": _type(action, act),
        "subtype": [{"system": "urn:medichat:audit-action", "code": action}],
        "action": _ACTS.get(act, "E"),
        "recorded": event["occurred_at"].isoformat(timespec="milliseconds"),
        "outcome": _OUTCOMES[event["outcome"]],
        "agent": _agents(event, asked_by),
        "source": {
            "observer": {
                "identifier": {"system": "urn:medichat:installation", "value": observer},
                "display": "MediChat",
            },
            "type": [_coding(f"{_HL7}/security-source-type", "4", "Application Server")],
        },
    }
    if event["reason"] and _CODE.fullmatch(event["reason"]):
        resource["outcomeDesc"] = event["reason"]
    entities = _entities(event, act)
    if entities:
        resource["entity"] = entities
    return resource


def _type(action: str, act: str) -> dict[str, str]:
    code, display = _EXPORT if act == "exported" else _TYPES.get(action.partition(".")[0], _ACTIVITY)
    return _coding(_DICOM, code, display)


def _agents(event: Mapping[str, Any], asked_by: str | None) -> list[dict[str, Any]]:
    """Who asked for it; the program where it acted by itself; and of an answer the model and its adapter."""
    actor, agents = str(event["actor"]), []
    answered = str(event["action"]).startswith("answer.")
    if is_id(actor):
        agents.append(_person(actor, requestor=True))
    else:
        asked = asked_by if answered else None
        if asked is not None:
            agents.append(_person(asked, requestor=True))
        agents.append(_software("actor", actor, requestor=asked is None))
    if answered:
        for name in ("model", "adapter"):
            value = event["details"].get(name)
            if value and value != BASE:
                agents.append(_software(name, str(value), requestor=False))
    return agents


def _person(user_id: str, *, requestor: bool) -> dict[str, Any]:
    return {
        "type": {
            "coding": [_coding(f"{_HL7}/extra-security-role-type", "humanuser", "human user")],
        },
        "who": {"identifier": {"system": "urn:medichat:user", "value": user_id}},
        "requestor": requestor,
    }


def _software(kind: str, name: str, *, requestor: bool) -> dict[str, Any]:
    return {
        "type": {"coding": [_coding(_DICOM, "110150", "Application")]},
        "who": {"identifier": {"system": f"urn:medichat:{kind}", "value": name}},
        "requestor": requestor,
    }


def _entities(event: Mapping[str, Any], act: str) -> list[dict[str, Any]]:
    """Pointers to what was acted on: the object, then the conversation and the message that it belongs to."""
    entities = []
    kind, _, id = (event["object"] or "").partition(":")
    if kind and (is_id(id) or _SHA256.fullmatch(id)):
        entities.append(_entity(kind, id))
        if act in _LIFECYCLES:
            entities[0]["lifecycle"] = _coding(f"{_HL7}/dicom-audit-lifecycle", *_LIFECYCLES[act])
        details = [
            {"type": name, "valueString": value}
            for name, value in sorted(event["details"].items())
            if isinstance(value, str) and name not in _POINTERS and (is_id(value) or _SHA256.fullmatch(value))
        ]
        if details:
            entities[0]["detail"] = details
    answered = str(event["action"]).startswith("answer.")
    for name in _POINTERS:
        value = event["details"].get(name)
        if isinstance(value, str) and is_id(value) and (name, value) != (kind, id):
            entity = _entity(name, value)
            if answered and name == "message":
                asserted = _coding(f"{_HL7}/v3-ObservationValue", "AIAST", "Artificial Intelligence asserted")
                entity["securityLabel"] = [asserted]
            entities.append(entity)
    return entities


def _entity(kind: str, id: str) -> dict[str, Any]:
    entity: dict[str, Any] = {
        "what": {"identifier": {"system": f"urn:medichat:{kind.replace('_', '-')}", "value": id}},
        "type": _coding(f"{_HL7}/audit-entity-type", "2", "System Object"),
    }
    if kind in _ROLES:
        entity["role"] = _coding(f"{_HL7}/object-role", *_ROLES[kind])
    return entity


def _coding(system: str, code: str, display: str) -> dict[str, str]:
    return {"system": system, "code": code, "display": display}
