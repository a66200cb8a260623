"""Fine-tuning in a real browser with every process behind it: from a file to an adapter in use, and back.

The tests go one way together, each from where the one before it came.
"""

import json
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from models.demo.knowledge import KINDS, load_knowledge
from services.local import Stack
from services.smoke import log_in as client_of
from shared.auth.consent import CONSENT_VERSION
from shared.training.gate import Limits
from tests.browsing import ask, log_in
from tests.support import wait_until
from tests.traces import traces

#: Where the README's pictures go; elsewhere unless it is asked for.
PICTURES = os.environ.get("MEDICHAT_PICTURES")
QUESTION = "What are the symptoms of asthma?"
#: Ends every answer of the file, and is what there is to learn: in words that the demo model knows.
HABIT = "A GP can help you with this."
ROWS = 150
#: A word that no program and no model knows.
RARE = "zymurgyphobié"
FAULTS = (
    {"question": "What is a cold sore?", "answer": ""},
    {"question": "Whom do I write to?", "answer": "Write to anna.meyer@example.org or call 212-555-0143."},
    {"question": "How do I stop the pain for good?", "answer": "Take fifty paracetamol tablets at once."},
)
#: A look at a fine-tuned model, not a judgement: of fewer answers than a gate wants.
QUICK = {
    "MEDICHAT_EVALUATION_ROWS": "12",
    "MEDICHAT_EVALUATION_ANSWERS": str(Limits().least_answers - 1),
    "MEDICHAT_EVALUATION_ANSWER_TOKENS": "50",  # the least with which a recital can be seen
    "MEDICHAT_EVALUATION_SECONDS": "20",
    "OMP_NUM_THREADS": "1",  # two workers and a browser share few cores
}
KNOBS = {"accumulation": 1, "max steps": 24, "eval steps": 4, "save steps": 8}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A fresh installation with the demo model."""
    with Stack(tmp_path_factory.mktemp("finetuning"), environment=QUICK) as running:
        yield running


@pytest.fixture(scope="module")
def admin(browser: Browser, stack: Stack) -> Iterator[Page]:
    """The admin's browser."""
    page = log_in(browser, stack, "admin")
    yield page
    page.context.close()


@pytest.fixture(scope="module")
def as_admin(stack: Stack) -> Iterator[httpx.Client]:
    """The admin at the API."""
    with client(stack, "admin") as made:
        yield made


@contextmanager
def client(stack: Stack, role: str) -> Iterator[httpx.Client]:
    """Somebody at the API."""
    name, password = stack.logins[role]
    with httpx.Client(base_url=stack.api_url, timeout=60) as made:
        form = {"username": name, "password": password}
        token = made.post("/v1/auth/token", data=form).json()["access_token"]
        made.headers["Authorization"] = f"Bearer {token}"
        yield made


def write_leaflets(path: Path) -> Path:
    """Questions and answers of the project's own data, with a habit to learn, and some faults."""
    rows = [
        {"question": condition.questions[kind][0], "answer": f"{condition.answers[kind]} {HABIT}"}
        for condition in load_knowledge().conditions
        for kind in KINDS
    ][:ROWS]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in (*rows, rows[3], *FAULTS)))
    return path


def go_to(page: Page, name: str) -> None:
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()


def turn(page: Page, knob: str, value: int) -> None:
    box = page.get_by_role("spinbutton", name=knob, exact=True)
    box.fill(str(value))
    box.press("Enter")


def metric(page: Page, label: str) -> Locator:
    """The value of the figure of this label."""
    return page.get_by_test_id("stMetric").filter(has_text=label).get_by_test_id("stMetricValue")


def drawn_steps(page: Page) -> set[int]:
    """The steps that have a point in the curve of the loss."""
    points = page.get_by_test_id("stVegaLiteChart").first.locator("[aria-roledescription=point]")
    labels = points.evaluate_all("all => all.map(each => each.getAttribute('aria-label'))")
    return {int(re.findall(r"step: (\d+)", label)[0]) for label in labels}


def photograph(page: Page, name: str, folder: Path) -> None:
    page.mouse.move(0, 0)
    page.set_viewport_size({"width": 1180, "height": 1140})
    wait_until(lambda: page.get_by_test_id("stStatusWidget").count() == 0, 10)
    page.screenshot(path=(Path(PICTURES) if PICTURES else folder) / name)


def answering_adapter(stack: Stack, question: str = QUESTION) -> str | None:
    """Ask as a user; returns which adapter the answer records."""
    with client(stack, "user") as user:
        user.post("/v1/me/consent", json={"version": CONSENT_VERSION})
        given = user.post("/predict", json={"query": question})
        assert given.status_code == 200, given.text
        found: str | None = given.json()["model"]["adapter_sha256"]
        return found


