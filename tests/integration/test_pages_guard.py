"""The dashboard's page of the guard, run by Streamlit's own test runner against a real gateway."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from streamlit.dataframe_util import convert_arrow_bytes_to_pandas_df
from streamlit.testing.v1 import AppTest

from shared.auth.roles import Role
from shared.conversations import StoredVerdict
from shared.db.tables_guard import guard_replays
from shared.guard.policy import packaged_policy, version_of
from shared.guard.verdict import Action, Category, Side, Verdict
from shared.jobs.lifecycle import EventKind, Kind
from shared.policies.live import Standing
from shared.policies.replays import ReplayStore
from shared.registration import Registration
from tests.pages import button, charts, choose, open_with, served_by, texts
from tests.policies import DOSE, activate, add_version, knobs
from tests.support import Api, Person, ask_async

PACKAGED = version_of(packaged_policy())
Open = Callable[..., AppTest]


@pytest.fixture
def dialect() -> str:
    """The pages know no database."""
    return "sqlite"


@pytest.fixture
def admin(api: Api) -> Person:
    return api.person(Role.ADMIN)


@pytest.fixture
def client(api: Api, admin: Person) -> httpx.Client:
    return api.client(admin)


@pytest.fixture
def open_app(api: Api, admin: Person, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens the page of the guard, as the admin unless it is said who."""

    def open_(person: Person | None = None, page: str = "guard", **query: str) -> AppTest:
        return open_with(monkeypatch, api.browser_token(person or admin), page=page, **query)

    with served_by(api, monkeypatch):
        yield open_


def tables(app: AppTest) -> str:
    """Everything in the page's tables."""
    return "\n".join(each.value.to_string() for each in app.dataframe)


def classifier(**changes: str) -> dict[str, str]:
    """policy.yaml with these thresholds of the classifier, or of the judge, changed."""
    text = packaged_policy()["policy.yaml"]
    for name, value in changes.items():
        text = re.sub(rf"^  {name}: .*$", f"  {name}: {value}", text, count=1, flags=re.MULTILINE)
    return {"policy.yaml": text}


def press(app: AppTest, key: str) -> AppTest:
    """Click the button of this key."""
    return next(each for each in app.button if each.key == key).click().run()


def judge(app: AppTest, text: str, **choices: str) -> AppTest:
    app.text_area(key="try-text").set_value(text)
    for name, value in choices.items():
        app.radio(key=f"try-{name}").set_value(value)
    return button(app, "Judge").click().run()


def edit(app: AppTest, name: str, text: str, note: str = "A test.") -> AppTest:
    """Choose a file, replace its text and write a note."""
    next(each for each in app.selectbox if each.label == "File").set_value(name).run()
    next(each for each in app.text_area if each.label.startswith(name)).set_value(text).run()
    return (
        next(each for each in app.text_input if each.label.startswith("What is different"))
        .set_value(note)
        .run()
    )


# -- what counts


def test_the_page_says_which_version_counts_and_what_it_holds(open_app: Open, client: httpx.Client) -> None:
    app = open_app()
    assert f"Version `{PACKAGED}` (the packaged one) judges." in texts(app)
    assert "Nothing was ever activated" in texts(app)
    version = add_version(client, refer="[dosing]")
    activate(client, version)
    app = open_app()
    assert f"Version `{version}` judges." in texts(app)
    assert "this gateway" in tables(app)


def test_people_who_ask_have_no_such_page(open_app: Open, api: Api) -> None:
    assert [each.value for each in open_app(api.person()).title] == []


# -- trying


def test_a_sentence_is_tried_and_the_page_says_why(open_app: Open, api: Api) -> None:
    app = judge(open_app(), f"\n  {DOSE.strip()}")
    assert not app.exception
    assert any("**Replace**: dosing" in each.value for each in app.warning)
    assert api.gateway.guard.responses().replacement("dosing") in texts(app)  # type: ignore[arg-type]
    assert "dosing.no_limit" in tables(app)
    assert ":orange-background[as many of these tablets as you]" in texts(app)


def test_a_harmless_sentence_is_allowed(open_app: Open) -> None:
    app = judge(open_app(), "Rest well.")
    assert any("**Allowed**: nothing found." in each.value for each in app.success)


