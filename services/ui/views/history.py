"""One's conversations in the sidebar: find, open, rename, take out."""

from collections.abc import Callable
from functools import partial

import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.text import moment, plain_markdown

_PAGE = 30


def show(gateway: Gateway, open_id: str | None) -> None:
    """The list, newest first, with a search over titles and messages."""
    with st.sidebar:
        st.button(
            "New conversation",
            icon=":material/add:",
            type="primary",
            width="stretch",
            on_click=partial(_open, None),
        )
        search = st.text_input("Search your conversations", key="search", placeholder="a word you remember")
        shown = st.session_state.get("shown", _PAGE)
        page = gateway.conversations(search.strip(), limit=min(shown, 100))
        if not page["items"]:
            st.caption("Nothing found." if search else "No conversations yet.")
        for item in page["items"]:
            st.button(
                plain_markdown(item["title"]),
                key=f"open-{item['id']}",
                type="secondary" if item["id"] == open_id else "tertiary",
                icon=":material/hourglass_top:" if item["active_job_id"] else None,
                help=f"Last changed {moment(item['updated_at'])} UTC",
                on_click=partial(_open, item["id"]),
            )
        if page["next_cursor"] and shown < 100:
            st.button("Show more", key="more", on_click=partial(_show_more, shown))
        elif page["next_cursor"]:
            st.caption("Older ones: search for a word.")


def show_title(gateway: Gateway, conversation: Json) -> None:
    """The open conversation's title, and what can be done with it."""
    title, menu = st.columns([0.88, 0.12], vertical_alignment="center")
    title.subheader(plain_markdown(conversation["title"]))
    with menu.popover("", icon=":material/more_vert:", help="Rename or remove"):
        name = st.text_input("Title", conversation["title"], max_chars=200, key=f"title-{conversation['id']}")
        if st.button("Rename", key="rename"):
            _do(partial(gateway.rename, conversation["id"], name))
        st.caption("Removing takes it out of your history. The audit log keeps it.")
        if st.button("Remove from my history", key="hide"):
            _do(partial(gateway.hide, conversation["id"]), then=partial(_open, None))


def _do(act: Callable[[], None], then: Callable[[], None] | None = None) -> None:
    """Do it and show the page anew; when the gateway refuses, say why."""
    try:
        act()
    except GatewayError as error:
        st.error(error.detail)
        return
    if then is not None:
        then()
    st.rerun()


def _open(conversation_id: str | None) -> None:
    if conversation_id is None:
        st.query_params.pop("c", None)
    else:
        st.query_params["c"] = conversation_id


def _show_more(shown: int) -> None:
    st.session_state["shown"] = shown + _PAGE
