"""The page on which a browser logs in and out. It sets the cookie that the dashboard reads and sends on."""

from datetime import datetime, timedelta
from html import escape
from importlib.resources import files
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Cookie, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy import Connection

from services.api import credentials
from services.api.deps import GatewayDep, Public
from services.api.routers.auth import address_of
from services.api.routers.users import MAX_NAME
from services.api.state import Gateway
from shared.audit import record
from shared.auth import sessions
from shared.auth.accounts import Account
from shared.auth.passwords import MAX_LENGTH
from shared.errors import LimitReached, NotAuthenticated, Unavailable
from shared.prompts import DISCLAIMER

router = APIRouter(dependencies=[Public], include_in_schema=False)

COOKIE = "medichat_session"
_STYLE = (files("services.api") / "login.css").read_text(encoding="utf-8")
_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
}


@router.get("/login")
def login_page() -> HTMLResponse:
    """The form."""
    return _form()


@router.post("/login")
def log_in(
    request: Request,
    gateway: GatewayDep,
    username: Annotated[str, Form()] = "",
    password: Annotated[str, Form()] = "",
    medichat_session: Annotated[str | None, Cookie()] = None,
) -> Response:
    """Check name and password, set the cookie and go to the dashboard; or the form again, with the reason.

    The log-in that this browser had ends, for a page of somebody else may still be open under it.
    """
    if not _same_origin(request, gateway):
        return _form("This form was sent from another site. Please log in here.", username, status=403)
    if len(username) > MAX_NAME or len(password) > MAX_LENGTH:
        too_long = (
            f"A name has at most {MAX_NAME} characters and a password {MAX_LENGTH}; check what you typed."
        )
        return _form(too_long, username[:MAX_NAME], status=401)
    life = timedelta(hours=gateway.settings.session_max_hours)

    def start(connection: Connection, account: Account, now: datetime) -> str:
        token = sessions.start_browser_session(connection, account, life=life, now=now)
        if medichat_session:
            by = record.Actor(account.id)
            why = "another log-in"
            sessions.end_browser_session(connection, medichat_session, by=by, now=now, reason=why)
        return token

    try:
        token = credentials.log_in(gateway, address_of(request), username, password, start)
    except (NotAuthenticated, LimitReached, Unavailable) as error:
        wait = f" Wait {error.retry_after_s:.0f} seconds." if error.retry_after_s else ""
        return _form(error.detail + wait, username, status=503 if isinstance(error, Unavailable) else 401)
    response = RedirectResponse(gateway.settings.public_ui_url, status_code=303, headers=_SECURITY)
    response.set_cookie(
        COOKIE,
        token,
        max_age=int(life.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=gateway.settings.secure_cookies,
    )
    return response


@router.get("/logout")
def logout_page() -> HTMLResponse:
    """Asks before it ends the log-in: a link alone must not."""
    return _ask_to_log_out("MediChat")


@router.post("/logout")
def log_out(
    request: Request, gateway: GatewayDep, medichat_session: Annotated[str | None, Cookie()] = None
) -> Response:
    """End the log-in that the cookie names, and take the cookie back; not for another site's form."""
    if not _same_origin(request, gateway):
        return _ask_to_log_out("This form was sent from another site. Please log out here.", status=403)
    if medichat_session:
        with gateway.database.write() as connection:
            now = gateway.clock.now(connection)
            sessions.end_browser_session(connection, medichat_session, now=now, reason="logout")
    response = _page("Logged out", '<a class="button" href="/login">Log in again</a>', "You are logged out.")
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


def _same_origin(request: Request, gateway: Gateway) -> bool:
    """Whether the form comes from our own page: else another site could log a browser in as somebody."""
    origin = request.headers.get("origin")
    if origin is None or origin == "null":
        return request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
    ours = {urlsplit(gateway.settings.public_api_url).netloc, request.headers.get("host", "")}
    return urlsplit(origin).netloc in ours


def _ask_to_log_out(text: str, status: int = 200) -> HTMLResponse:
    button = '<form method="post" action="/logout"><button autofocus>Log out</button></form>'
    return _page("Log out", button, text, status)


def _form(error: str = "", username: str = "", status: int = 200) -> HTMLResponse:
    notice = f'<div class="error" role="alert">{escape(error)}</div>' if error else ""
    first, second = ("", "autofocus") if username else ("autofocus", "")
    # a browser counts some characters as two, and cuts a pasted text without a word
    fields = f"""{notice}<form method="post" action="/login">
<label for="username">Name</label>
<input id="username" name="username" autocomplete="username" required maxlength="{2 * MAX_NAME}"
 value="{escape(username)}" {first}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required
 maxlength="{2 * MAX_LENGTH}" {second}>
<button>Log in</button></form>"""
    return _page("Log in to MediChat", fields, DISCLAIMER, status)


def _page(title: str, body: str, text: str, status: int = 200) -> HTMLResponse:
    html = f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>{_STYLE}</style></head><body><main><h1>{title}</h1><p>{escape(text)}</p>{body}</main></body></html>"""
    return HTMLResponse(html, status_code=status, headers=_SECURITY)
