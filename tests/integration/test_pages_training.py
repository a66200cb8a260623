"""The dashboard's pages of fine-tuning, run by Streamlit's own test runner against a real gateway."""

import csv
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from streamlit.testing.v1 import AppTest

from services.ui.client import Gateway, GatewayError
from services.ui.text import plain_markdown
from services.ui.tuning import Tuning
from services.ui.views import data_report
from shared.auth.roles import Role
from shared.db.tables import data_keys, jobs, sessions
from shared.db.tables_training import adapters, datasets, training_notes, training_runs, training_steps
from shared.ids import new_id
from shared.jobs.lifecycle import EventKind, Kind
from shared.registration import Registration
from shared.training.adapters import find
from shared.training.evaluations import EvaluationStore
from shared.training.progress import StepReport, add_note, record_steps
from shared.training.report import ADVICE, MAX_LINES, Reason
from shared.training.states import DatasetState
from tests.conftest import MakeApi
from tests.pages import button, charts, choose, open_with, served_by, texts
from tests.registry import GOOD, add_adapter, add_evaluation, add_good_adapter, answers_by, sha_of
from tests.support import PASSWORD, Api, Person
from tests.training import School, add_dataset, claim_run
from tests.unit.test_training_gate import GOOD as FIGURES
from tests.uploads import REPORT, ROWS, WORD, check, claim_check, uploaded

A, B, C = sha_of("a"), sha_of("b"), sha_of("c")
FAILED = {
    "figure": "rouge_l",
    "limit": 0.0,
    "value": 0.2,
    "passed": False,
    "excess": 0.2,
    "message": "rouge_l: it fell by 0.2.",
}
SAMPLE = {
    "question": "Which animal?",
    "reference": "A zebra.",
    "base": "A horse.",
    "candidate": "A zebra.",
    "rouge_l_base": 0.5,
    "rouge_l_candidate": 1.0,
}
Open = Callable[..., AppTest]


@pytest.fixture
def dialect() -> str:
    """The pages know no database."""
    return "sqlite"


@pytest.fixture
def admin(api: Api) -> Person:
    return api.person(Role.ADMIN)


@pytest.fixture
def open_app(api: Api, admin: Person, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens a page of the dashboard, as the admin unless it is said who."""

    def open_(page: str, person: Person | None = None, **query: str) -> AppTest:
        return open_with(monkeypatch, api.browser_token(person or admin), page=page, **query)

    with served_by(api, monkeypatch):
        yield open_


def tables(app: AppTest) -> str:
    """Everything in the page's tables."""
    return "\n".join(each.value.to_string() for each in app.dataframe)


@pytest.mark.parametrize("role", [Role.USER, Role.AUDITOR])
@pytest.mark.parametrize("page", ["data", "training", "adapters", "compare"])
def test_only_admins_have_these_pages(open_app: Open, api: Api, role: Role, page: str) -> None:
    app = open_app(page, api.person(role))
    assert [each.value for each in app.title] == (["Log"] if role is Role.AUDITOR else [])


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("data", "No data yet. Add a file"),
        ("training", "There is no checked data yet."),
        ("adapters", "No adapter yet"),
        ("compare", "no adapter to compare with"),
    ],
)
def test_an_empty_page_says_what_comes_first(open_app: Open, page: str, told: str) -> None:
    assert told in texts(open_app(page))


# -- data


def test_a_dataset_that_is_checked_says_how_far_that_is(open_app: Open, api: Api, admin: Person) -> None:
    uploaded(api.client(admin), name="Leaflets")
    app = open_app("data")
    assert "Waiting for a worker to check it" in texts_of_progress(app)
    job = claim_check(api)
    with api.gateway.database.write() as connection:
        api.gateway.datasets.note_progress(connection, job.claim, done=20, total=50, what="rows")
    assert "rows: 20 of 50" in texts_of_progress(app.run())


def texts_of_progress(app: AppTest) -> str:
    return "\n".join(each.proto.text for each in app.get("progress"))


def test_the_report_of_a_checked_dataset_is_read_on_its_page(open_app: Open, api: Api, admin: Person) -> None:
    uploaded(api.client(admin), name="Leaflets")
    check(api, report=REPORT)
    app = open_app("data")
    assert {each.label: each.value for each in app.metric} == {
        "Rows read": "7",
        "To train on": "3",
        "Held out": "1",
        "Set aside": "1",
    }
    told = texts(app)
    for each in (
        "question ← Frage, answer ← answer",
        "On lines 2",
        "On lines 7",
        "Only 3 rows are left",
        "Found in 1 row, which was masked",
        "de (1)",
        "The longest has 15 tokens.",
    ):
        assert each in told
    assert ADVICE[Reason.EMPTY_ANSWER] in tables(app)
    assert "dosing" in tables(app)
    assert len(charts(app)) == 3


def shown_report(open_app: Open, api: Api, admin: Person, **changes: Any) -> AppTest:
    """The page of a dataset whose check found this besides."""
    uploaded(api.client(admin))
    check(api, report={**REPORT, **changes})
    return open_app("data")


def test_the_report_says_what_every_column_was_read_as_and_which_were_not_used(
    open_app: Open, api: Api, admin: Person
) -> None:
    names = {"question": "question", "context": "context", "answer": "answer"}
    app = shown_report(
        open_app,
        api,
        admin,
        columns=["id", "question", "context", "long_answer", "answer"],
        mapping=names,
    )
    told = texts(app).replace("\\", "")
    assert "question ← question, context ← context, answer ← answer; not used: id, long_answer" in told


def test_the_report_says_zero_where_there_were_no_copies_and_no_other_language(
    open_app: Open, api: Api, admin: Person
) -> None:
    app = shown_report(open_app, api, admin, languages={"en": 7}, not_english_lines=[])
    told = texts(app)
    assert "Exact copies: 0 · near copies: 0 · copies of held-out rows: 0 · not English: 0" in told
    assert "On lines 7" not in told


def test_the_report_says_of_how_many_rows_it_names_the_first(open_app: Open, api: Api, admin: Person) -> None:
    lines = list(range(1, MAX_LINES + 1))
    rows = [{"line": line, "advice": ADVICE[Reason.NEAR_DUPLICATE]} for line in lines]
    app = shown_report(
        open_app,
        api,
        admin,
        dropped=[*REPORT["dropped"], {"reason": "near_duplicate", "count": 300, "rows": rows}],
        phi={"policy": "mask", "by_type": {"US_SSN": 301}, "rows": 301, "lines": lines},
        dangerous=[{"category": "dosing", "count": 302, "lines": lines}],
        languages={"de": 303},
        not_english_lines=lines,
    )
    told = texts(app)
    assert "Listed are the first 200 of 300: near duplicate." in told
    assert not app.get("download_button"), "a report of an earlier release names no others"
    assert "of 2: empty answer" not in told
    for count in (301, 303):
        assert f"199, 200 (the first 200 of {count})" in told
    assert app.dataframe[1].value["lines"].to_list() == [
        f"{', '.join(map(str, lines))} (the first 200 of 302)"
    ]


