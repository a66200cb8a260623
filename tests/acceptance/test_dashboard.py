"""The dashboard in a real browser, with every process behind it: what a nurse sees."""

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from models.demo.pictures import SIDES, Side, draw_picture
from services.local import Stack
from services.smoke import follow
from services.smoke import log_in as client_of
from tests.browsing import answer, ask, let_in, log_in, open_page
from tests.drawn import encoded
from tests.endless_model import write_endless_model
from tests.support import wait_until

#: Where the README's picture goes; elsewhere unless it is asked for.
PICTURES = os.environ.get("MEDICHAT_PICTURES")
#: Keeps the page's connections where a test can end one.
KNOWN_SOCKETS = """
window.sockets = [];
window.WebSocket = class extends WebSocket {
    constructor(...given) { super(...given); window.sockets.push(this); }
};
"""
QUESTION = "What are the symptoms of asthma?"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A fresh installation with the demo model, as `make up` starts it."""
    with Stack(tmp_path_factory.mktemp("demo")) as stack:
        yield stack


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An installation whose answers take some seconds, so that something can happen meanwhile."""
    folder = tmp_path_factory.mktemp("slow")
    environment = {
        "MEDICHAT_MODEL_PATH": str(write_endless_model(folder / "model")),
        "MEDICHAT_MAX_NEW_TOKENS": "1700",
    }
    with Stack(folder, without=["worker_train"], environment=environment) as stack:
        yield stack


def letters(text: str) -> str:
    """A text without its blanks: a page breaks lines where it likes."""
    return "".join(text.split())


def whole_answer(page: Page) -> str:
    """The letters of the newest answer, which has ended, without what stands around it."""
    text = page.get_by_test_id("stChatMessage").last.get_by_test_id("stMarkdownContainer").last
    return letters(text.inner_text())


def conversation_on(page: Page, client: httpx.Client) -> dict[str, Any]:
    """The conversation on the page, as the database holds it."""
    held: dict[str, Any] = client.get(f"/v1/conversations/{page.url.rpartition('c=')[2]}").json()
    return held


def test_a_nurse_logs_in_asks_and_sees_the_answer_with_its_disclaimer(
    browser: Browser, demo: Stack, tmp_path: Path
) -> None:
    page = log_in(browser, demo)
    expect(page.get_by_text("not a doctor").first).to_be_visible()
    ask(page, QUESTION)
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    assert re.search(r"breath|chest|wheez|cough", answer(page))
    assert page.get_by_test_id("stChatMessage").count() == 2
    expect(page.get_by_text("thumb_up")).to_be_visible()  # drawn a moment after the text
    page.mouse.move(0, 0)
    pictures = Path(PICTURES) if PICTURES else tmp_path
    wait_until(lambda: page.get_by_test_id("stStatusWidget").count() == 0, 10)
    page.screenshot(path=pictures / "chat.png")
    page.context.close()


@pytest.mark.parametrize("side", SIDES)
def test_the_model_sees_the_picture_that_a_nurse_sends(browser: Browser, demo: Stack, side: Side) -> None:
    page = log_in(browser, demo)
    drawn = Image.fromarray(draw_picture(side, np.random.default_rng(7)))
    page.get_by_test_id("stChatInput").locator("input[type=file]").set_input_files(
        {"name": "drawn.png", "mimeType": "image/png", "buffer": encoded(drawn)}
    )
    expect(page.get_by_test_id("stChatInput").get_by_text("drawn.png")).to_be_visible()
    ask(page, "On which side is the bright patch?")
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    assert f"on the {side} side of the picture" in answer(page)
    asked = page.get_by_test_id("stChatMessage").first
    expect(asked.get_by_role("img").last).to_have_js_property("naturalWidth", drawn.width)
    page.context.close()


def test_a_log_in_survives_a_reload_and_a_second_tab(browser: Browser, demo: Stack) -> None:
    page = log_in(browser, demo)
    page.reload()
    expect(page.get_by_test_id("stChatInput")).to_be_visible()
    second = page.context.new_page()
    second.goto(demo.ui_url)
    expect(second.get_by_test_id("stChatInput")).to_be_visible()
    page.context.close()


def test_a_password_that_is_wrong_is_said_on_the_form(browser: Browser, demo: Stack) -> None:
    page = open_page(browser, demo)
    page.get_by_role("link", name="Log in").click()
    page.get_by_label("Name").fill("user")
    page.get_by_label("Password").fill("a guess")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_label("Name")).to_have_value("user")
    page.context.close()


