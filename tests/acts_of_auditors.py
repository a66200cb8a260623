"""What auditors do, and admins that auditors are told of, each once, with the events that it leaves."""

from typing import Any

from shared.auth.roles import AccountStatus, Role
from shared.ids import new_id
from tests.acts import Call, act, answered, call
from tests.drawn import image
from tests.support import Api, Person, ask_async

CONVERSATION = "conversation:{conversation_id}"
BREAK_GLASS = {"reason": "An emergency.", "minutes": 30}


def by_auditor(api: Api, action: str, object: str | None = None, **request: Any) -> Call:
    """A call by a new auditor that leaves one event."""
    return call(api.person(Role.AUDITOR), (action, object), **request)


def with_conversation(api: Api) -> dict[str, str]:
    """The id of a conversation with an answer."""
    return {"conversation_id": str(answered(api).conversation_id)}


def with_picture(api: Api) -> dict[str, str]:
    """The id of a conversation, and of the picture that its question came with."""
    client = api.log_in()
    conversation_id = str(ask_async(client, images=[image()])["conversation_id"])
    api.finish(api.claim())
    asked = client.get(f"/v1/conversations/{conversation_id}").json()["messages"][0]
    return {"conversation_id": conversation_id, "image_id": str(asked["images"][0]["id"])}


@act("POST", "/v1/users/{user_id}/approve")
def approve_auditor(api: Api) -> Call:
    ids = {"user_id": api.person(Role.AUDITOR, status=AccountStatus.PENDING).id}
    return by_auditor(api, "user.approved", "user:{user_id}", ids=ids)


# -- the log


@act("GET", "/v1/audit/events")
def read_log(api: Api) -> Call:
    return by_auditor(api, "audit.read")


@act("POST", "/v1/audit/checkpoints")
def make_checkpoint(api: Api) -> Call:
    return by_auditor(api, "checkpoint.asked")


@act("POST", "/v1/audit/verify")
def verify(api: Api) -> Call:
    return call(api.person(Role.AUDITOR), ("log.verified", None), ("log.found_whole", None))


@act("GET", "/v1/audit/conversations/{conversation_id}/proof")
def prove(api: Api) -> Call:
    return by_auditor(api, "proof.made", CONVERSATION, ids=with_conversation(api))


@act("POST", "/v1/audit/export")
def export(api: Api) -> Call:
    return by_auditor(api, "log.exported", json={"what": "events", "format": "jsonl"})


# -- conversations


@act("GET", "/v1/audit/conversations")
def list_conversations(api: Api) -> Call:
    return by_auditor(api, "conversations.searched")


@act("POST", "/v1/audit/conversations/search")
def search(api: Api) -> Call:
    return by_auditor(api, "conversations.searched", json={"words": "asthma"})


@act("GET", "/v1/audit/conversations/{conversation_id}")
def read_conversation(api: Api) -> Call:
    return by_auditor(api, "conversation.opened", CONVERSATION, ids=with_conversation(api))


@act("GET", "/v1/audit/conversations/{conversation_id}/images/{image_id}")
def look_at_picture(api: Api) -> Call:
    auditor, ids = api.person(Role.AUDITOR), with_picture(api)
    place = f"/v1/audit/conversations/{ids['conversation_id']}/reveal"
    api.client(auditor).post(place, json={"reason": "A complaint."}).raise_for_status()
    return call(auditor, ("conversation.revealed", CONVERSATION), ids=ids)


@act("POST", "/v1/audit/conversations/{conversation_id}/reveal")
def reveal(api: Api) -> Call:
    body = {"reason": "A complaint."}
    return by_auditor(api, "conversation.revealed", CONVERSATION, ids=with_conversation(api), json=body)


@act("POST", "/v1/audit/views")
def save_view(api: Api) -> Call:
    return by_auditor(api, "view.saved", "view:{id}", json={"name": "A view", "filters": {"flagged": True}})


@act("DELETE", "/v1/audit/views/{view_id}")
def remove_view(api: Api) -> Call:
    auditor = api.person(Role.AUDITOR)
    body = {"name": "A view", "filters": {"flagged": True}}
    ids = {"view_id": api.client(auditor).post("/v1/audit/views", json=body).json()["id"]}
    return call(auditor, ("view.removed", "view:{view_id}"), ids=ids)


# -- emergency access


def broken_in(api: Api, ids: dict[str, str] | None = None) -> tuple[Person, dict[str, str]]:
    """An admin with an emergency access; the grant's id and those of the conversation."""
    admin, ids = api.person(Role.ADMIN), ids or with_conversation(api)
    body = {"conversation_id": ids["conversation_id"], **BREAK_GLASS}
    made = api.client(admin).post("/v1/break-glass", json=body)
    return admin, {"grant_id": made.json()["id"], **ids}


@act("POST", "/v1/break-glass")
def break_glass(api: Api) -> Call:
    body = {**with_conversation(api), **BREAK_GLASS}
    event = ("break_glass.opened", f"conversation:{body['conversation_id']}")
    return call(api.person(Role.ADMIN), event, json=body)