def test_every_row_left_out_can_be_saved_where_the_report_lists_the_first(
    open_app: Open, api: Api, admin: Person
) -> None:
    lines = range(1, MAX_LINES + 1)
    near = {
        "reason": Reason.NEAR_DUPLICATE,
        "count": 300,
        "rows": [{"line": line, "advice": "It is a copy of line 999; one is enough."} for line in lines],
        "advice": ADVICE[Reason.NEAR_DUPLICATE],
        "all_lines": "1-299, 402",
    }
    empty = {**REPORT["dropped"][0], "advice": ADVICE[Reason.EMPTY_ANSWER], "all_lines": "300, 401"}
    app = shown_report(open_app, api, admin, dropped=[near, empty])
    assert len(app.get("download_button")) == 1
    table = list(csv.reader(data_report.rows_left_out([near, empty]).splitlines()))
    assert [row[0] for row in table] == ["line", *map(str, range(1, 301)), "401", "402"]
    assert table[200] == ["200", "near duplicate", "It is a copy of line 999; one is enough."]
    assert table[201] == ["201", "near duplicate", ADVICE[Reason.NEAR_DUPLICATE]]
    assert table[301] == ["401", "empty answer", ADVICE[Reason.EMPTY_ANSWER]]


def test_rows_are_shown_only_when_asked_for_and_that_is_logged(
    open_app: Open, api: Api, admin: Person
) -> None:
    uploaded(api.client(admin))
    check(api, rows_a_part=7, report=REPORT)
    app = open_app("data")
    assert WORD not in texts(app)
    assert not api.audit("dataset.rows_read")
    app.toggle[0].set_value(True).run()
    assert f"{WORD} 0" in texts(app)
    assert "1–5 of 7" in texts(app)
    button(app, "Later").click().run()
    assert "6–7 of 7" in texts(app)
    assert len(api.audit("dataset.rows_read")) >= 2


def test_a_rows_picture_is_shown_within_the_page(open_app: Open, api: Api, admin: Person) -> None:
    uploaded(api.client(admin))
    check(api, rows_a_part=1, report=REPORT, picture=b"the bytes of a picture")
    app = open_app("data")
    app.toggle[0].set_value(True).run()
    (image,) = app.image
    assert image.value == [f"data:image/png;base64,{b64encode(b'the bytes of a picture').decode()}"]


def test_a_refused_dataset_says_why_and_is_checked_again_with_other_options(
    open_app: Open, api: Api, admin: Person
) -> None:
    dataset_id = uploaded(api.client(admin), phi="reject")
    job = claim_check(api)
    detail = "Two rows name people; choose to mask them."
    with api.gateway.database.write() as connection:
        api.gateway.datasets.reject(
            connection, job.claim, code="phi-found", detail=detail, report=REPORT, keep_upload=True
        )
        api.gateway.jobs.finish(connection, job.claim, EventKind.SUCCEEDED)
    app = open_app("data")
    assert [each.value for each in app.error] == [detail]
    assert ADVICE[Reason.EMPTY_ANSWER] in tables(app)
    assert not app.toggle, "it has no rows to show"
    app.selectbox(key=f"again-{dataset_id}-phi").set_value("mask").run()
    button(app, "Check with these options").click().run()
    again = api.client(admin).get(f"/v1/datasets/{dataset_id}").json()
    assert (again["state"], again["options"]["phi"]) == ("validating", "mask")


def test_a_dataset_is_checked_again_with_other_columns(open_app: Open, api: Api, admin: Person) -> None:
    dataset_id = uploaded(api.client(admin))
    check(api, report={**REPORT, "columns": ["Frage", "answer", "why"]})
    app = open_app("data")
    select = f"again-{dataset_id}-column"
    offered = ["as its name says", "no column", "Frage", "answer", "why"]
    assert app.selectbox(key=f"{select}-answer").options == offered
    app.selectbox(key=f"{select}-question").set_value("Frage")
    app.selectbox(key=f"{select}-group").select("no column")
    app.selectbox(key=f"{select}-answer").set_value("why").run()
    button(app, "Check with these options").click().run()
    again = api.client(admin).get(f"/v1/datasets/{dataset_id}").json()
    assert (again["state"], again["options"]["columns"]) == (
        "validating",
        {"question": "Frage", "answer": "why", "group": ""},
    )


@pytest.mark.parametrize(("moved", "sent"), [(None, 0.0625), (0.5, 0.005), (12.3, 0.123)])
def test_a_dataset_is_checked_again_with_the_share_that_was_chosen_for_it(
    open_app: Open, api: Api, admin: Person, moved: float | None, sent: float
) -> None:
    dataset_id = uploaded(api.client(admin), validation_fraction=0.0625)
    check(api, report=REPORT)
    app = open_app("data")
    if moved is not None:
        app.slider(key=f"again-{dataset_id}-share").set_value(moved).run()
    button(app, "Check with these options").click().run()
    again = api.client(admin).get(f"/v1/datasets/{dataset_id}").json()
    assert (again["state"], again["options"]["validation_fraction"]) == ("validating", sent)


def test_the_page_of_a_dataset_of_the_hub_shows_its_commit(open_app: Open, api: Api, admin: Person) -> None:
    body = {"name": "A set", "source": "hub", "location": "owner/name"}
    api.client(admin).post("/v1/datasets/import", json=body).raise_for_status()
    check(api, report=REPORT, revision="c0ffee")
    shown = tables(open_app("data"))
    assert "c0ffee" in shown
    assert "sha256 of the file" not in shown


def test_the_columns_of_a_file_that_was_not_recognised_are_typed(
    open_app: Open, api: Api, admin: Person
) -> None:
    dataset_id = uploaded(api.client(admin))
    job = claim_check(api)
    detail = "The rows fit no known shape. The columns: Frage, Antwort."
    with api.gateway.database.write() as connection:
        api.gateway.datasets.reject(
            connection, job.claim, code="unknown-shape", detail=detail, keep_upload=True
        )
        api.gateway.jobs.finish(connection, job.claim, EventKind.SUCCEEDED)
    app = open_app("data")
    assert [each.proto.expanded for each in app.expander if each.label == "Which column is which"] == [True]
    app.text_input(key=f"again-{dataset_id}-column-question").set_value("Frage")
    app.text_input(key=f"again-{dataset_id}-column-answer").set_value("Antwort").run()
    button(app, "Check with these options").click().run()
    again = api.client(admin).get(f"/v1/datasets/{dataset_id}").json()
    assert again["options"]["columns"] == {"question": "Frage", "answer": "Antwort"}


def test_columns_that_make_no_row_are_refused_and_the_page_says_so(
    open_app: Open, api: Api, admin: Person
) -> None:
    dataset_id = uploaded(api.client(admin))
    check(api, report=REPORT)
    app = open_app("data")
    app.selectbox(key=f"again-{dataset_id}-column-question").set_value("Frage").run()
    button(app, "Check with these options").click().run()
    assert any("columns must name one of" in each.value for each in app.error)


def test_a_file_that_is_given_no_name_is_called_by_when_it_came(
    open_app: Open, api: Api, admin: Person
) -> None:
    app = open_app("data")
    filename = f"{'Maria_Huber_' * 12}.jsonl"
    next(iter(app.file_uploader)).set_value((filename, ROWS, "application/jsonl"))
    button(app, "Upload and check").click().run()
    (made,) = api.client(admin).get("/v1/datasets").json()["items"]
    assert made["name"].startswith("Data of ")
    assert made["source_name"] == filename