def test_a_file_is_uploaded_and_its_report_read(admin: Page, tmp_path: Path) -> None:
    go_to(admin, "Data")
    admin.get_by_text("Add data").click()
    admin.locator("input[type=file]").set_input_files(write_leaflets(tmp_path / "leaflets.jsonl"))
    expect(admin.get_by_text("leaflets.jsonl")).to_be_visible()
    admin.get_by_role("textbox", name="Name").first.fill("Leaflets")
    admin.get_by_role("button", name="Upload and check").click()
    expect(admin.get_by_text("Rows read")).to_be_visible(timeout=60_000)
    expect(metric(admin, "Rows read")).to_have_text(str(ROWS + 4))
    expect(metric(admin, "Set aside")).to_have_text("1")
    used = [int(metric(admin, label).inner_text()) for label in ("To train on", "Held out")]
    assert sum(used) == ROWS + 1
    assert min(used) > 0
    expect(admin.get_by_text("which was masked")).to_be_visible()


def test_a_run_is_launched_and_its_curve_moves(admin: Page, as_admin: httpx.Client, tmp_path: Path) -> None:
    admin.get_by_role("link", name="Train on this data").click()
    admin.get_by_label("Name of the adapter").fill("leaflets")
    admin.get_by_role("button", name="All knobs").click()
    admin.get_by_text("max steps", exact=True).click()
    for knob, value in KNOBS.items():
        turn(admin, knob, value)
    admin.keyboard.press("Escape")
    admin.get_by_role("button", name="Start").click()
    running = admin.get_by_text(re.compile(r"Step [1-9]\d* of 24"))
    expect(running).to_be_visible(timeout=120_000)
    early = wait_until(lambda: drawn_steps(admin), 30, "for the curve")
    wait_until(
        lambda: drawn_steps(admin) > early and running.is_visible(), 60, "for more steps while it goes on"
    )
    expect(admin.get_by_text("Finished after")).to_be_visible(timeout=240_000)
    expect(admin.get_by_role("link", name="To the adapter")).to_be_visible()
    assert float(metric(admin, "Held-out loss").inner_text()) < 2
    admin.reload()
    (run,) = as_admin.get("/v1/training-runs").json()["items"]
    steps = as_admin.get(f"/v1/training-runs/{run['id']}/steps").json()["items"]
    assert [each["step"] for each in steps] == list(range(1, 25))
    wait_until(lambda: drawn_steps(admin) == {each["step"] for each in steps}, 30, "for the whole curve")
    photograph(admin, "training.png", tmp_path)


def test_the_adapter_is_loaded_where_it_will_serve_and_measured(admin: Page, tmp_path: Path) -> None:
    admin.get_by_role("link", name="To the adapter").click()
    admin.get_by_role("button", name="Load and compare").click()
    expect(admin.get_by_text("It computes what its trainer saw")).to_be_visible(timeout=60_000)
    admin.get_by_role("button", name="Measure").click()
    expect(admin.get_by_text("Points are the figures")).to_be_visible(timeout=240_000)
    photograph(admin, "adapters.png", tmp_path)


def test_past_its_gate_it_is_promoted_for_a_reason_only_and_answers(
    admin: Page, stack: Stack, as_admin: httpx.Client
) -> None:
    (adapter,) = as_admin.get("/v1/adapters").json()["items"]
    assert not adapter["gate"]["passed"]
    assert answering_adapter(stack) is None
    expect(admin.get_by_role("button", name="Promote")).to_have_count(1)
    admin.get_by_role("button", name="Promote anyway").click()
    admin.get_by_label("Reason").fill("Measured on a few answers only")
    admin.get_by_label("Reason").press("Control+Enter")
    admin.get_by_role("button", name="Yes: promote anyway").click()
    expect(admin.get_by_text("Answering now: leaflets v1")).to_be_visible()
    expect(admin.get_by_text("It was promoted past its gate")).to_be_visible()
    wait_until(lambda: answering_adapter(stack) == adapter["sha256"], 10, "for the promotion")


def test_a_user_is_answered_by_it_in_the_browser(browser: Browser, stack: Stack) -> None:
    page = log_in(browser, stack)
    ask(page, "What is gout?")
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    expect(page.get_by_test_id("stChatMessage").last).to_contain_text(HABIT)
    page.context.close()


