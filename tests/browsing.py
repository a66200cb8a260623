"""What a person does with the dashboard in a browser: opens it, logs in, asks, reads."""

import httpx
from playwright.sync_api import Browser, Page, expect

from services.local import Stack


def open_page(browser: Browser, stack: Stack) -> Page:
    """The dashboard in a browser that knows nobody."""
    context = browser.new_context(viewport={"width": 1180, "height": 860}, device_scale_factor=1)
    page = context.new_page()
    page.goto(stack.ui_url)
    return page


def let_in(stack: Stack, name: str) -> tuple[str, str]:
    """Let one more user in, as an admin does; returns name and password."""
    admin, secret = stack.logins["admin"]
    with httpx.Client(base_url=stack.api_url, timeout=30) as client:
        form = {"username": admin, "password": secret}
        token = client.post("/v1/auth/token", data=form).json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        made = client.post("/v1/users", json={"name": name, "role": "user"}, headers=headers).json()
    return name, made["password"]


def log_in(
    browser: Browser, stack: Stack, role: str = "user", *, login: tuple[str, str] | None = None
) -> Page:
    """A page of somebody who is logged in and, as a user, has accepted the disclaimer.

    It is the first of this role, or the one of this `login` (name and password).
    """
    page = open_page(browser, stack)
    page.get_by_role("link", name="Log in").click()
    name, password = login or stack.logins[role]
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.keyboard.press("Enter")
    if role == "user":
        expect(page.get_by_text("Before you start").or_(page.get_by_test_id("stChatInput"))).to_be_visible()
        if page.get_by_text("Before you start").is_visible():
            page.get_by_text("I have read and understood this.").click()
            page.get_by_role("button", name="Continue").click()
        expect(page.get_by_test_id("stChatInput")).to_be_visible()
    return page


def ask(page: Page, question: str) -> None:
    """Write a question and send it."""
    box = page.get_by_test_id("stChatInput").locator("textarea")
    box.fill(question)
    box.press("Enter")


def answer(page: Page) -> str:
    """The newest answer as it stands, without its thumbs, which are drawn a moment after the text."""
    shown = page.get_by_test_id("stChatMessage").last.inner_text()
    return shown.replace("thumb_up", "").replace("thumb_down", "").strip()