def test_a_sentence_that_is_only_flagged_is_said_to_be_shown(open_app: Open, client: httpx.Client) -> None:
    activate(client, add_version(client, classifier(flag="0.0001")))
    app = judge(open_app(), "Rest well.")
    assert any("**Shown as it is, and flagged in the log for a reviewer**" in e.value for e in app.info)
    assert "What is said instead" not in texts(app)


def test_what_the_model_would_be_asked_about_is_said_not_to_be_asked_here(
    open_app: Open, client: httpx.Client
) -> None:
    assert "not asked here" not in tables(judge(open_app(), "Rest well."))
    activate(client, add_version(client, classifier(ask_from="0.0")))
    assert "not asked here" in tables(judge(open_app(), "Rest well."))


def test_what_is_tried_is_shown_as_it_was_written(open_app: Open) -> None:
    app = judge(open_app(), "![x](http://evil.example/x) " + DOSE.strip())
    assert "![x](" not in texts(app)


# -- versions


def test_a_copy_is_edited_stored_and_activated(open_app: Open, api: Api) -> None:
    app = edit(open_app(), "policy.yaml", knobs(refer="[dosing]")["policy.yaml"])
    assert "Changed: policy.yaml." in texts(app)
    app = press(app, "store-version")
    assert not app.exception
    (event,) = api.audit("policy.added")
    version = str(event.object).removeprefix("policy:")
    assert version in tables(app)
    assert "+    refer: [dosing]" in texts(app)
    assert "-    refer: []" in texts(app)
    app = press(app, "activate-yes")
    assert f"Version `{version}` judges." in texts(app)
    assert api.gateway.guard.policy_version == version


def test_a_bad_edit_is_refused_with_the_line_that_is_wrong(open_app: Open, api: Api) -> None:
    bad = packaged_policy()["policy.yaml"].replace("refer: []", "refer: [dosage]", 1)
    app = press(edit(open_app(), "policy.yaml", bad), "store-version")
    line = bad[: bad.index("refer: [dosage]")].count("\n") + 1
    assert any(f"line {line}" in each.value for each in app.error)
    assert f">  {line:3}     refer: [dosage]" in texts(app)
    assert "Changed: policy.yaml." in texts(app), "the edit is still there"
    assert api.audit("policy.added") == []


def test_a_refused_edit_is_not_shown_beside_another_version(open_app: Open, client: httpx.Client) -> None:
    version = add_version(client, refer="[dosing]")
    bad = packaged_policy()["policy.yaml"].replace("refer: []", "refer: [dosage]", 1)
    app = press(edit(open_app(), "policy.yaml", bad), "store-version")
    assert len(app.error) == 1
    choose(app, "Version", version)
    assert f"a copy of version {version}" in str([each.label for each in app.text_area])
    assert len(app.error) == 0


def test_of_two_versions_chosen_one_after_the_other_each_is_shown(
    open_app: Open, client: httpx.Client
) -> None:
    one, other = (add_version(client, refer=words) for words in ("[dosing]", "[interaction]"))
    app = open_app()
    for version in (one, other, PACKAGED):
        choose(app, "Version", version)
        assert f"a copy of version {version}" in str([each.label for each in app.text_area])
        assert app.query_params["v"] == version


def test_after_a_choice_the_address_still_says_which_version_is_shown(
    open_app: Open, client: httpx.Client
) -> None:
    version = add_version(client, refer="[dosing]")
    app = choose(open_app(v=version), "Version", PACKAGED)
    assert f"a copy of version {PACKAGED}" in str([each.label for each in app.text_area])
    app.query_params["v"] = version
    app.run()
    assert f"a copy of version {version}" in str([each.label for each in app.text_area])


def test_a_version_that_there_is_not_leaves_the_one_that_counts(open_app: Open, client: httpx.Client) -> None:
    add_version(client, refer="[dosing]")
    app = open_app(v="0123456789ab")
    assert not app.exception
    assert f"a copy of version {PACKAGED}" in str([each.label for each in app.text_area])


def test_a_version_judges_in_the_shadow_and_is_ended(open_app: Open, client: httpx.Client) -> None:
    version = add_version(client, refer="[dosing]")
    app = press(open_app(v=version), "shadow-yes")
    assert f"Version `{version}` judges in the shadow." in texts(app)
    assert f"Version {version} has judged 0 sentences so far." in texts(app)
    app = press(app, "end-shadow-yes")
    assert "judges in the shadow." not in texts(app)


