"""One's conversations in the sidebar: find, open, rename, take out."""

from collections.abc import Callable
from functools import partial

import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.text import moment, plain_markdown
from services.ui.views import acts, erasing

#: Shown at first, and more at each click.
_FIRST, _FURTHER = 30, 100


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
        search = st.text_input(
            "Search your conversations",
            key="search",
            placeholder="a word you remember",
            on_change=partial(_go_further, 0),
        ).strip()
        times = st.session_state.get("history-further", 0)
        found, further = _find(gateway, search, times)
        if not found and not further:
            st.caption("Nothing found." if search else "No conversations yet.")
        elif not found:
            st.caption("Nothing found among the newest.")
        for item in found:
            st.button(
                plain_markdown(item["title"]),
                key=f"open-{item['id']}",
                type="secondary" if item["id"] == open_id else "tertiary",
                icon=":material/hourglass_top:" if item["active_job_id"] else None,
                help=f"Last changed {moment(item['updated_at'])} UTC",
                on_click=partial(_open, item["id"]),
            )
        if further:
            label = "Search further" if search else "Show older"
            st.button(label, key="further", on_click=partial(_go_further, times + 1))


def _find(gateway: Gateway, search: str, times: int) -> tuple[list[Json], bool]:
    """The newest that match, after going further this many times, and whether older ones are left."""
    page = gateway.conversations(search, limit=_FIRST)
    found = page["items"]
    for _ in range(times):
        if page["next_cursor"] is None:
            break
        page = gateway.conversations(search, page["next_cursor"], limit=_FURTHER)
        found += page["items"]
    return found, page["next_cursor"] is not None


def show_title(gateway: Gateway, conversation: Json) -> None:
    """The open conversation's title, and what can be done with it."""
    title, menu = st.columns([0.88, 0.12], vertical_alignment="center")
    title.subheader(plain_markdown(conversation["title"]))
    with menu.popover("", icon=":material/more_vert:", help="Rename, remove or erase"):
        name = st.text_input("Title", conversation["title"], max_chars=200, key=f"title-{conversation['id']}")
        if st.button("Rename", key="rename"):
            _do(partial(gateway.rename, conversation["id"], name))
        show_removal(gateway, conversation["id"])
        _show_erasure(gateway, conversation["id"])


def show_removal(gateway: Gateway, conversation_id: str) -> None:
    """The way to take the conversation out of the list."""
    st.caption("Removing takes it out of your history. The audit log keeps it.")
    if st.button("Remove from my history", key="hide"):
        _do(partial(gateway.hide, conversation_id), then=partial(_open, None))


def _show_erasure(gateway: Gateway, conversation_id: str) -> None:
    """The way to destroy it, which asks whether one knows what that is."""
    st.divider()
    st.caption(
        "Erasing destroys it: nobody can read it again, neither you nor auditors. It cannot be undone. "
        "The log keeps that it was there, without a word of it. "
        "Backups taken before hold it until they are deleted."
    )
    understood = st.checkbox("I want it destroyed for good", key=f"understood-{conversation_id}")
    st.button(
        "Erase for good",
        key="erase",
        icon=":material/delete_forever:",
        disabled=not understood,
        on_click=partial(_erase, gateway, conversation_id),
    )


def _erase(gateway: Gateway, conversation_id: str) -> None:
    outcome = acts.attempt(partial(gateway.erase_conversation, conversation_id))
    if outcome is not None:
        erasing.note(outcome)
        _open(None)


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


def _go_further(times: int) -> None:
    st.session_state["history-further"] = times
