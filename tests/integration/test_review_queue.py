"""The queue of the review: which answers join it, in which order, and how often each is handed out."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest
from sqlalchemy import select

from shared.auth.roles import Role
from shared.db.tables import data_keys, feedback, messages
from shared.db.tables_review import review_items, review_marks, reviews
from shared.errors import Conflict, InvalidInput, NotFound
from shared.guard.gate import REFERRAL_ADDED
from shared.guard.verdict import Action, Category, Severity, Side, Verdict
from shared.ids import first_id_at
from shared.jobs.records import Job
from shared.review import filling, taking
from shared.review.filling import Filling
from shared.review.records import Item, Review
from shared.review.rules import Reason, ReviewVerdict
from tests.conftest import MakeApi
from tests.support import Api, Person, ask_async, wait_until

PAST = datetime(2026, 1, 1, tzinfo=UTC)
REPLACED = Verdict(
    side=Side.ANSWER, action=Action.REPLACE, category=Category.DOSING, severity=Severity.HIGH, source="a.rule"
)
GRAVE = Verdict(
    side=Side.ANSWER,
    action=Action.REPLACE,
    category=Category.SELF_HARM,
    severity=Severity.CRITICAL,
    source="b",
)
DOUBTED = Verdict(
    side=Side.ANSWER, action=Action.ESCALATE, category=Category.DOSING, severity=Severity.MEDIUM, source="c"
)


@pytest.fixture
def resting(make_api: MakeApi) -> Api:
    """A gateway whose maintenance rests after its first round, and that draws no sample."""
    api = make_api(reconcile_s=600, review_sample_percent=0, review_double_percent=0)
    api.wait_for_maintenance()
    return api


@pytest.fixture(params=["sqlite"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Most of it means the same to every database; what locks rows says that it runs on both."""
    return str(request.param)


both = pytest.mark.parametrize("dialect", ["sqlite", "postgresql"], indirect=True)


def answered(api: Api, verdict: Verdict = Verdict.ALLOWED) -> Job:
    """An answer of one sentence, about which the guard said this."""
    ask_async(api.log_in())
    job = api.claim()
    api.release(
        job, "See a doctor.", verdict=verdict, suppressed="Take fifty." if not verdict.allowed else ""
    )
    return api.finish(job)


def rate(api: Api, job: Job, rating: str) -> None:
    """The reader rates an answer."""
    with api.gateway.database.write() as connection:
        answer = connection.execute(select(messages).where(messages.c.job_id == job.id)).one()
        row = {"message_id": answer.id, "user_id": job.user_id, "rating": rating, "key_id": answer.key_id}
        connection.execute(feedback.insert().values(**row, updated_at=api.gateway.clock.now(connection)))


def fill(api: Api, **settings: float) -> int:
    """One round, with shares of its own if any are given."""
    gateway = api.gateway
    settings = {"review_sample_percent": 0, "review_double_percent": 0, **settings}
    made = Filling(gateway.envelope, gateway.clock, api.settings.model_copy(update=settings))
    return made.fill(gateway.database)


def reasons(api: Api) -> dict[str, str]:
    with api.gateway.database.read() as connection:
        return {row.job_id: row.reason for row in connection.execute(select(review_items))}


def take(api: Api, person: Person) -> Item | None:
    with api.gateway.database.write() as connection:
        now = api.gateway.clock.now(connection)
        taken = taking.take_next(connection, api.gateway.envelope, person.id, now)
    return None if taken is None else taken[0]


def save(api: Api, person: Person, item: Item, **draft: object) -> Review:
    with api.gateway.database.write() as connection:
        now = api.gateway.clock.now(connection)
        return api.gateway.reviews.save(connection, item.id, person.id, draft, now)[0]


def give(api: Api, person: Person, item: Item) -> Review:
    with api.gateway.database.write() as connection:
        now = api.gateway.clock.now(connection)
        return api.gateway.reviews.give(connection, item.id, person.id, now)[0]


def judge(api: Api, person: Person, item: Item, verdict: ReviewVerdict = ReviewVerdict.WRONG) -> Review:
    save(api, person, item, verdict=verdict, guard_right=True)
    return give(api, person, item)


# -- filling