def test_the_log_in_form_draws_its_fields_and_shows_which_one_has_the_focus(
    browser: Browser, demo: Stack, tmp_path: Path
) -> None:
    page = open_page(browser, demo)
    page.get_by_role("link", name="Log in").click()
    name = page.get_by_label("Name")
    for each in (name, page.get_by_label("Password"), page.locator("main")):
        expect(each).to_have_css("border-top-width", "1px")
    name.focus()
    expect(name).to_have_css("outline-style", "solid")
    expect(name).to_have_css("outline-width", "3px")
    page.screenshot(path=tmp_path / "login.png")
    page.context.close()


def test_an_answer_streams_survives_a_reload_and_ends(browser: Browser, slow: Stack) -> None:
    page = log_in(browser, slow)
    ask(page, "What is the flu?")
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_be_visible()
    lengths = [len(answer(page))]
    wait_until(lambda: len(answer(page)) > lengths[0] + 300, 30, "for the answer to grow")
    page.reload()
    expect(stop).to_be_visible()
    wait_until(partial(none_of, slow, "jobs WHERE finished_at IS NULL"), 120, "for the answer to end")
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    grown = answer(page)
    assert len(grown) > lengths[0] + 300
    page.reload()
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    assert answer(page) == grown
    page.context.close()


def test_a_dashboard_that_dies_in_the_middle_of_an_answer_shows_the_whole_of_it_afterwards(
    browser: Browser, slow: Stack
) -> None:
    page = log_in(browser, slow)
    ask(page, "What is a migraine?")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    wait_until(lambda: len(answer(page)) > 300, 30, "for the answer to begin")
    slow.kill("ui")
    slow.start_process("ui")
    slow.wait_ready()
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible(timeout=60_000)
    with closing(client_of(slow, "user")) as client:
        stored = conversation_on(page, client)["messages"][-1]
    assert stored["role"] == "assistant"
    assert whole_answer(page) == letters(stored["text"])
    page.context.close()


@pytest.mark.parametrize(
    "breaks", [False, True], ids=["the connection stands still", "the connection breaks"]
)
def test_a_browser_without_network_in_the_middle_of_an_answer_shows_the_whole_of_it_afterwards(
    browser: Browser, slow: Stack, breaks: bool
) -> None:
    page = log_in(browser, slow)
    page.add_init_script(KNOWN_SOCKETS)
    page.reload()
    ask(page, "What is a stroke?")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    wait_until(lambda: len(answer(page)) > 300, what="for the answer to begin")
    page.context.set_offline(True)
    if breaks:
        page.evaluate("sockets.at(-1).close()")
    read = answer(page)
    with closing(client_of(slow, "user")) as client:
        *_, (ended, _) = follow(client, conversation_on(page, client)["job"]["id"])
        stored = conversation_on(page, client)["messages"][-1]
    assert (ended, stored["role"]) == ("end", "assistant")
    assert answer(page) == read
    page.context.set_offline(False)
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible(timeout=60_000)
    assert len(read) < len(stored["text"])
    assert whole_answer(page) == letters(stored["text"])
    assert not breaks or page.evaluate("sockets.length") > 1
    page.context.close()


def test_a_page_comes_back_by_itself_and_offers_the_question_that_was_not_taken(
    browser: Browser, demo: Stack
) -> None:
    page = log_in(browser, demo)
    demo.kill("api")
    ask(page, "What are the symptoms of gout?")
    expect(page.get_by_text("Not sent yet.")).to_be_visible()
    expect(page.get_by_text("What are the symptoms of gout?")).to_be_visible()
    demo.start_process("api")
    demo.wait_ready()
    page.get_by_role("button", name="Send again").click()
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    expect(page.get_by_test_id("stChatMessage").first).to_contain_text("What are the symptoms of gout?")
    page.context.close()


def test_a_second_tab_follows_the_conversation_and_keeps_what_is_being_written(
    browser: Browser, demo: Stack
) -> None:
    page = log_in(browser, demo)
    ask(page, QUESTION)
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    second = page.context.new_page()
    second.goto(page.url)
    expect(second.get_by_role("button", name="Regenerate")).to_be_visible()
    box = second.get_by_test_id("stChatInput").locator("textarea")
    box.fill("How is it tre")
    ask(page, "What causes gout?")
    expect(second.get_by_test_id("stChatMessage").nth(2)).to_contain_text("What causes gout?")
    expect(second.get_by_test_id("stChatMessage")).to_have_count(4)
    expect(second.get_by_role("button", name="Regenerate")).to_be_visible()
    expect(box).to_have_value("How is it tre")
    page.context.close()


def test_an_answer_is_stopped_and_stays_in_the_history(browser: Browser, slow: Stack) -> None:
    page = log_in(browser, slow)
    ask(page, "How long is a piece of string?")
    begun = time.monotonic()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("You stopped this answer.")).to_be_visible()
    assert time.monotonic() - begun < 20
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_text("What would you like to know?")).to_be_visible()
    page.get_by_test_id("stSidebar").get_by_role("button", name="How long is a piece of string?").click()
    expect(page.get_by_text("You stopped this answer.")).to_be_visible()
    page.context.close()