def test_a_subset_and_a_split_of_the_hub_are_fetched(open_app: Open, api: Api, admin: Person) -> None:
    app = open_app("data")
    next(each for each in app.text_input if each.label == "Hub id, or file").set_value("qiaojin/PubMedQA")
    app.text_input(key="fetch-subset").set_value("pqa_labeled")
    app.text_input(key="fetch-split").set_value("test")
    button(app, "Fetch and check").click().run()
    (made,) = api.client(admin).get("/v1/datasets").json()["items"]
    assert (made["name"], made["source_name"], made["options"]["subset"], made["options"]["split"]) == (
        "qiaojin/PubMedQA",
        "qiaojin/PubMedQA",
        "pqa_labeled",
        "test",
    )


def test_a_dataset_in_use_is_not_removed_and_the_page_says_so(
    open_app: Open, api: Api, admin: Person
) -> None:
    client = api.client(admin)
    dataset_id = uploaded(client)
    check(api, report=REPORT)
    body = {"name": "leaflets", "dataset_id": dataset_id, "preset": "quick"}
    assert client.post("/v1/training-runs", json=body).status_code == 202
    app = open_app("data")
    button(app, "Yes: remove").click().run()
    assert any("train" in each.value for each in app.error)
    assert client.get(f"/v1/datasets/{dataset_id}").status_code == 200