@both
def test_what_the_guard_did_and_what_its_reader_disliked_is_reviewed_and_nothing_else(resting: Api) -> None:
    plain, liked, disliked = (answered(resting) for _ in range(3))
    rate(resting, liked, "up")
    rate(resting, disliked, "down")
    stepped_in, appended, doubted = (answered(resting, each) for each in (REPLACED, REFERRAL_ADDED, DOUBTED))
    assert fill(resting) == 4
    assert reasons(resting) == {
        disliked.id: Reason.THUMBS_DOWN,
        stepped_in.id: Reason.GUARD,
        appended.id: Reason.GUARD,
        doubted.id: Reason.DOUBT,
    }
    assert plain.id not in reasons(resting)


def test_a_crisis_that_was_answered_at_once_is_reviewed(resting: Api) -> None:
    job = resting.log_in().post("/predict", json={"query": "I want to kill myself"}).json()["job_id"]
    fill(resting)
    assert reasons(resting) == {job: Reason.GUARD}


def test_a_second_look_changes_nothing(resting: Api) -> None:
    answered(resting, REPLACED)
    assert [fill(resting), fill(resting)] == [1, 0]


def test_the_maintenance_of_the_gateway_fills_the_queue(make_api: MakeApi) -> None:
    api = make_api(review_sample_percent=100)
    job = answered(api)
    assert wait_until(lambda: reasons(api), 10, "for the queue") == {job.id: Reason.SAMPLE}


def test_a_thumbs_down_moves_what_waits_already_up(resting: Api) -> None:
    job = answered(resting, DOUBTED)
    fill(resting)
    rate(resting, job, "down")
    assert fill(resting) == 0
    assert reasons(resting) == {job.id: Reason.THUMBS_DOWN}


def test_an_answer_that_was_committed_late_is_not_missed(resting: Api) -> None:
    answered(resting, REPLACED)
    fill(resting)
    late = answered(resting, REPLACED)
    begun = first_id_at(datetime.now(UTC) - filling.OVERLAP / 2)
    resting.set(messages, messages.c.job_id == late.id, id=begun)  # numbered when its transaction began
    assert fill(resting) == 1


def test_more_than_one_round_takes_is_looked_at_by_later_rounds(
    resting: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "ROWS", 2)
    monkeypatch.setattr(filling, "OVERLAP", timedelta(0))
    monkeypatch.setattr(filling, "_STEP", timedelta(0))
    jobs = [answered(resting, REPLACED) for _ in range(5)]
    rounds = 0
    while fill(resting):
        rounds += 1
        assert resting.count(review_marks) == 2
    assert rounds >= 3
    assert set(reasons(resting)) == {job.id for job in jobs}


def test_what_was_erased_neither_joins_nor_stays(resting: Api) -> None:
    stays, goes, never = (answered(resting, REPLACED) for _ in range(3))
    resting.set(data_keys, data_keys.c.owner_id == never.conversation_id, wrapped_key=None)
    fill(resting)
    assert set(reasons(resting)) == {stays.id, goes.id}
    resting.set(data_keys, data_keys.c.owner_id == goes.conversation_id, wrapped_key=None)
    auditor = resting.person(Role.AUDITOR)
    item = take(resting, auditor)
    assert item is not None
    assert item.job_id == stays.id
    with resting.gateway.database.write() as connection:
        filling.close_erased(connection, resting.gateway.clock.now(connection))
    assert resting.count(review_items, review_items.c.closed_at.is_(None)) == 1


def test_the_sample_and_the_overlap_are_the_shares_that_were_asked_for_and_always_the_same(
    resting: Api,
) -> None:
    row = resting.gateway.filling._row
    made = Filling(
        resting.gateway.envelope,
        resting.gateway.clock,
        resting.settings.model_copy(update={"review_sample_percent": 20, "review_double_percent": 30}),
    )
    ids = [f"job-{number}" for number in range(1000)]
    rows = [made._row(each, "c", filling.GuardDone(), None) for each in ids]
    found = [each for each in rows if each is not None]
    assert 160 < len(found) < 240
    assert 0.2 < sum(each["wanted"] == 2 for each in found) / len(found) < 0.4
    assert rows == [made._row(each, "c", filling.GuardDone(), None) for each in ids]
    assert not any(row(each, "c", filling.GuardDone(), None) for each in ids)


def test_what_the_sample_draws_is_marked_so_whatever_else_it_is_reviewed_for(resting: Api) -> None:
    answered(resting, REPLACED)
    fill(resting, review_sample_percent=100)
    assert (
        resting.count(review_items, review_items.c.sampled.is_(True), review_items.c.reason == "guard") == 1
    )


# -- handing out