def test_a_shadow_that_finds_nothing_says_what_it_did_not_look_at(
    open_app: Open, api: Api, client: httpx.Client
) -> None:
    version = add_version(client, refer="[dosing]")
    client.post(f"/v1/guard/policies/{version}/shadow").raise_for_status()
    ask_async(api.log_in())
    job = api.answer(DOSE)
    referred = Verdict(side=Side.ANSWER, action=Action.APPEND, category=Category.DOSING)
    stored = StoredVerdict(verdict=referred, policy_version=version, text=DOSE, shadow_of=1)
    gateway = api.gateway
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        gateway.conversations.store_verdict(connection, job_id=job.id, stored=stored, now=now)
    app = open_app()
    assert f"Version {version} has judged 1 sentence" in texts(app)
    (said,) = (each.value for each in app.success)
    assert said == (
        "No sentence would be newly stopped or released. "
        "Questions, flags and referrals are not counted here: replay."
    )


def test_a_roll_back_brings_the_version_before_back(open_app: Open, client: httpx.Client) -> None:
    activate(client, add_version(client, refer="[dosing]"))
    app = press(open_app(), "roll-back-yes")
    assert f"Version `{PACKAGED}` (the packaged one) judges." in texts(app)


def test_the_packaged_policy_is_rolled_back_too(open_app: Open, client: httpx.Client) -> None:
    version = add_version(client, refer="[dosing]")
    activate(client, version)
    activate(client, PACKAGED)
    app = press(open_app(), "roll-back-yes")
    assert f"Version `{version}` judges." in texts(app)


def test_a_process_that_cannot_follow_is_named(open_app: Open, api: Api, client: httpx.Client) -> None:
    now = api.gateway.guards.now
    api.judge_with(Standing(guard=now.guard, refused="0123456789ab"))
    assert any("cannot compile version 0123456789ab" in each.value for each in open_app().error)


def test_a_shadow_that_cannot_be_compiled_is_to_be_ended_and_nothing_rolled_back(
    open_app: Open, api: Api
) -> None:
    now = api.gateway.guards.now
    api.judge_with(Standing(guard=now.guard, shadow_refused="0123456789ab"))
    (error,) = open_app().error
    assert "cannot compile version 0123456789ab for the shadow" in error.value
    assert "End the shadow" in error.value
    assert "Roll back" not in error.value


def test_how_many_sentences_the_shadow_left_out_stands_beside_its_process(open_app: Open, api: Api) -> None:
    gateway = api.gateway
    worker = Registration(gateway.database, gateway.clock, "infer@host:1")
    worker.enter(Kind.INFER, "demo", {})
    worker.report({**gateway.guards.stats(), "shadow_left_out": 3})
    (table,) = (each.value for each in open_app().dataframe if "judges under" in each.value)
    assert table.set_index("process")["left out by the shadow"]["infer@host:1"] == 3


# -- the stop switch


def test_answers_are_stopped_with_a_reason_and_started_again(open_app: Open, api: Api) -> None:
    app = open_app()
    next(each for each in app.text_area if each.label.startswith("Reason")).set_value("Wrong doses.").run()
    app = press(app, "stop-answers-yes")
    assert any("**All answers are stopped**" in e.value and "Wrong doses." in e.value for e in app.error)
    assert api.gateway.guards.now.stopped
    app = press(app, "start-answers-yes")
    assert not any("All answers are stopped" in each.value for each in app.error)
    assert not api.gateway.guards.now.stopped


def test_people_see_that_answers_are_stopped(open_app: Open, api: Api, client: httpx.Client) -> None:
    client.post("/v1/guard/stop", json={"reason": "Wrong doses."})
    app = open_app(api.person(), page="")
    assert any("Answers are stopped for now." in each.value for each in app.error)
    assert "Wrong doses." not in texts(app)


# -- replays


def replay(api: Api, client: httpx.Client, counts: dict[str, Any], changes: list[dict[str, Any]]) -> str:
    """A finished replay with these numbers."""
    found = client.post(f"/v1/guard/policies/{PACKAGED}/replays", json={"answers": 5}).json()
    gateway = api.gateway
    job = api.claim(kind=Kind.REPLAY)
    with gateway.database.write() as connection:
        ReplayStore(gateway.jobs).record_end(connection, job.claim, counts=counts, changes=changes)
        gateway.jobs.finish(connection, job.claim, EventKind.SUCCEEDED)
    return str(found["id"])