@act("GET", "/v1/break-glass")
def list_accesses(api: Api) -> Call:
    return by_auditor(api, "break_glass.listed")


@act("POST", "/v1/break-glass/{grant_id}/end")
def end_access(api: Api) -> Call:
    admin, ids = broken_in(api)
    return call(admin, ("break_glass.ended", CONVERSATION), ids=ids)


@act("POST", "/v1/break-glass/{grant_id}/acknowledge")
def acknowledge_access(api: Api) -> Call:
    return by_auditor(api, "break_glass.acknowledged", CONVERSATION, ids=broken_in(api)[1])


@act("GET", "/v1/break-glass/{grant_id}/conversation")
def read_by_break_glass(api: Api) -> Call:
    admin, ids = broken_in(api)
    return call(admin, ("break_glass.read", CONVERSATION), ids=ids)


@act("GET", "/v1/break-glass/{grant_id}/images/{image_id}")
def look_at_picture_by_break_glass(api: Api) -> Call:
    admin, ids = broken_in(api, with_picture(api))
    return call(admin, ("break_glass.read", CONVERSATION), ids=ids)


# -- holds


@act("POST", "/v1/holds")
def place_hold(api: Api) -> Call:
    body = {"subject": f"user:{api.person().id}", "reference": "2026-1"}
    return by_auditor(api, "hold.placed", "hold:{id}", json=body)


@act("GET", "/v1/holds")
def list_holds(api: Api) -> Call:
    return by_auditor(api, "hold.read")


@act("POST", "/v1/holds/{hold_id}/lift")
def lift_hold(api: Api) -> Call:
    auditor = api.person(Role.AUDITOR)
    body = {"subject": f"user:{api.person().id}", "reference": "2026-1"}
    ids = {"hold_id": api.client(auditor).post("/v1/holds", json=body).json()["id"]}
    return call(auditor, ("hold.lifted", "hold:{hold_id}"), ids=ids)


# -- reviews


def in_review(api: Api, auditor: Person, *, upto: str = "") -> dict[str, str]:
    """An answer in the queue, with a draft of the auditor's if `upto` says so, or given; its ids."""
    client, job = api.client(auditor), answered(api)
    made = client.post("/v1/reviews", json={"job_id": job.id})
    item = str(made.json()["id"])
    if upto in ("draft", "given"):
        draft = {"verdict": "wrong", "corrected": "Ask a pharmacist."}
        client.put(f"/v1/reviews/{item}", json=draft).raise_for_status()
    if upto == "given":
        client.post(f"/v1/reviews/{item}/give").raise_for_status()
    return {"item_id": item, "conversation_id": str(job.conversation_id)}


def of_review(api: Api, action: str, upto: str = "", **request: Any) -> Call:
    """What is done to one's own review."""
    auditor = api.person(Role.AUDITOR)
    return call(auditor, (action, "review:{item_id}"), ids=in_review(api, auditor, upto=upto), **request)


@act("POST", "/v1/reviews")
def ask_for_review(api: Api) -> Call:
    return by_auditor(api, "review.asked_for", "review:{id}", json={"job_id": answered(api).id})


@act("POST", "/v1/reviews/next")
def take_next(api: Api) -> Call:
    auditor = api.person(Role.AUDITOR)
    return call(auditor, ("review.opened", CONVERSATION), ids=in_review(api, auditor))


@act("GET", "/v1/reviews/{item_id}")
def read_review(api: Api) -> Call:
    auditor = api.person(Role.AUDITOR)
    return call(auditor, ("review.read", CONVERSATION), ids=in_review(api, auditor))


@act("PUT", "/v1/reviews/{item_id}")
def draft(api: Api) -> Call:
    return of_review(api, "review.drafted", json={"verdict": "safe"})


@act("POST", "/v1/reviews/{item_id}/give")
def give(api: Api) -> Call:
    return of_review(api, "review.given", "draft")


@act("POST", "/v1/reviews/{item_id}/take-back")
def take_back(api: Api) -> Call:
    return of_review(api, "review.taken_back", "given")


@act("POST", "/v1/reviews/{item_id}/release")
def release(api: Api) -> Call:
    return of_review(api, "review.released", "draft")


@act("GET", "/v1/reviews/report")
def read_report(api: Api) -> Call:
    return by_auditor(api, "review.report_read")


@act("POST", "/v1/reviews/export")
def export_corrections(api: Api) -> Call:
    in_review(api, api.person(Role.AUDITOR), upto="given")
    return by_auditor(api, "review.exported", "export:*")


@act("POST", "/v1/datasets/from-reviews")
def make_dataset_of_reviews(api: Api) -> Call:
    in_review(api, api.person(Role.AUDITOR), upto="given")
    return call(
        api.person(Role.ADMIN), ("dataset.received", "dataset:{id}"), json={"name": f"Set {new_id()}"}
    )