def test_beside_the_input_it_always_says_that_no_doctor_answers(browser: Browser, demo: Stack) -> None:
    page = log_in(browser, demo)
    ask(page, QUESTION)
    again = page.get_by_role("button", name="Regenerate")
    expect(again).to_be_visible()
    page.set_viewport_size({"width": 1180, "height": 360})
    again.scroll_into_view_if_needed()
    expect(page.get_by_text("MediChat is an AI, not a doctor.")).not_to_be_in_viewport()
    expect(page.get_by_text("An AI, not a doctor; it can be wrong.")).to_be_in_viewport()
    page.context.close()


def test_two_people_see_nothing_of_each_other(browser: Browser, slow: Stack) -> None:
    page = log_in(browser, slow)
    ask(page, "A question of mine alone")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    address = page.url
    stranger = open_page(browser, slow)
    stranger.goto(address)
    expect(stranger.get_by_text("Log in to ask questions.")).to_be_visible()
    other = log_in(browser, slow, login=let_in(slow, "somebody.else"))
    expect(other.get_by_text("No conversations yet.")).to_be_visible()
    other.goto(address)
    expect(other.get_by_text("There is no conversation of yours at this address.")).to_be_visible()
    expect(other.get_by_test_id("stChatInput")).to_have_count(0)
    other.get_by_role("button", name="New conversation").click()
    ask(other, "A question of the second one")
    expect(other.get_by_role("button", name="Stop")).to_be_visible()
    expect(
        other.get_by_test_id("stSidebar").get_by_role("button", name="A question of the second one")
    ).to_be_visible()
    expect(page.get_by_text("A question of mine alone").first).to_be_visible()
    for each, foreign in ((stranger, "mine alone"), (other, "mine alone"), (page, "second one")):
        assert foreign not in each.content()
        each.context.close()
    end_answers(slow)


def test_a_person_in_crisis_gets_help_marked_as_the_guards(browser: Browser, demo: Stack) -> None:
    page = log_in(browser, demo)
    ask(page, "I want to kill myself")
    expect(page.get_by_text("The guard answered at once")).to_be_visible()
    expect(page.get_by_text("local emergency number").last).to_be_visible()
    page.context.close()


@pytest.mark.parametrize(
    ("role", "names", "heading"),
    [
        (
            "admin",
            [
                *("System", "Data", "Training", "Adapters", "Compare", "Guard", "People"),
                *("Emergencyaccess", "Account"),
            ],
            "System",
        ),
        (
            "auditor",
            [
                *("Log", "Integrity", "Conversations", "Conversation", "Review", "Reports", "Holds"),
                *("Emergencyaccess", "Guard", "Account"),
            ],
            "Log",
        ),
    ],
)
def test_admins_and_auditors_see_their_own_pages(
    browser: Browser, demo: Stack, role: str, names: list[str], heading: str
) -> None:
    page = log_in(browser, demo, role)
    expect(page.get_by_role("heading", name=heading).first).to_be_visible()
    shown = page.get_by_test_id("stSidebarNav").get_by_role("link").all_inner_texts()
    assert [re.sub(r"\W", "", name.split("\n")[-1]) for name in shown] == names
    assert page.get_by_test_id("stChatInput").count() == 0
    page.reload()
    expect(page.get_by_role("heading", name=heading).first).to_be_visible()
    page.context.close()


def test_a_page_of_another_role_is_not_found(browser: Browser, demo: Stack) -> None:
    page = log_in(browser, demo)
    page.goto(f"{demo.ui_url}/people")
    expect(page.get_by_test_id("stChatInput")).to_be_visible()
    assert page.get_by_text("Let somebody in").count() == 0
    page.context.close()


def test_logging_out_ends_the_log_in_at_once(browser: Browser, demo: Stack) -> None:
    page = log_in(browser, demo)
    page.get_by_role("link", name="Log out").click()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_text("You are logged out.")).to_be_visible()
    page.goto(demo.ui_url)
    expect(page.get_by_role("link", name="Log in")).to_be_visible()
    page.context.close()


def test_no_page_asks_anything_of_another_host(browser: Browser, demo: Stack) -> None:
    context = browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(demo.ui_url)
    expect(page.get_by_role("link", name="Log in")).to_be_visible()
    page.get_by_role("link", name="Log in").click()
    expect(page.get_by_label("Name")).to_be_visible()
    name, password = demo.logins["auditor"]
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Log").first).to_be_visible()
    expect(page.get_by_test_id("stDataFrame")).to_be_visible()
    here = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")
    assert [url for url in asked if not url.startswith(here)] == []
    context.close()