def test_the_gravest_comes_first_then_by_reason_and_the_oldest_first_within(resting: Api) -> None:
    doubted, replaced = answered(resting, DOUBTED), answered(resting, REPLACED)
    disliked, later = answered(resting), answered(resting, REPLACED)
    rate(resting, disliked, "down")
    grave = answered(resting, GRAVE)
    fill(resting)
    auditor, order = resting.person(Role.AUDITOR), []
    while (item := take(resting, auditor)) is not None:
        order.append(item.job_id)
        judge(resting, auditor, item)
    assert order == [grave.id, disliked.id, replaced.id, later.id, doubted.id]


def test_who_is_at_an_item_gets_it_again_and_nobody_else_does(resting: Api) -> None:
    answered(resting, REPLACED)
    fill(resting)
    first, second = resting.person(Role.AUDITOR), resting.person(Role.AUDITOR)
    item = take(resting, first)
    assert item is not None
    assert take(resting, first) == item
    assert take(resting, second) is None


def test_an_item_at_which_nobody_works_goes_back_and_its_draft_is_kept(resting: Api) -> None:
    answered(resting, REPLACED)
    fill(resting)
    first, second = resting.person(Role.AUDITOR), resting.person(Role.AUDITOR)
    item = take(resting, first)
    assert item is not None
    save(resting, first, item, note="A thought.")
    resting.set(reviews, reviews.c.reviewer_id == first.id, taken_at=PAST)
    assert take(resting, second) == item
    with pytest.raises(Conflict):
        save(resting, first, item, note="Another thought.")
    with resting.gateway.database.write() as connection:
        taking.release(connection, item.id, second.id, resting.gateway.clock.now(connection))
    assert take(resting, first) == item
    with resting.gateway.database.read() as connection:
        mine, _ = resting.gateway.reviews.reviews_of(connection, item, first.id)
    assert mine is not None
    assert mine.draft.note == "A thought."


def test_what_was_given_back_is_offered_last(resting: Api) -> None:
    for _ in range(3):
        answered(resting, REPLACED)
    fill(resting)
    auditor, order = resting.person(Role.AUDITOR), []
    for _ in range(5):
        item = take(resting, auditor)
        assert item is not None
        order.append(item.id)
        with resting.gateway.database.write() as connection:
            taking.release(connection, item.id, auditor.id, resting.gateway.clock.now(connection))
    assert len(set(order[:3])) == 3
    assert order[3:] == order[:2]