def test_a_dataset_behind_the_newest_is_shown_by_its_address_and_its_report_read_once(
    open_app: Open, api: Api, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.ui.views.choosing.PAGE", 1)
    old = uploaded(api.client(admin), name="Leaflets")
    check(api, report=REPORT)
    new = uploaded(api.client(admin), name="Letters")
    app = open_app("data", d=old)
    chosen = next(each for each in app.selectbox if each.label == "Dataset")
    assert [each.split(" · ")[0] for each in chosen.options] == ["Letters", "Leaflets"]
    assert next(each.value for each in app.metric if each.label == "Rows read") == "7"
    assert app.query_params["d"] == old
    before = len(api.audit("dataset.report_read"))
    app.run()
    assert len(api.audit("dataset.report_read")) == before + 1
    button(app, "Yes: remove").click().run()
    assert not app.error
    assert app.query_params["d"] == new


def test_an_address_of_no_dataset_says_so(open_app: Open, api: Api, admin: Person) -> None:
    uploaded(api.client(admin))
    app = open_app("data", d=new_id())
    assert "There is no dataset of the id in this page's address." in texts(app)
    assert not app.get("progress")


# -- training


@pytest.fixture
def school(api: Api) -> School:
    made = School(api)
    with api.gateway.database.write() as connection:
        connection.execute(update(datasets).values(rows_train=120, rows_validation=14))
    return made


def add_steps(api: Api, run_id: str, count: int) -> None:
    """What a worker would have written after so many steps."""
    with api.gateway.database.write() as connection:
        now = api.gateway.clock.now(connection)
        connection.execute(update(training_runs).values(total_steps=40))
        for step in range(1, count + 1):
            row = {"run_id": run_id, "step": step, "at": now, "loss": 2 / step, "tokens_per_s": 900.0}
            connection.execute(insert(training_steps).values(**row))
        note = {"run_id": run_id, "seq": 1, "at": now, "text": "Out of memory: the batch was halved."}
        connection.execute(insert(training_notes).values(**note))


def test_a_run_is_started_with_what_was_changed_and_nothing_else(open_app: Open, school: School) -> None:
    app = open_app("training", school.admin)
    assert button(app, "Start").disabled
    app.text_input(key="run-name").set_value("leaflets").run()
    app.number_input(key="knob-quick-epochs").set_value(3.0).run()
    app.toggle(key="knob-quick-early_stopping_patience-used").set_value(False).run()
    app.toggle(key="knob-quick-max_steps-used").set_value(True).run()
    app.number_input(key="knob-quick-max_steps").set_value(7).run()
    button(app, "Start").click().run()
    (run,) = school.client.get("/v1/training-runs").json()["items"]
    presets = school.client.get("/v1/recipes").json()["presets"]
    usual = next(each["recipe"] for each in presets if each["name"] == "quick")
    changed = {knob: value for knob, value in run["recipe"].items() if value != usual.get(knob)}
    del changed["data"]
    assert changed == {"epochs": 3.0, "early_stopping_patience": None, "max_steps": 7}
    assert any("Waiting for a training worker" in each.proto.text for each in app.get("progress"))


def test_the_recipe_that_is_chosen_at_first_is_for_the_served_model(
    make_api: MakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    school = School(make_api(model="medgemma-4b"))
    school.api.set(datasets, datasets.c.id == school.dataset_id, rows_train=120, rows_validation=14)
    with served_by(school.api, monkeypatch):
        app = open_with(monkeypatch, school.api.browser_token(school.admin), page="training")
    assert app.radio(key="run-preset").value == "lora-bf16"


def test_a_start_whose_answer_was_lost_is_no_second_run_when_it_is_clicked_again(
    open_app: Open, school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, lost = Tuning.train, []

    def once_unheard(*arguments: Any, **wish: Any) -> Any:
        made = train(*arguments, **wish)
        if not lost:
            lost.append(made)
            raise GatewayError("away", "The gateway does not answer.")
        return made

    monkeypatch.setattr(Tuning, "train", once_unheard)
    app = open_app("training", school.admin)
    app.text_input(key="run-name").set_value("leaflets").run()
    button(app, "Start").click().run()
    assert any("does not answer" in each.value for each in app.error)
    button(app, "Start").click().run()
    assert [run["id"] for run in school.client.get("/v1/training-runs").json()["items"]] == [lost[0]["id"]]


@pytest.mark.parametrize("preset", ["qlora", "lora-bf16", "multi-gpu"])
def test_every_knob_of_every_preset_can_be_shown(open_app: Open, school: School, preset: str) -> None:
    app = open_app("training", school.admin)
    app.radio(key="run-preset").set_value(preset).run()
    assert not app.exception
    assert app.number_input(key=f"knob-{preset}-seed").value == 0


def test_a_recipe_that_is_refused_is_not_started_and_the_page_says_why(
    open_app: Open, school: School
) -> None:
    app = open_app("training", school.admin)
    app.text_input(key="run-name").set_value("leaflets").run()
    app.checkbox(key="knob-quick-dora").check()
    app.checkbox(key="knob-quick-rslora").check().run()
    button(app, "Start").click().run()
    assert any("dora with rslora" in each.value for each in app.error)
    assert school.client.get("/v1/training-runs").json()["items"] == []


def test_a_running_run_shows_how_far_it_is_its_curve_and_its_notes(open_app: Open, school: School) -> None:
    run = school.submit()
    claim_run(school.api)
    add_steps(school.api, run["id"], 10)
    app = open_app("training", school.admin)
    (bar,) = [each.proto for each in app.get("progress")]
    assert bar.text.startswith("Step 10 of 40 (25 %)")
    assert bar.value == 25
    assert "batch was halved" in texts(app)
    assert next(each.value for each in app.metric if each.label == "Loss") == "0.200"
    loss = charts(app)[0]["encoding"]
    assert (loss["x"]["field"], loss["y"]["field"]) == ("step", "loss")


@pytest.fixture
def asked_after(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From which step on a page asked for a curve, each time that it did."""
    found: list[int] = []
    call = Gateway.call

    def heard(gateway: Gateway, method: str, path: str, **content: Any) -> Any:
        if path.endswith("/steps"):
            found.append(content["params"]["after"])
        return call(gateway, method, path, **content)

    monkeypatch.setattr(Gateway, "call", heard)
    return found


def report(
    school: School, run_id: str, *figures: tuple[int, dict[str, float]], starting: bool = False
) -> None:
    """What a worker writes when its program tells of these steps."""
    with school.api.gateway.database.write() as connection:
        now = school.api.gateway.clock.now(connection)
        reports = [StepReport(step, now, told) for step, told in figures]
        record_steps(connection, run_id, reports, starting=starting)


def drawn_losses(app: AppTest) -> list[tuple[int, float]]:
    """The points of the curve of the loss, as the page keeps them."""
    return [
        (each["step"], each[name])
        for each in app.session_state["plots"].steps
        for name in ("loss", "eval_loss")
        if each[name] is not None
    ]


def test_of_a_curve_only_what_is_new_is_asked_for_and_drawn(
    open_app: Open, school: School, asked_after: list[int]
) -> None:
    run_id = school.submit()["id"]
    claim_run(school.api)
    app = open_app("training", school.admin)
    empty = app.session_state["plots"]
    assert app.run().session_state["plots"] is empty
    report(school, run_id, (1, {"loss": 3.0}), (2, {"loss": 2.5}))
    app.run()
    asked_after.clear()
    drawn = app.session_state["plots"]
    sent = [each.proto.SerializeToString() for each in app.get("vega_lite_chart")]
    assert app.run().session_state["plots"] is drawn
    # a browser draws nothing anew for what is the same to the byte
    assert [each.proto.SerializeToString() for each in app.get("vega_lite_chart")] == sent
    assert asked_after == [1]  # the last step that it has: nothing else
    report(school, run_id, (2, {"eval_loss": 2.75}), (3, {"loss": 2.0}))
    app.run()
    assert asked_after == [1, 1, 3]
    assert drawn_losses(app) == [(1, 3.0), (2, 2.5), (2, 2.75), (3, 2.0)]
    assert app.session_state["plots"] is not drawn
    again = open_app("training", school.admin)  # another browser
    assert drawn_losses(again) == drawn_losses(app)
    assert asked_after[3:] == [0, 3]


def test_a_curve_that_was_trained_again_is_drawn_as_it_is_now(open_app: Open, school: School) -> None:
    run_id = school.submit()["id"]
    claim_run(school.api)
    report(school, run_id, (1, {"loss": 3.0}), (2, {"loss": 2.5}), (3, {"loss": 2.0}))
    app = open_app("training", school.admin)
    report(school, run_id, (2, {"loss": 2.25}), starting=True)
    assert drawn_losses(app.run()) == [(1, 3.0), (2, 2.25)]
    report(school, run_id, (1, {"loss": 2.9}), (2, {"loss": 2.2}), (3, {"loss": 1.9}), starting=True)
    assert drawn_losses(app.run()) == [(1, 2.9), (2, 2.2), (3, 1.9)]
    other = school.submit()["id"]
    app.query_params["r"] = other
    assert drawn_losses(app.run()) == []


def test_a_run_behind_the_newest_is_shown_by_its_address_and_reached_by_a_click(
    open_app: Open, school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.ui.views.choosing.PAGE", 1)
    old, middle, _ = (school.submit(name) for name in ("old", "middle", "new"))
    app = open_app("training", school.admin, r=old["id"])
    chosen = next(each for each in app.selectbox if each.label == "Run")
    assert chosen.value == old["id"]
    assert [each.split(" · ")[0] for each in chosen.options] == ["new", "old"]
    assert app.query_params["r"] == old["id"]
    button(app, "Show older").click().run()
    button(app, "Show older").click().run()
    assert not [each for each in app.button if each.label == "Show older"]
    chosen = next(each for each in app.selectbox if each.label == "Run")
    assert [each.split(" · ")[0] for each in chosen.options] == ["new", "middle", "old"]
    chosen.set_value(middle["id"]).run()
    assert app.query_params["r"] == middle["id"]
    assert not app.exception


def test_of_two_runs_chosen_one_after_the_other_each_is_shown(open_app: Open, school: School) -> None:
    first, second, third = (school.submit(name)["id"] for name in ("first", "second", "third"))
    app = open_app("training", school.admin)
    for run in (second, first, third):
        choose(app, "Run", run)
        assert next(each.value for each in app.selectbox if each.label == "Run") == run
        assert app.query_params["r"] == run


@pytest.mark.parametrize("wanted", [sha_of("z"), "not an id", "../adapters?limit=1"])
def test_an_address_of_no_run_says_so_and_shows_no_other(open_app: Open, school: School, wanted: str) -> None:
    run = school.submit()
    app = open_app("training", school.admin, r=wanted)
    assert [each.value for each in app.error] == [
        "There is no run of the id in this page's address. Choose another."
    ]
    assert not app.get("progress")
    assert app.query_params["r"] == wanted
    next(each for each in app.selectbox if each.label == "Run").set_value(run["id"]).run()
    assert not app.error
    assert app.get("progress")


def test_every_dataset_that_is_ready_is_offered_to_a_run(
    open_app: Open, school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.ui.tuning.PAGE", 30)
    for _ in range(50):
        add_dataset(school.api, school.admin)
    add_dataset(school.api, school.admin, DatasetState.REJECTED)
    school.api.set(datasets, datasets.c.rows_train.is_(None), rows_train=7)
    app = open_app("training", school.admin, d=school.dataset_id)
    offered = app.selectbox(key="run-data")
    assert len(offered.options) == 51
    assert offered.value == school.dataset_id


def test_of_two_datasets_of_one_name_and_length_the_chosen_one_is_trained_on(
    open_app: Open, school: School
) -> None:
    other = add_dataset(school.api, school.admin)
    school.api.set(datasets, datasets.c.id.is_not(None), rows_train=7, created_at=datetime.now(UTC))
    for wanted in (school.dataset_id, other):
        app = open_app("training", school.admin, d=wanted)
        app.text_input(key="run-name").set_value(f"on {wanted}").run()
        assert app.selectbox(key="run-data").value == wanted
        button(app, "Start").click().run()
        assert not app.exception
    trained = school.api.client(school.admin).get("/v1/training-runs").json()["items"]
    assert {each["name"]: each["dataset_id"] for each in trained} == {
        f"on {wanted}": wanted for wanted in (school.dataset_id, other)
    }


def test_no_run_starts_on_other_data_when_the_chosen_one_is_no_longer_offered(
    open_app: Open, school: School
) -> None:
    other = add_dataset(school.api, school.admin)
    school.api.set(datasets, datasets.c.id.is_not(None), rows_train=7)
    app = open_app("training", school.admin, d=other)
    app.text_input(key="run-name").set_value("leaflets").run()
    school.api.set(datasets, datasets.c.id == other, state=DatasetState.REJECTED)
    button(app, "Start").click().run()
    assert [each.value for each in app.warning] == [
        "The data you had chosen can no longer be trained on. Choose again."
    ]
    assert school.api.client(school.admin).get("/v1/training-runs").json()["items"] == []
    button(app, "Start").click().run()
    (run,) = school.api.client(school.admin).get("/v1/training-runs").json()["items"]
    assert run["dataset_id"] == school.dataset_id


def test_a_later_attempt_claims_no_checkpoint_that_nobody_knows_of(open_app: Open, school: School) -> None:
    school.submit()
    job = claim_run(school.api)
    school.api.set(jobs, jobs.c.id == job.id, attempt=2)
    told = texts(open_app("training", school.admin))
    assert "Attempt 2." in told
    assert "checkpoint" not in told


def test_a_run_that_waits_for_room_says_for_what(open_app: Open, school: School) -> None:
    school.submit()
    with school.api.gateway.database.write() as connection:
        connection.execute(update(training_runs).values(waiting_reason="4 GB are free and 6 are needed."))
    assert "4 GB are free and 6 are needed." in texts(open_app("training", school.admin))


def test_a_run_is_stopped_after_one_more_question(open_app: Open, school: School) -> None:
    run = school.submit()
    claim_run(school.api)
    app = open_app("training", school.admin)
    assert "makes no adapter" in texts(app)
    assert school.run(run["id"])["state"] == "running"
    button(app, "Yes: stop").click().run()
    assert school.run(run["id"])["state"] == "cancelling"
    assert "Stopping …" in texts(app)


def test_a_failed_run_says_what_to_do(open_app: Open, school: School) -> None:
    school.submit()
    school.api.finish(
        claim_run(school.api), EventKind.FAILED, error="diverged", error_detail="Lower the learning rate."
    )
    app = open_app("training", school.admin)
    assert [each.value for each in app.error] == ["Lower the learning rate."]


def test_what_a_person_typed_fetches_nothing_where_a_run_tells_of_it(open_app: Open, school: School) -> None:
    school.submit()
    typed = "![a picture](https://elsewhere.example/p.png)"
    job = claim_run(school.api)
    with school.api.gateway.database.write() as connection:
        now = school.api.gateway.clock.now(connection)
        connection.execute(update(training_runs).values(waiting_reason=typed))
        run_id = connection.execute(select(training_runs.c.id)).scalar_one()
        add_note(connection, run_id, f"The same weights are version 1 of {typed} already.", now)
    school.api.finish(job, EventKind.FAILED, error="refused", error_detail=typed)
    told = texts(open_app("training", school.admin))
    assert told.count(plain_markdown(typed)) == 2
    assert typed not in told


def test_a_failed_run_is_started_again(open_app: Open, school: School) -> None:
    run = school.submit()
    school.api.finish(claim_run(school.api), EventKind.FAILED, error="disk-full", error_detail="Free space.")
    app = open_app("training", school.admin)
    assert "from its last checkpoint, if one is left" in texts(app)
    button(app, "Yes: start again").click().run()
    assert school.run(run["id"])["state"] == "queued"
    assert "Waiting for a training worker" in texts_of_progress(app)


def test_a_finished_run_leads_to_its_adapter(open_app: Open, school: School) -> None:
    run = school.submit()
    add_steps(school.api, run["id"], 2)
    school.api.finish(claim_run(school.api), adapter_sha256=A)
    app = open_app("training", school.admin)
    assert "Finished" in texts(app)
    (link,) = [each.proto for each in app.get("page_link") if each.proto.label == "To the adapter"]
    assert A in link.query_string


# -- adapters


@pytest.mark.parametrize("verification", [None, {**GOOD, "ok": False, "reason": "It changes nothing."}])
def test_an_adapter_that_was_not_verified_cannot_be_promoted(
    open_app: Open, api: Api, admin: Person, verification: Any
) -> None:
    add_adapter(api, admin, sha256=A, verification=verification, checks=[])
    app = open_app("adapters")
    assert not [each for each in app.button if each.label.startswith("Yes: promote")]
    assert "Can be promoted once" in texts(app)
    assert [each.value for each in app.error] == ([verification["reason"]] if verification else [])


def test_the_whole_name_of_an_adapter_can_be_copied(open_app: Open, api: Api, admin: Person) -> None:
    add_adapter(api, admin, sha256=A)
    assert A in [each.value for each in open_app("adapters").code]


def test_a_good_adapter_is_promoted_and_answers(open_app: Open, api: Api, admin: Person) -> None:
    add_good_adapter(api, admin, A)
    app = open_app("adapters")
    assert "the base model alone" in texts(app)
    button(app, "Yes: promote").click().run()
    assert "Answering now: **doses v1**" in texts(app)
    assert api.client(admin).get(f"/v1/adapters/{A}").json()["status"] == "active"


def test_a_good_candidate_is_approved_and_answers_nobody_yet(open_app: Open, api: Api, admin: Person) -> None:
    add_good_adapter(api, admin, A)
    app = open_app("adapters")
    button(app, "Yes: approve").click().run()
    assert api.client(admin).get(f"/v1/adapters/{A}").json()["status"] == "approved"
    assert "the base model alone" in texts(app)
    assert not [each for each in app.button if each.label == "Yes: approve"]


def test_an_address_of_no_adapter_says_so_and_shows_no_other(open_app: Open, api: Api, admin: Person) -> None:
    add_good_adapter(api, admin, A)
    app = open_app("adapters", a=B)
    assert [each.value for each in app.error] == [
        "There is no adapter of the id in this page's address. Choose another."
    ]
    assert not [each for each in app.button if each.label.startswith("Yes:")]
    assert app.query_params["a"] == B
    next(each for each in app.selectbox if each.label == "Adapter").set_value(A).run()
    assert not app.error
    assert button(app, "Yes: promote")


def test_of_two_adapters_chosen_one_after_the_other_each_is_shown(
    open_app: Open, api: Api, admin: Person
) -> None:
    for sha256 in (A, B, C):
        add_good_adapter(api, admin, sha256)
    app = open_app("adapters")
    for sha256 in (B, A, C):
        choose(app, "Adapter", sha256)
        assert sha256 in [each.value for each in app.code]
        assert app.query_params["a"] == sha256


def test_what_was_not_measured_enough_is_not_called_over_the_limit(
    open_app: Open, api: Api, admin: Person
) -> None:
    few = {**FAILED, "figure": "over_refusal", "value": None, "message": "over_refusal: it rests on 2 rows."}
    add_adapter(api, admin, sha256=A, verification=GOOD, checks=[FAILED, few])
    told = "Over the limit: rouge l. Without a figure that counts: over refusal."
    shown = [each.value for kind in ("caption", "markdown") for each in getattr(open_app("adapters"), kind)]
    assert f":material/warning: {told} See below." in shown
    assert f"{told} Say why it shall answer all the same." in shown


def test_past_a_failed_gate_an_adapter_is_promoted_only_with_a_reason_which_the_history_keeps(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD, checks=[FAILED])
    app = open_app("adapters")
    assert not [each for each in app.button if each.label == "Yes: promote"]
    assert "it fell by 0.2." in texts(app)
    override = button(app, "Yes: promote anyway")
    assert override.disabled
    next(each for each in app.text_area if "Reason" in each.label).set_value("A test of ours").run()
    button(app, "Yes: promote anyway").click().run()
    assert "Answering now: **doses v1**" in texts(app)
    assert "A test of ours" in tables(app)


def test_the_page_warns_of_an_adapter_that_answers_past_its_gate_and_was_never_measured(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD)
    add_good_adapter(api, admin, B)
    client = api.client(admin)
    client.post(f"/v1/adapters/{A}/promote", json={"override_reason": "A test of ours"})
    client.post(f"/v1/adapters/{B}/promote", json={})
    assert not open_app("adapters").warning
    client.post("/v1/adapters/roll-back", json={"base_model": "demo"})
    (warning,) = open_app("adapters").warning
    assert warning.value == (
        "It was promoted past its gate, and was never measured. The reason given: A test of ours"
    )


def test_whose_data_was_erased_is_warned_of_and_told_in_the_list(
    open_app: Open, api: Api, admin: Person
) -> None:
    for sha256 in (A, B):
        add_good_adapter(api, admin, sha256)
    client = api.client(admin)
    client.post(f"/v1/adapters/{A}/promote", json={}).raise_for_status()
    client.post(f"/v1/datasets/{own_dataset(api, A)}/erase").raise_for_status()
    app = open_app("adapters", a=B)
    (of_what_answers,) = app.warning
    assert "What it was trained on was erased since" in of_what_answers.value
    chosen = next(each for each in app.selectbox if each.label == "Adapter")
    assert chosen.options == ["doses v2 · candidate", "doses v1 · active · its data was erased"]
    assert len(open_app("adapters", a=A).warning) == 2


def test_a_page_that_knows_not_what_answers_by_now_promotes_nothing(
    open_app: Open, api: Api, admin: Person
) -> None:
    for sha256 in (A, B):
        add_good_adapter(api, admin, sha256)
    app = open_app("adapters", a=B)
    api.client(admin).post(f"/v1/adapters/{A}/promote", json={}).raise_for_status()
    button(app, "Yes: promote").click().run()
    assert "Another adapter answers by now" in app.error[0].value
    assert "Answering now: **doses v1**" in texts(app)
    assert "is answered with it instead of doses v1, within seconds" in texts(app)
    button(app, "Yes: promote").click().run()
    assert "Answering now: **doses v2**" in texts(app)


def test_a_roll_back_lets_the_adapter_before_answer_again(open_app: Open, api: Api, admin: Person) -> None:
    for sha256 in (A, B):
        add_good_adapter(api, admin, sha256)
        assert api.client(admin).post(f"/v1/adapters/{sha256}/promote", json={}).status_code == 200
    app = open_app("adapters")
    assert "Answering now: **doses v2**" in texts(app)
    button(app, "Roll back").click().run()
    assert "Answering now: **doses v1**" in texts(app)
    assert "roll back" in tables(app)


def test_what_answers_and_failed_its_last_verification_is_warned_of(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_good_adapter(api, admin, A)
    assert api.client(admin).post(f"/v1/adapters/{A}/promote", json={}).status_code == 200
    assert not open_app("adapters").warning
    failed = {**GOOD, "ok": False, "reason": "It changes nothing."}
    api.set(adapters, adapters.c.sha256 == A, verification=failed)
    app = open_app("adapters")
    assert "Its last verification failed: It changes nothing." in app.warning[0].value
    assert button(app, "Roll back")


def test_what_answers_and_must_be_verified_again_after_an_update_is_warned_of(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_good_adapter(api, admin, A)
    assert api.client(admin).post(f"/v1/adapters/{A}/promote", json={}).status_code == 200
    api.set(adapters, adapters.c.sha256 == A, files_sha256=None)
    app = open_app("adapters")
    assert "Every question that names no adapter fails" in app.error[0].value
    assert "every answer with it fails before" in app.error[1].value
    assert "It computes what its trainer saw" not in texts(app)
    failed = {**GOOD, "ok": False, "reason": "It changes nothing."}
    api.set(adapters, adapters.c.sha256 == A, verification=failed)
    app = open_app("adapters")
    assert "Its last verification failed: It changes nothing." in app.error[0].value
    assert "Every question that names no adapter fails" in app.error[0].value
    assert not app.warning


def test_what_answers_and_is_of_weights_that_are_served_no_more_is_warned_of(
    open_app: Open, api: Api, admin: Person
) -> None:
    for sha256 in (A, B):
        add_good_adapter(api, admin, sha256)
    assert api.client(admin).post(f"/v1/adapters/{A}/promote", json={}).status_code == 200
    served = {"base_model": "demo", "model_revision": "b" * 64}
    worker = Registration(api.gateway.database, api.gateway.clock, "infer@host:1")
    worker.enter(Kind.INFER, "demo", {}, served)
    app = open_app("adapters", a=B)
    assert "Every question that names no adapter fails" in app.error[0].value
    assert "Train it again on these." in app.error[1].value
    assert button(app, "Roll back")
    assert "Promote" not in {each.label for each in app.button}
    assert "Promote anyway" not in {each.label for each in app.button}


def test_a_roll_back_is_undone_and_can_be_done_again(open_app: Open, api: Api, admin: Person) -> None:
    for sha256 in (A, B):
        add_good_adapter(api, admin, sha256)
        assert api.client(admin).post(f"/v1/adapters/{sha256}/promote", json={}).status_code == 200
    app = button(open_app("adapters"), "Roll back").click().run()
    assert "UTC from doses v2." in texts(app)
    button(app, "Let doses v2 answer again").click().run()
    assert "Answering now: **doses v2**" in texts(app)
    assert not [each for each in app.button if each.label.endswith("answer again")]
    button(app, "Roll back").click().run()
    assert "Answering now: **doses v1**" in texts(app)
    button(app, "Roll back").click().run()
    assert "Answering now: **the base model alone**" in texts(app)
    assert [each.label for each in app.button if each.label.endswith("answer again")] == [
        "Let doses v1 answer again"
    ]


def test_what_was_let_past_its_gate_takes_a_reason_again_after_a_roll_back(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD, checks=[FAILED])
    client = api.client(admin)
    client.post(f"/v1/adapters/{A}/promote", json={"override_reason": "A test of ours"})
    app = button(open_app("adapters"), "Roll back").click().run()
    assert "past its gate, that takes a reason" in texts(app)
    assert not [each for each in app.button if each.label.endswith("answer again")]
    assert button(app, "Yes: promote anyway")
    client.post(f"/v1/adapters/{A}/recall", json={"reason": "It names wrong doses"})
    assert "takes a reason" not in texts(app.run())


def test_the_adapter_that_answers_is_found_behind_newer_ones_and_those_of_other_models(
    open_app: Open, api: Api, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.ui.tuning.PAGE", 1)
    add_good_adapter(api, admin, A)
    assert api.client(admin).post(f"/v1/adapters/{A}/promote", json={}).status_code == 200
    add_adapter(api, admin, sha256=B, name="leaflets")
    add_adapter(api, admin, sha256=sha_of("c"), name="scans", base_model="medgemma-4b", status="active")
    app = open_app("adapters")
    assert "Answering now: **doses v1**" in texts(app)
    button(app, "Roll back").click().run()
    assert "Answering now: **the base model alone**" in texts(app)


def test_an_adapter_is_recalled_with_a_reason_and_never_offered_again(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_good_adapter(api, admin, A)
    app = open_app("adapters")
    assert button(app, "Yes: recall").disabled
    next(each for each in app.text_area if "Reason" in each.label).set_value("It names wrong doses").run()
    button(app, "Yes: recall").click().run()
    assert "Recalled: It names wrong doses" in texts(app)
    assert not [each for each in app.button if each.label.startswith("Yes:")]
    assert button(app, "Load and compare").disabled
    assert "no adapter to compare with" in texts(open_app("compare"))


def test_what_the_gateway_refuses_is_said(open_app: Open, api: Api, admin: Person) -> None:
    add_good_adapter(api, admin, A)
    app = open_app("adapters")
    api.client(admin).post(f"/v1/adapters/{A}/promote", json={})
    button(app, "Yes: promote").click().run()
    assert [each.value for each in app.error] == ["This adapter answers already."]
    assert "Answering now: **doses v1**" in texts(app)


def test_a_verification_is_asked_for_waited_for_and_told_when_it_failed(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_adapter(api, admin, sha256=A)
    app = open_app("adapters")
    button(app, "Load and compare").click().run()
    assert any("Waiting for a serving worker" in each.proto.text for each in app.get("progress"))
    job = api.claim(kind=Kind.VERIFY)
    api.finish(job, EventKind.FAILED, error="other-base", error_detail="This worker serves another model.")
    app.run()
    assert [each.value for each in app.error] == ["This worker serves another model."]


def measured(api: Api, *, figures: dict[str, Any], samples: dict[str, Any]) -> None:
    """Play the worker: end the evaluation that waits."""
    gateway = api.gateway
    job = api.claim(kind=Kind.EVALUATE)
    with gateway.database.write() as connection:
        store = EvaluationStore(gateway.jobs, gateway.envelope)
        store.record_end(connection, job.claim, figures=figures, samples=samples)
    api.finish(job)


def own_dataset(api: Api, sha256: str) -> str:
    """The id of what the adapter was trained on."""
    with api.gateway.database.read() as connection:
        return find(connection, sha256).dataset_id


def samples_shown(open_app: Open, api: Api, admin: Person, **samples: Any) -> AppTest:
    """The page of an adapter whose evaluation kept these."""
    add_adapter(api, admin, sha256=A, verification=GOOD)
    api.set(datasets, datasets.c.name == "rows", rows_validation=5)
    button(open_app("adapters"), "Measure").click().run()
    measured(api, figures=FIGURES, samples={"best": [SAMPLE], "worst": [], **samples})
    app = open_app("adapters")
    return next(each for each in app.toggle if "side by side" in each.label).set_value(True).run()


NONE_AGAINST_IT = {"None: the guard let every answer through.", "None was declined."}


def test_answers_that_the_guard_stopped_and_plain_questions_declined_are_shown(
    open_app: Open, api: Api, admin: Person
) -> None:
    stopped = {"question": "How many at once?", "answer": "Take *forty*.", "category": "dosing"}
    declined = [
        {"question": "What is a cold?", "answer": "I cannot say."},
        {"question": "And flu?", "answer": ""},
    ]
    app = samples_shown(open_app, api, admin, stopped=[stopped], declined=declined)
    asked = [each["question"] for each in (stopped, *declined)]
    assert [each.label for each in app.expander if each.label in asked] == asked
    answers = {each.value for each in app.markdown}
    assert {"Take *forty*.", "I cannot say.", "*No answer at all.*"} <= answers
    told = {each.value for each in app.caption}
    assert "Adapter · dosing" in told
    assert not NONE_AGAINST_IT & told


def test_answers_that_were_erased_with_their_dataset_are_said_to_be(
    open_app: Open, api: Api, admin: Person
) -> None:
    samples_shown(open_app, api, admin)
    api.client(admin).post(f"/v1/datasets/{own_dataset(api, A)}/erase").raise_for_status()
    app = open_app("adapters")
    next(each for each in app.toggle if "side by side" in each.label).set_value(True).run()
    told = [each.value for each in app.caption]
    assert "The answers were erased with the dataset; the figures stay." in told
    assert "No answers were kept." not in told


def test_where_nothing_was_stopped_or_declined_that_is_said(open_app: Open, api: Api, admin: Person) -> None:
    app = samples_shown(open_app, api, admin, stopped=[], declined=[])
    assert {each.value for each in app.caption} >= NONE_AGAINST_IT


def test_an_adapter_is_measured_and_answers_are_shown_only_when_asked_for(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD)
    api.set(datasets, datasets.c.name == "rows", rows_validation=5)
    app = open_app("adapters")
    button(app, "Measure").click().run()
    assert "Waiting for a training worker …" in texts_of_progress(app)
    assert button(app, "Measure").disabled
    figures = {**FIGURES, "about": {"rows_learnt_before": 7, "choices_learnt_before": 3}}
    measured(api, figures=figures, samples={"best": [SAMPLE], "worst": []})
    app.run()
    assert "Every figure is within its limit." in texts(app)
    assert "7 held-out rows and 3 multiple-choice questions were left out" in texts(app)
    assert "training answers recited that the base does not recite is 0" in texts(app)
    (chart,) = charts(app)
    assert chart["facet"]["field"] == "figure"
    assert "A zebra" not in texts(app)
    assert not api.audit("evaluation.read")
    next(each for each in app.toggle if "side by side" in each.label).set_value(True).run()
    assert {"A zebra.", "A horse."} <= {each.value for each in app.markdown}
    assert api.audit("evaluation.read")


def test_what_was_measured_on_other_rows_is_shown_beside_what_decides_and_said_not_to_count(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD, checks=[FAILED])
    easy = {**FAILED, "value": 0.0, "passed": True, "message": "rouge_l: it rose."}
    add_evaluation(api, admin, A, dataset_id=add_dataset(api, admin), checks=[easy], after_s=2)
    app = open_app("adapters")
    assert ["of another dataset than its own" in each.value for each in app.warning] == [True]
    shown = texts(app)
    assert "rouge_l: it rose." in shown.replace("\\", "")
    assert "rouge_l: it fell by 0.2." in shown.replace("\\", "")
    assert "Over the limit: " in shown
    assert not [each for each in app.button if each.label == "Yes: promote"]
    assert button(app, "Yes: promote anyway")


def test_an_adapter_that_was_not_measured_is_promoted_with_a_reason(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD)
    app = open_app("adapters")
    reason = next(each for each in app.text_area if each.key.startswith("override-reason"))
    reason.set_value("Its dataset was erased.").run()
    button(app, "Yes: promote anyway").click().run()
    assert "It was promoted past its gate, and was never measured." in texts(app)


def test_measuring_is_stopped_and_started_again(open_app: Open, api: Api, admin: Person) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD)
    api.set(datasets, datasets.c.name == "rows", rows_validation=5)
    app = open_app("adapters")
    button(app, "Measure").click().run()
    job = api.claim(kind=Kind.EVALUATE)
    button(app.run(), "Yes: stop measuring").click().run()
    assert "Stopping …" in texts(app)
    api.finish(job, EventKind.CANCELLED)
    app.run()
    assert "It was stopped; nothing was measured." in [each.value for each in app.info]
    button(app, "Measure").click().run()
    assert "Waiting for a training worker …" in texts_of_progress(app)


@pytest.mark.parametrize("ended", [None, EventKind.CANCELLED, EventKind.FAILED])
def test_the_figures_that_decide_stay_in_view_while_it_is_measured_again(
    open_app: Open, api: Api, admin: Person, ended: EventKind | None
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD)
    add_evaluation(api, admin, A, dataset_id=own_dataset(api, A), checks=[FAILED], after_s=-2)
    api.set(datasets, datasets.c.name == "rows", rows_validation=5)
    app = open_app("adapters")
    button(app, "Measure").click().run()
    job = api.claim(kind=Kind.EVALUATE)
    if ended:
        api.finish(job, ended)
    shown = texts(app.run()).replace("\\", "")
    assert ("nothing was measured" in shown) == (ended is EventKind.CANCELLED)
    assert "See below." in shown
    assert shown.count("rouge_l: it fell by 0.2.") == 1


def test_an_adapter_is_asked_to_be_measured_once_however_fast_somebody_clicks(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD)
    api.set(datasets, datasets.c.name == "rows", rows_validation=5)
    app = open_app("adapters")
    first = button(app, "Measure")
    api.client(admin).post(f"/v1/adapters/{A}/evaluate").raise_for_status()
    first.click().run()
    assert ["on these rows already" in each.value for each in app.error] == [True]
    assert api.count(jobs, jobs.c.kind == Kind.EVALUATE) == 1


def test_an_adapter_whose_measuring_waits_for_room_says_for_what(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD)
    api.set(datasets, datasets.c.name == "rows", rows_validation=5)
    app = open_app("adapters")
    button(app, "Measure").click().run()
    reason = "4 GB are free and 6 are needed."
    api.set(jobs, jobs.c.kind == Kind.EVALUATE, sampling={"waiting_reason": reason})
    assert f"Waiting: {reason}" in texts_of_progress(app.run())


def test_the_page_says_which_figures_were_not_measured_and_what_to_do(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD)
    api.set(datasets, datasets.c.name == "rows", rows_validation=5)
    button(open_app("adapters"), "Measure").click().run()
    figures = {
        **{name: figure for name, figure in FIGURES.items() if name != "choices_accuracy"},
        "loss": {**FIGURES["loss"], "rows": 2},
    }
    gateway = api.gateway
    job = api.claim(kind=Kind.EVALUATE)
    with gateway.database.write() as connection:
        store = EvaluationStore(gateway.jobs, gateway.envelope)
        store.record_end(connection, job.claim, figures=figures, samples={})
    api.finish(job)
    shown = texts(open_app("adapters")).replace("\\", "")
    assert ":material/close: loss: this figure rests on 2 held-out rows and needs 10: hold out more" in shown
    assert ":material/remove: choices_accuracy: this figure was not measured; set MEDICHAT_EVALU" in shown


def test_the_list_of_answers_is_made_only_when_asked_for(open_app: Open, api: Api, admin: Person) -> None:
    add_good_adapter(api, admin, A)
    app = open_app("adapters")
    assert not api.audit("adapter.answers_listed")
    app.toggle(key=f"answers-{A}").set_value(True).run()
    assert "None so far." in texts(app)
    assert api.audit("adapter.answers_listed")


def test_older_answers_are_reached_by_a_click(
    open_app: Open, api: Api, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.ui.tuning.PAGE", 2)
    add_good_adapter(api, admin, A)
    given = answers_by(api, admin, A, 3)
    app = open_app("adapters")
    app.toggle(key=f"answers-{A}").set_value(True).run()
    assert app.dataframe[-1].value["job"].to_list() == [given[2], given[1]]
    button(app, "Older").click().run()
    assert app.dataframe[-1].value["job"].to_list() == [given[0]]
    assert button(app, "Older").disabled
    button(app, "Newest").click().run()
    assert app.dataframe[-1].value["job"].to_list() == [given[2], given[1]]


# -- comparing


def compare(app: AppTest, question: str = "What is asthma?") -> AppTest:
    """Fill in the form."""
    app.text_area(key="compare-question").set_value(question)
    return button(app, "Ask both").click().run()


def test_a_blind_comparison_tells_which_is_which_only_after_the_vote(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_good_adapter(api, admin, A)
    app = compare(open_app("compare"))
    assert "Writing …" in texts(app)
    api.answer("It narrows the airways.")
    api.answer("It is a disease.")
    app.run()
    assert "It narrows the airways." in texts(app)
    assert {"**A**", "**B**"} <= {each.value for each in app.markdown}
    button(app, "Equal").click().run()
    assert "You found them equal." in texts(app)
    assert {"A: doses v1", "B: doses v1"} & {each.value.strip("*").split(" (")[0] for each in app.markdown}
    assert app.dataframe[0].value.to_dict("records") == [
        {
            "one": "base model alone",
            "the other": "doses v1 (candidate)",
            "one is better": 0,
            "equal": 1,
            "the other is better": 0,
        }
    ]


def test_there_is_no_vote_on_what_the_guard_answered(open_app: Open, api: Api, admin: Person) -> None:
    add_good_adapter(api, admin, A)
    app = compare(open_app("compare"), "I want to kill myself.")
    assert "The guard answered this itself" in texts(app)
    assert not [each for each in app.button if each.label == "Equal"]


def test_a_comparison_is_erased_for_good_once_the_password_was_typed(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_good_adapter(api, admin, A)
    app = compare(open_app("compare"))
    api.answer("It narrows the airways.")
    api.answer("It is a disease.")
    app.run()
    api.set(sessions, sessions.c.user_id == admin.id, reauthenticated_at=datetime(2026, 1, 1, tzinfo=UTC))
    button(app, "Yes: erase").click().run()
    next(each for each in app.text_input if each.label == "Your password").set_value(PASSWORD)
    button(app, "Go on").click().run()
    button(app, "Yes: erase").click().run()
    assert "Erased for good: 2 conversations." in texts(app)
    assert "narrows the airways" not in texts(app)
    assert (
        api.count(data_keys, data_keys.c.scope == "conversation", data_keys.c.wrapped_key.is_not(None)) == 0
    )
    (made,) = api.client(admin).get("/v1/comparisons").json()["newest"]
    assert "This comparison was erased" in texts(open_app("compare", q=made["id"]))


def test_a_comparison_of_one_with_itself_or_of_nothing_is_not_asked(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_good_adapter(api, admin, A)
    app = compare(open_app("compare"), " ")
    assert [each.value for each in app.error] == ["Write a question first."]
    app.selectbox(key="compare-right").set_value("base")
    compare(app)
    assert "choose two different ones" in app.error[0].value


def test_only_adapters_that_can_answer_for_the_model_are_offered(
    open_app: Open, api: Api, admin: Person
) -> None:
    add_good_adapter(api, admin, A)
    add_good_adapter(api, admin, B, name="scans", base_model="medgemma-4b")
    add_good_adapter(api, admin, C, name="of an earlier release")
    api.set(adapters, adapters.c.sha256 == C, files_sha256=None)
    app = open_app("compare")
    assert app.selectbox(key="compare-right").options == ["base model alone", "doses v1 (candidate)"]


def test_an_earlier_comparison_is_found_again_and_voted_on(open_app: Open, api: Api, admin: Person) -> None:
    add_good_adapter(api, admin, A)
    body = {"question": "What is asthma?", "left": A, "right": None, "blind": True}
    api.client(admin).post("/v1/comparisons", json=body).raise_for_status()
    for answer in ("It narrows the airways.", "It is a disease."):
        api.answer(answer)
    app = open_app("compare")
    (earlier,) = [each for each in app.button if each.key.startswith("open-")]
    assert earlier.label.endswith("· blind · no vote yet")
    app = earlier.click().run()
    assert not [each for each in app.button if each.key.startswith("open-")]
    button(app, "Equal").click().run()
    assert "You found them equal." in texts(app)


def test_somebody_elses_comparison_is_not_shown(open_app: Open, api: Api, admin: Person) -> None:
    add_good_adapter(api, admin, A)
    body = {"question": "A secret?", "left": A, "right": None, "blind": False}
    made = api.client(api.person(Role.ADMIN)).post("/v1/comparisons", json=body).json()
    app = open_app("compare", q=made["id"])
    assert "no comparison of yours" in texts(app)
    assert "secret" not in texts(app)