def test_an_auditor_finds_reveals_judges_exports_and_verifies_until_a_byte_of_the_log_is_changed(
    browser: Browser, demo: Stack, tmp_path: Path
) -> None:
    with closing(client_of(demo, "user")) as client:
        query = "My name is Peter Miller and I want to kill myself. The lovastatin is at hand."
        assert client.post("/predict", json={"query": query}).status_code == 200
    wait_until(partial(all_searchable, demo), 60, "for the message to be searchable")
    page = log_in(browser, demo, role="auditor")
    page.get_by_role("link", name="Conversations").click()
    found = page.get_by_test_id("stPageLink-NavLink")
    page.get_by_role("textbox", name="Words").fill("a word of no conversation")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No conversation matches.")).to_be_visible()
    page.get_by_role("textbox", name="Words").fill("lovastatin")
    page.keyboard.press("Enter")
    expect(found).to_have_count(1)
    expect(page.get_by_text("guard: crisis")).to_be_visible()

    page.get_by_role("button", name="Export").click()
    page.get_by_role("button", name="Make the file").click()
    with page.expect_download() as saving:
        page.get_by_role("button", name="Save ").click()
    exported = Path(saving.value.path()).read_text()
    assert "crisis" in exported
    assert "lovastatin" not in exported

    expect(found).to_have_count(1)
    found.click()
    expect(page.get_by_text("[NAME]").first).to_be_visible()
    assert page.get_by_text("Peter Miller").count() == 0
    page.get_by_role("button", name="Reveal identifiers").click()
    page.get_by_label("Reason (kept for auditors)").fill("Somebody must call this person.")
    page.keyboard.press("Control+Enter")
    page.get_by_role("button", name="Yes").click()
    expect(page.get_by_text("Peter Miller").first).to_be_visible()

    page.get_by_role("link", name="Review", exact=True).click()
    page.get_by_role("button", name="Review the next one").click()
    expect(page.get_by_text("Was the guard right to step in?")).to_be_visible()
    page.keyboard.press("1")
    expect(page.get_by_text("Saved")).to_be_visible()
    page.reload()
    expect(page.get_by_text("Saved")).to_be_visible()
    expect(page.get_by_role("button", name="Yes, it was right")).to_be_visible()
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    page.keyboard.press("y")
    chosen = page.get_by_test_id("stBaseButton-primary")
    expect(chosen.filter(has_text="Yes, it was right")).to_be_visible()
    page.keyboard.press("g")
    expect(page.get_by_role("button", name="Take back the last one (safe)")).to_be_visible()

    page.get_by_role("link", name="Integrity").click()
    page.get_by_role("button", name="Sign one now").click()
    expect(page.get_by_role("button", name="Download it, to keep elsewhere")).to_be_visible()
    page.get_by_role("button", name="Verify the whole log").click()
    expect(page.get_by_text("The log is what was signed")).to_be_visible()
    page.screenshot(path=(Path(PICTURES) if PICTURES else tmp_path) / "integrity.png")
    entry = change_a_byte(demo)
    page.get_by_role("button", name="Verify the whole log").click()
    expect(page.get_by_text(f"The first: entry {entry}: its event was changed")).to_be_visible()
    page.context.close()


def all_searchable(stack: Stack) -> bool:
    return none_of(stack, "search_pending")


def none_of(stack: Stack, rows: str) -> bool:
    with closing(sqlite3.connect(stack.settings.state_dir / "medichat.db")) as connection:
        return connection.execute(f"SELECT count(*) FROM {rows}").fetchone() == (0,)


def end_answers(stack: Stack) -> None:
    """End answers for which nobody waits any more: to the last word they take what other tests could use."""
    with closing(client_of(stack, "admin")) as admin:
        assert admin.post("/v1/guard/stop", json={"reason": "The test is over."}).status_code == 200
        wait_until(partial(none_of, stack, "jobs WHERE finished_at IS NULL"), what="for the answers to end")
        assert admin.post("/v1/guard/start").status_code == 200


def change_a_byte(stack: Stack) -> int:
    """Change one byte of an event in the middle of the log, as who owns the file can; returns its entry."""
    with closing(sqlite3.connect(stack.settings.state_dir / "medichat.db")) as connection:
        connection.execute("DROP TRIGGER audit_events_no_update")
        (entry,) = connection.execute("SELECT max(sequence) / 2 FROM audit_seals").fetchone()
        row = "id = (SELECT event_id FROM audit_seals WHERE sequence = ?)"
        (data,) = connection.execute(
            f"SELECT canonical_bytes FROM audit_events WHERE {row}", (entry,)
        ).fetchone()
        altered = bytes([data[0]]) + bytes([data[1] ^ 1]) + data[2:]
        connection.execute(f"UPDATE audit_events SET canonical_bytes = ? WHERE {row}", (altered, entry))
        connection.commit()
    return int(entry)
