"""Decides what a person sees: the way to the log-in, the consent, or the pages of their role.

Pages that a role may not use are not listed here; what keeps them safe is that the gateway refuses.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import streamlit as st

from services.ui import session
from services.ui.client import Gateway, GatewayError, Json
from services.ui.text import plain_markdown
from services.ui.views import (
    account,
    adapters,
    chat,
    compare,
    consent,
    conversation,
    data,
    emergency,
    finding,
    guard,
    holds,
    integrity,
    jobs,
    log,
    once,
    people,
    reports,
    review,
    set_passwords,
    system,
    training,
    unsent,
)
from shared.settings import get_settings

#: A named icon would be fetched from another host.
ICON = Path(__file__).with_name("icon.svg")
#: Answers of a gateway that may do it in a moment; 0 is none at all.
AWAY = (0, 429, 500, 503)
#: How often a page that could not be shown looks whether the gateway is back, in seconds.
RETRY_S = 3
#: How often each page looks whether its log-in still counts, in seconds.
LOOK_S = 5
LOOK_WITHIN_S = 2
Page = tuple[Callable[[Gateway, Json], None], str, str, str]
ACCOUNT: Page = (account.show, "Account", ":material/person:", "account")
EMERGENCY: Page = (emergency.show, "Emergency access", ":material/emergency_home:", "emergency")
#: Per role: what to show, title, icon, path. The first is the home page.
PAGES: dict[str, list[Page]] = {
    "user": [
        (chat.show, "Ask", ":material/forum:", "ask"),
        (jobs.show, "Jobs", ":material/list:", "jobs"),
        ACCOUNT,
    ],
    "admin": [
        (system.show, "System", ":material/monitoring:", "system"),
        (data.show, "Data", ":material/dataset:", "data"),
        (training.show, "Training", ":material/model_training:", "training"),
        (adapters.show, "Adapters", ":material/extension:", "adapters"),
        (compare.show, "Compare", ":material/compare:", "compare"),
        (guard.show, "Guard", ":material/shield:", "guard"),
        (people.show, "People", ":material/group:", "people"),
        EMERGENCY,
        ACCOUNT,
    ],
    "auditor": [
        (log.show, "Log", ":material/fact_check:", "log"),
        (integrity.show, "Integrity", ":material/verified:", "integrity"),
        (finding.show, "Conversations", ":material/search:", "conversations"),
        (conversation.show, "Conversation", ":material/forum:", "conversation"),
        (review.show, "Review", ":material/rate_review:", "review"),
        (reports.show, "Reports", ":material/analytics:", "reports"),
        (holds.show, "Holds", ":material/gavel:", "holds"),
        EMERGENCY,
        (guard.show, "Guard", ":material/shield:", "guard"),
        ACCOUNT,
    ],
}


def main() -> None:
    """Show the page that the person asked for, or what stands before it."""
    st.set_page_config(page_title="MediChat", page_icon=str(ICON), layout="centered")
    token = session.token()
    if token is None:
        return _offer_log_in("Log in to ask questions.")
    gateway = Gateway(token, watching=session.drawn_by_itself())
    try:
        me = gateway.me()
        session.belong_to(me["id"])
        if not me["consented"] and me["role"] == "user":
            return consent.show(gateway, me)
        _navigate(gateway, me)
    except GatewayError as error:
        _explain(gateway, error)
    return None


def _navigate(gateway: Gateway, me: Json) -> None:
    pages = [
        st.Page(partial(show, gateway, me), title=title, icon=icon, url_path=path, default=number == 0)
        for number, (show, title, icon, path) in enumerate(PAGES[me["role"]])
    ]
    st.session_state["home"] = pages[0]
    st.session_state["pages"] = {
        path: page for page, (*_, path) in zip(pages, PAGES[me["role"]], strict=True)
    }
    page = st.navigation(pages)
    once.page_is(page.url_path)
    with st.sidebar:  # above what the page puts there, however long it is
        st.caption(f"Logged in as **{plain_markdown(me['name'])}** ({me['role']})")
        _link("Log out", f"{get_settings().public_api_url}/logout")
    if me["role"] == "auditor":
        emergency.banner(me["break_glass_waiting"], st.session_state["pages"]["emergency"])
        set_passwords.banner(me["set_passwords_used"], st.session_state["pages"]["log"])
    set_passwords.notice(me, st.session_state["pages"]["account"])
    st.fragment(partial(_watch, gateway.watching(), itertools.count()), run_every=LOOK_S)()
    page.run()


def _watch(gateway: Gateway, looks: Iterator[int]) -> None:
    """Hide what is shown once the log-in has ended, wherever it was; at first it was only just looked at."""
    if not next(looks):
        return
    try:
        gateway.me(within_s=LOOK_WITHIN_S)  # meanwhile the page takes no click
    except GatewayError as error:
        if error.status == 401:
            st.rerun()


def _offer_log_in(reason: str) -> None:
    st.title("MediChat")
    st.write(reason)
    _link("Log in", f"{get_settings().public_api_url}/login")


def _explain(gateway: Gateway, error: GatewayError) -> None:
    if error.status == 401:
        once.forget()
        _offer_log_in(error.detail)
        unsent.tell_hidden()
        return
    unsent.help_first()
    st.error(error.detail, icon=":material/error:")
    unsent.tell("It is kept while this page stays open, and offered again once MediChat answers.")
    if error.status in AWAY:
        st.caption("Nothing is lost: what was asked and answered before is kept by the gateway.")
        st.fragment(partial(_come_back, gateway.watching(), itertools.count()), run_every=RETRY_S)()
    st.button("Try again", type="primary")


def _come_back(gateway: Gateway, looks: Iterator[int]) -> None:
    """Show the page anew once the gateway answers; the first look is the one that has just failed."""
    if next(looks):
        try:
            gateway.me()
        except GatewayError as error:
            if error.status in AWAY:
                st.caption("Still away; trying again.")
                return
        st.rerun()
    st.caption("Trying again by itself.")


def _link(label: str, url: str) -> None:
    """A link that stays in this tab, unlike Streamlit's own."""
    style = "color: #0f6e84; font-weight: 600; text-decoration: underline"
    st.html(f'<a href="{url}" target="_self" style="{style}">{label}</a>')


main()
