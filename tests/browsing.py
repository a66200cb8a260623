"""What a person does with the dashboard in a browser: opens it, logs in, asks, reads."""

from playwright.sync_api import Browser, Page, expect

from services.local import Stack


def open_page(browser: Browser, stack: Stack) -> Page:
    """The dashboard in a browser that knows nobody."""
    context = browser.new_context(viewport={"width": 1180, "height": 860}, device_scale_factor=1)
    page = context.new_page()
    page.goto(stack.ui_url)
    return page


def log_in(browser: Browser, stack: Stack, role: str = "user") -> Page:
    """A page of somebody who is logged in and, as a user, has accepted the disclaimer."""
    page = open_page(browser, stack)
    page.get_by_role("link", name="Log in").click()
    name, password = stack.logins[role]
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