def test_a_search_ends_after_many_items_that_cannot_be_opened(
    resting: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [answered(resting, REPLACED) for _ in range(3)]
    fill(resting)
    auditor = resting.person(Role.AUDITOR)
    for job in jobs[:2]:
        resting.set(data_keys, data_keys.c.owner_id == job.conversation_id, wrapped_key=b"damaged")
    monkeypatch.setattr(taking, "_MOST_SHUT", 2)
    assert take(resting, auditor) is None
    monkeypatch.setattr(taking, "_MOST_SHUT", 3)
    item = take(resting, auditor)
    assert item is not None
    assert item.job_id == jobs[2].id


def test_what_a_lost_master_key_shut_comes_after_all_others(
    resting: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [answered(resting, REPLACED) for _ in range(3)]
    fill(resting)
    for job in jobs[:2]:
        resting.set(data_keys, data_keys.c.owner_id == job.conversation_id, master_key_version=99)
    monkeypatch.setattr(taking, "_MOST_SHUT", 1)
    item = take(resting, resting.person(Role.AUDITOR))
    assert item is not None
    assert item.job_id == jobs[2].id


def test_what_two_shall_review_is_handed_to_two_and_neither_sees_the_other_before_giving(
    resting: Api,
) -> None:
    answered(resting, REPLACED)
    fill(resting, review_double_percent=100)
    people = [resting.person(Role.AUDITOR) for _ in range(3)]
    items = [take(resting, person) for person in people]
    item = items[0]
    assert item is not None
    assert items == [item, item, None]
    judge(resting, people[0], item)

    def others(person: Person) -> list[Review]:
        assert item is not None
        with resting.gateway.database.read() as connection:
            return resting.gateway.reviews.reviews_of(connection, item, person.id)[1]

    save(resting, people[1], item, note="Mine.")
    assert others(people[1]) == others(people[2]) == []
    judge(resting, people[1], item, ReviewVerdict.SAFE)
    assert [each.draft.verdict for each in others(people[1])] == [ReviewVerdict.WRONG]
    assert resting.count(review_items, review_items.c.closed_at.is_(None)) == 0


@both
def test_two_at_once_never_get_the_same_single_item(resting: Api) -> None:
    for _ in range(6):
        answered(resting, REPLACED)
    fill(resting)
    people = [resting.person(Role.AUDITOR) for _ in range(8)]
    together = Barrier(len(people))

    def race(person: Person) -> str | None:
        together.wait(10)
        item = take(resting, person)
        return None if item is None else item.id

    with ThreadPoolExecutor(len(people)) as pool:
        taken = [each for each in pool.map(race, people) if each is not None]
    assert len(taken) == len(set(taken)) == 6


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_who_looked_before_another_took_it_counts_again(
    resting: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(resting, REPLACED)
    fill(resting)
    slow, quick = resting.person(Role.AUDITOR), resting.person(Role.AUDITOR)
    find, taken = taking.find, []

    def after_the_quick_one(*args: object, **more: object) -> object:
        if not taken:
            taken.append(None)
            taken.append(take(resting, quick))
        return find(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(taking, "find", after_the_quick_one)
    assert take(resting, slow) is None
    assert taken[1] is not None


# -- reviews


@pytest.mark.parametrize(
    ("draft", "missing"),
    [
        ({}, "verdict"),
        ({"verdict": ReviewVerdict.UNSAFE, "guard_right": True}, "category"),
        ({"verdict": ReviewVerdict.SAFE}, "guard"),
    ],
)
def test_a_review_that_is_not_whole_is_not_taken(
    resting: Api, draft: dict[str, object], missing: str
) -> None:
    answered(resting, REPLACED)
    fill(resting)
    auditor = resting.person(Role.AUDITOR)
    item = take(resting, auditor)
    assert item is not None
    save(resting, auditor, item, **draft)
    with pytest.raises(InvalidInput, match=missing):
        give(resting, auditor, item)
    assert resting.count(reviews, reviews.c.given_at.is_not(None)) == 0


def test_what_is_said_of_a_guard_that_did_nothing_and_a_category_without_danger_is_not_kept(
    resting: Api,
) -> None:
    answered(resting, DOUBTED)
    fill(resting)
    auditor = resting.person(Role.AUDITOR)
    item = take(resting, auditor)
    assert item is not None
    save(resting, auditor, item, verdict=ReviewVerdict.SAFE, category="dosing", guard_right=False)
    given = give(resting, auditor, item)
    assert (given.draft.category, given.draft.guard_right) == (None, None)


def test_a_given_review_can_be_taken_back_for_a_day(resting: Api) -> None:
    answered(resting, REPLACED)
    fill(resting)
    auditor, other = resting.person(Role.AUDITOR), resting.person(Role.AUDITOR)
    item = take(resting, auditor)
    assert item is not None
    judge(resting, auditor, item)
    with pytest.raises(Conflict, match="take it back"):
        save(resting, auditor, item, note="Too late.")

    def take_back() -> None:
        with resting.gateway.database.write() as connection:
            now = resting.gateway.clock.now(connection)
            resting.gateway.reviews.take_back(connection, item.id, auditor.id, now)

    take_back()
    assert take(resting, other) is None, "who took it back holds it"
    assert take(resting, auditor) is not None
    give(resting, auditor, item)
    resting.set(reviews, reviews.c.item_id == item.id, given_at=PAST)
    with pytest.raises(Conflict, match="for a day"):
        take_back()


def test_an_answer_can_be_put_into_the_queue_by_hand_and_once_more_after_its_review(resting: Api) -> None:
    job = answered(resting)
    first, second = resting.person(Role.AUDITOR), resting.person(Role.AUDITOR)

    def ask_for(job_id: str) -> Item:
        with resting.gateway.database.write() as connection:
            now = resting.gateway.clock.now(connection)
            return resting.gateway.reviews.ask_for(connection, job_id, now)

    item = ask_for(job.id)
    assert (item.reason, item.wanted) == (Reason.ASKED, 1)
    assert ask_for(job.id) == item
    assert take(resting, first) == item
    judge(resting, first, item)
    again = ask_for(job.id)
    assert (again.wanted, again.closed_at) == (2, None)
    assert take(resting, first) is None
    assert take(resting, second) == again
    with pytest.raises(NotFound):
        ask_for("01a20ced-32e0-731b-806d-a95e481a1022")
