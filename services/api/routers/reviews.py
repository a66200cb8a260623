"""The review of answers, for auditors: take one, write a draft, give it. Opening one is logged first."""

from dataclasses import asdict, replace

from fastapi import APIRouter, Response
from sqlalchemy import Connection

from services.api.access import transcript_of
from services.api.deps import Auditor, GatewayDep
from services.api.errors import document
from services.api.schemas_review import (
    AskedForView,
    AskForReviewBody,
    DraftBody,
    NextReviewView,
    OwnReviewView,
    QueueOfReviewsView,
    ReviewItemView,
    ReviewView,
)
from services.api.schemas_transcripts import TranscriptView
from services.api.state import Gateway
from shared.audit import record
from shared.auth.sessions import Principal
from shared.review import taking
from shared.review.records import Item, Review
from shared.transcripts import Transcript

router = APIRouter(prefix="/v1/reviews", tags=["reviews"])

#: Own reviews that the list names.
_OWN = 20


@router.get("", responses=document(401, 403, 429))
def list_reviews(caller: Auditor, gateway: GatewayDep) -> QueueOfReviewsView:
    """What waits, by why it is in the queue, and one's own newest reviews and drafts."""
    with gateway.database.read() as connection:
        now = gateway.clock.now(connection)
        waiting = taking.waiting(connection, caller.user_id, now)
        return QueueOfReviewsView(
            waiting=waiting,
            held_by_others=taking.held_by_others(connection, caller.user_id, now),
            closed=taking.done(connection),
            mine=[
                OwnReviewView(
                    item_id=row.item_id,
                    reason=row.reason,
                    state="given" if row.given_at else "held" if taking.is_held(row, now) else "draft",
                    verdict=row.verdict,
                    category=row.category,
                    changed_at=row.changed_at,
                    given_at=row.given_at,
                )
                for row in taking.newest_of(connection, caller.user_id, _OWN)
            ],
        )


@router.post("", status_code=201, responses=document(401, 403, 404, 410, 413, 422, 429))
def ask_for_review(body: AskForReviewBody, caller: Auditor, gateway: GatewayDep) -> AskedForView:
    """Put an answer into the queue by hand; one that was reviewed already is reviewed by one more person."""
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        item = gateway.reviews.ask_for(connection, body.job_id, now)
        _log(connection, gateway, caller, "review.asked_for", item)
    return AskedForView.model_validate(asdict(item))


@router.post("/next", responses=document(401, 403, 410, 429))
def take_next(caller: Auditor, gateway: GatewayDep) -> NextReviewView:
    """The answer that one is at, else the best that waits: held for half an hour after each change.

    What one gave back is offered last; what cannot be opened with its key is passed over.
    """
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        taken = taking.take_next(connection, gateway.envelope, caller.user_id, now)
        if taken is not None:
            item, new = taken
            _log(connection, gateway, caller, "review.opened" if new else "review.read", item, whole=True)
    return NextReviewView(item=None if taken is None else _view(gateway, caller, taken[0]))


@router.get("/{item_id}", responses=document(401, 403, 404, 410, 429))
def read_review(item_id: str, caller: Auditor, gateway: GatewayDep) -> ReviewItemView:
    """An answer of the queue with one's own review; nobody holds it because of this."""
    with gateway.database.write() as connection:
        item = gateway.reviews.item(connection, item_id)
        _log(connection, gateway, caller, "review.read", item, whole=True)
    return _view(gateway, caller, item)


@router.put("/{item_id}", responses=document(401, 403, 404, 409, 410, 413, 422, 429))
def save_draft(item_id: str, body: DraftBody, caller: Auditor, gateway: GatewayDep) -> ReviewView:
    """Change fields of the draft; one holds the answer from now on, also when nothing is sent (`{}`).

    A field that is left out stays as it is; null clears it.
    Refused when as many others as are wanted have it, or when one has given the review.
    """
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        changes = body.model_dump(exclude_unset=True)
        review, changed = gateway.reviews.save(connection, item_id, caller.user_id, changes, now)
        if changed:
            _log(connection, gateway, caller, "review.drafted", gateway.reviews.item(connection, item_id))
    return _review_view(review)


@router.post("/{item_id}/give", responses=document(401, 403, 404, 409, 410, 422, 429))
def give_review(item_id: str, caller: Auditor, gateway: GatewayDep) -> ReviewView:
    """Give the draft as one's review: it needs a verdict, a category where that is `unsafe`, and whether the
    guard was right where it stepped in. Giving it again changes nothing.
    """
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        review, bound = gateway.reviews.give(connection, item_id, caller.user_id, now)
        if bound is not None:
            # without what it says: a second reviewer, who may read the log, must not know that
            item = gateway.reviews.item(connection, item_id)
            _log(connection, gateway, caller, "review.given", item, bound=bound)
    return _review_view(review)


@router.post("/{item_id}/take-back", responses=document(401, 403, 404, 409, 410, 429))
def take_back_review(item_id: str, caller: Auditor, gateway: GatewayDep) -> ReviewView:
    """Make a review that one gave within a day a draft again; refused once another has given theirs."""
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        review = gateway.reviews.take_back(connection, item_id, caller.user_id, now)
        _log(connection, gateway, caller, "review.taken_back", gateway.reviews.item(connection, item_id))
    return _review_view(review)


@router.post("/{item_id}/release", status_code=204, responses=document(401, 403, 404, 429))
def release_review(item_id: str, caller: Auditor, gateway: GatewayDep) -> Response:
    """Give an answer back unreviewed, for others to take; one's draft of it is kept."""
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        if taking.release(connection, item_id, caller.user_id, now):
            _log(connection, gateway, caller, "review.released", gateway.reviews.item(connection, item_id))
    return Response(status_code=204)


def _log(
    connection: Connection,
    gateway: Gateway,
    caller: Principal,
    action: str,
    item: Item,
    *,
    whole: bool = False,
    bound: dict[str, str] | None = None,
) -> None:
    """Log an act; `whole`: it shows a conversation, which is then what was acted on; `bound`: to a review."""
    record.append(
        connection,
        now=gateway.clock.now(connection),
        actor=caller.actor,
        action=action,
        object=f"conversation:{item.conversation_id}" if whole else f"review:{item.id}",
        details={"item": item.id, "conversation": item.conversation_id, "job": item.job_id, **(bound or {})},
    )


def _view(gateway: Gateway, caller: Principal, item: Item) -> ReviewItemView:
    with gateway.database.read() as connection:
        mine, others = gateway.reviews.reviews_of(connection, item, caller.user_id)
        stepped_in = gateway.reviews.guard_done(connection, item).stepped_in
    transcript = _up_to(transcript_of(gateway, item.conversation_id, mask=True), item.job_id)
    return ReviewItemView(
        **asdict(item),
        stepped_in=stepped_in,
        mine=None if mine is None else _review_view(mine),
        others=[_review_view(each) for each in others],
        transcript=TranscriptView.model_validate(transcript),
    )


def _up_to(transcript: Transcript, job_id: str) -> Transcript:
    """The conversation up to and including this answer."""
    places = [place for place, turn in enumerate(transcript.turns) if turn.job_id == job_id]
    return replace(transcript, turns=transcript.turns[: places[-1] + 1] if places else transcript.turns)


def _review_view(review: Review) -> ReviewView:
    return ReviewView(
        **asdict(review.draft),
        changed_at=review.changed_at,
        given_at=review.given_at,
    )