COUNTS = {
    "answers": 5,
    "sentences": 9,
    "questions": 5,
    "erased": 1,
    "by_model": 4,
    "changed": {"dosing": 5, "interaction": 1},
    "newly_stopped": {"dosing": 2},
    "newly_released": {"dosing": 1},
}


def test_a_replay_is_asked_for_and_followed(open_app: Open, api: Api) -> None:
    app = open_app()
    assert "No replay yet." in texts(app)
    app = button(app, "Replay").click().run()
    assert "Waiting for a training worker" in "\n".join(each.proto.text for each in app.get("progress"))
    assert len(api.audit("replay.submitted")) == 1


def test_a_replays_counts_are_drawn_and_its_texts_kept_from_admins(
    open_app: Open, api: Api, client: httpx.Client
) -> None:
    replay(api, client, COUNTS, [])
    app = open_app()
    assert {each.label: each.value for each in app.metric} == {
        "Answers": "5",
        "Sentences": "9",
        "Newly stopped": "2",
        "Newly released": "1",
    }
    (chart,) = charts(app)
    assert "newly stopped" in str(chart)
    assert "The texts behind these numbers are for auditors." in texts(app)
    assert len(app.toggle) == 0


def drawn(app: AppTest) -> list[tuple[str, str, int]]:
    """The bars of a replay's plot, in order."""
    (chart,) = app.get("vega_lite_chart")
    (rows,) = chart.proto.datasets
    found = convert_arrow_bytes_to_pandas_df(rows.data.data)
    return [tuple(row) for row in found[["category", "what", "texts"]].values.tolist()]


def test_of_two_replays_chosen_one_after_the_other_each_is_shown(
    open_app: Open, api: Api, client: httpx.Client
) -> None:
    ids = {number: replay(api, client, {**COUNTS, "answers": number}, []) for number in (1, 2, 3)}
    for number, replay_id in ids.items():
        api.set(
            guard_replays, guard_replays.c.id == replay_id, created_at=datetime(2026, 1, number, tzinfo=UTC)
        )
    app = open_app()
    for number in (2, 1, 3):
        choose(app, "Replay", ids[number])
        assert next(each.value for each in app.metric if each.label == "Answers") == str(number)
        assert app.query_params["replay"] == ids[number]


def test_no_text_is_drawn_twice(open_app: Open, api: Api, client: httpx.Client) -> None:
    replay(api, client, COUNTS, [])
    assert drawn(open_app()) == [
        ("dosing", "newly stopped", 2),
        ("dosing", "newly released", 1),
        ("dosing", "otherwise changed", 2),
        ("interaction", "otherwise changed", 1),
    ]


def test_what_the_model_judged_then_is_said_to_be_left_out(
    open_app: Open, api: Api, client: httpx.Client
) -> None:
    replay(api, client, COUNTS, [])
    assert "4 sentences more are left out: the model itself judged them then" in texts(open_app())


def test_more_changes_than_were_kept_are_told(open_app: Open, api: Api, client: httpx.Client) -> None:
    job = ask_async(api.log_in())["id"]
    api.answer(DOSE)
    change = {"job": job, "side": "answer", "seq": 1, "before": ["allow", None]}
    replay(api, client, COUNTS, [{**change, "after": ["replace", "dosing"]}])
    app = open_app(api.person(Role.AUDITOR))
    app.toggle[0].set_value(True).run()
    assert "Of 6 texts that are judged otherwise, the first 1 were kept." in texts(app)


def test_an_auditor_reads_versions_and_texts_and_changes_nothing(
    open_app: Open, api: Api, client: httpx.Client
) -> None:
    asked = ask_async(api.log_in())
    job = api.claim()
    api.release(job, DOSE)
    api.finish(job)
    change = {"job": asked["id"], "side": "answer", "seq": 1, "before": ["allow", None]}
    replay(api, client, COUNTS, [{**change, "after": ["replace", "dosing"]}])
    app = open_app(api.person(Role.AUDITOR))
    assert not app.exception
    assert [each.label for each in app.button if each.key and each.key.endswith("-yes")] == []
    next(each for each in app.selectbox if each.label == "File").set_value("policy.yaml").run()
    assert "sentence_time_budget_s" in texts(app)
    assert DOSE.strip() not in tables(app)
    app.toggle[0].set_value(True).run()
    assert DOSE.strip() in tables(app)
    assert "replace (dosing)" in tables(app)
    assert len(api.audit("replay.texts_read")) == 1