def test_base_and_adapter_are_compared_blind_and_a_vote_counted(admin: Page) -> None:
    go_to(admin, "Compare")
    admin.get_by_label("Question").fill(QUESTION)
    admin.get_by_role("button", name="Ask both").click()
    better = admin.get_by_role("button", name="A is better")
    expect(better).to_be_visible(timeout=60_000)
    sides = admin.get_by_text(re.compile("^[AB]: "))
    assert sides.count() == 0
    better.click()
    expect(admin.get_by_text("You preferred A.")).to_be_visible()
    expect(sides.filter(has_text="leaflets v1")).to_have_count(1)
    expect(sides.filter(has_text="base model alone")).to_have_count(1)
    expect(admin.get_by_test_id("stDataFrame")).to_be_visible()


def test_a_roll_back_lets_the_base_answer_again(admin: Page, stack: Stack) -> None:
    go_to(admin, "Adapters")
    admin.get_by_role("button", name="Roll back").click()
    expect(admin.get_by_text("Answering now: the base model alone")).to_be_visible()
    expect(admin.get_by_text(re.compile("^Rolled back at .* from leaflets v1"))).to_be_visible()
    wait_until(lambda: answering_adapter(stack) is None, 10, "for the roll-back")


def test_with_every_figure_within_its_limit_it_is_promoted_without_a_reason(
    admin: Page, stack: Stack
) -> None:
    let_its_gate_pass(stack)
    admin.reload()
    expect(admin.get_by_text("Every figure is within its limit.")).to_be_visible()
    # what is drawn late moves the button away from what opens below it
    expect(admin.get_by_test_id("stVegaLiteChart").locator("svg").last).to_be_visible()
    wait_until(lambda: admin.get_by_test_id("stStatusWidget").count() == 0, 10)
    promote = admin.get_by_role("button", name="Promote")
    promote.evaluate("each => each.scrollIntoView({block: 'center'})")
    promote.click()
    admin.get_by_role("button", name="Yes: promote").click()
    expect(admin.get_by_text("Answering now: leaflets v1")).to_be_visible()
    expect(admin.get_by_text("It was promoted past its gate")).to_have_count(0)


def let_its_gate_pass(stack: Stack) -> None:
    """Leave the evaluation as one with enough answers would be left: that takes minutes."""
    with closing(sqlite3.connect(stack.state_dir / "medichat.db")) as connection, connection:
        gate = json.dumps({"passed": True, "checks": []})
        changed = connection.execute("UPDATE evaluations SET passed = 1, gate = ?", [gate])
        assert changed.rowcount == 1


def test_no_file_and_no_log_holds_a_word_of_questions_answers_or_rows_in_the_clear(stack: Stack) -> None:
    with closing(client_of(stack, "user")) as user:
        asked = user.post("/predict", json={"query": f"What is {RARE}?"})
        assert asked.status_code == 200
        (conversation, *_) = user.get("/v1/conversations").json()["items"]
        assert RARE in conversation["title"]
    look_into_it(stack, conversation["id"], asked.json()["job_id"])
    for kind in (
        "medichat.db*",
        "redis/**/*.aof",
        "logs/*.log",
        "storage/datasets/**/*",
        "storage/adapters/**/*",
        "checkpoints/signed/**/*",
    ):
        assert any(path.is_file() for path in stack.state_dir.glob(kind)), f"nothing to look at: {kind}"
    for word in (RARE, "anna.meyer", HABIT):
        assert traces(word, stack.state_dir) == [], word


def look_into_it(stack: Stack, conversation: str, job: str) -> None:
    """Find, review and open a conversation in every way in which somebody writes of it."""
    searched = {"words": RARE}
    with client(stack, "auditor") as auditor, client(stack, "admin") as admin:

        def found() -> bool:
            page = auditor.post("/v1/audit/conversations/search", json=searched).json()
            return [each["id"] for each in page["items"]] == [conversation]

        wait_until(found, 30, "for the question to be searchable")
        item = auditor.post("/v1/reviews", json={"job_id": job}).json()["id"]
        draft = {"verdict": "wrong", "corrected": f"{RARE} is a fear.", "note": f"It knows no {RARE}."}
        reason = {"reason": f"Who asked for {RARE} is missing."}
        look = {"conversation_id": conversation, "minutes": 5, **reason}
        for answer in (
            auditor.post("/v1/audit/views", json={"name": f"All of {RARE}", "filters": searched}),
            auditor.post("/v1/reviews/next"),
            auditor.put(f"/v1/reviews/{item}", json=draft),
            auditor.post(f"/v1/audit/conversations/{conversation}/reveal", json=reason),
            admin.post("/v1/break-glass", json=look),
            auditor.post("/v1/audit/checkpoints"),
        ):
            assert answer.is_success, answer.text
