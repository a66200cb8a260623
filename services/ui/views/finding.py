"""Conversations, for auditors: search, keep a search, go to one, export the list. No text is shown here."""

from functools import partial

import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.finding import Finding
from services.ui.text import beginning, moment, plain_markdown, words
from services.ui.views import acts, exporting, finding_filters, password

_PAGE = 20
_WIDTHS = (0.26, 0.2, 0.14, 0.4)
#: The filters that count, the cursors of the pages seen, and the page that is shown.
_FILTERS, _CURSORS, _SHOWN = "find-filters", "find-cursors", "find-shown"


def show(gateway: Gateway, me: Json) -> None:
    """A form, one's kept searches, and what was found."""
    st.title("Conversations")
    st.caption("The last begun first, times in UTC. What you look for here is itself logged.")
    finding = Finding(gateway)
    password.show(gateway)
    acts.show_refusal()
    filters = st.session_state.setdefault(_FILTERS, {})
    _views(finding, filters)
    typed = finding_filters.draw(filters)
    if typed is not None:
        filters = _look_for(typed)
    page = _page(finding, filters)
    if page is not None:
        exporting.show(finding, "conversations", filters)
        _results(page)


def _look_for(filters: Json) -> Json:
    st.session_state[_FILTERS] = filters
    st.session_state[_CURSORS] = [None]
    st.session_state.pop(_SHOWN, None)
    return filters


def _page(finding: Finding, filters: Json) -> Json | None:
    """The page of what was found; asked for once, for each time is an event of the log."""
    if _SHOWN in st.session_state:
        shown: Json = st.session_state[_SHOWN]
        return shown
    cursors = st.session_state.setdefault(_CURSORS, [None])
    try:
        page = finding.search(filters, cursor=cursors[-1], limit=_PAGE)
    except GatewayError as error:
        if error.status not in (410, 422):
            raise
        st.error(plain_markdown(error.detail), icon=":material/error:")
        return None
    st.session_state[_SHOWN] = page
    return page


def _results(page: Json) -> None:
    if page["not_searchable_yet"]:
        st.info(
            f"{page['not_searchable_yet']} messages cannot be found by their words yet; search again soon."
        )
    if page["stopped"]:
        st.warning(
            "The search for a phrase stopped after many conversations, so more may match. Go on with Older."
        )
    if not page["items"]:
        st.info("No conversation matches on this page." if page["stopped"] else "No conversation matches.")
    else:
        for column, head in zip(st.columns(_WIDTHS), ("begun", "who", "messages", "known"), strict=True):
            column.caption(head)
    for item in page["items"]:
        _row(item)
    cursors = st.session_state[_CURSORS]
    newer, older, _ = st.columns([0.2, 0.2, 0.6])
    newer.button("Newer", disabled=len(cursors) == 1, on_click=_newer)
    older.button("Older", disabled=page["next_cursor"] is None, on_click=partial(_older, page["next_cursor"]))


def _row(item: Json) -> None:
    when, who, size, what = st.columns(_WIDTHS, vertical_alignment="center")
    begun = moment(item["created_at"])
    page = st.session_state["pages"].get("conversation")
    if page is not None:
        when.page_link(page, label=begun, query_params={"conversation": item["id"]})
    else:
        when.markdown(begun)
    who.markdown(plain_markdown(item["user_name"]))
    size.markdown(str(item["message_count"]))
    known = [] if item["action"] == "allow" else [_did(item)]
    known += ["thumbs down"] if item["thumbs_down"] else []
    known += ["reviewed"] if item["reviewed"] else []
    known += ["taken out of the person's list"] if item["hidden"] else []
    known += [plain_markdown(each) for each in item["models"]]
    known += [beginning(each, 12) for each in item["adapters"]]
    what.caption(" · ".join([*known, f"id {item['id']}"]))


def _did(item: Json) -> str:
    """What the guard did at its gravest."""
    why = f" ({words(item['category'])})" if item["category"] else ""
    return f"guard: {words(item['action'])}{why}"


def _newer() -> None:
    st.session_state[_CURSORS].pop()
    st.session_state.pop(_SHOWN, None)


def _older(cursor: str) -> None:
    st.session_state[_CURSORS].append(cursor)
    st.session_state.pop(_SHOWN, None)


def _views(finding: Finding, filters: Json) -> None:
    """One's kept searches: take one up, delete it, keep the present one."""
    views = {view["id"]: view for view in finding.views()}
    with st.expander(f"Your views ({len(views)})", icon=":material/bookmark:"):
        if not views:
            st.caption("None yet. Search for something, then keep it under a name.")
        for view in views.values():
            name, take, drop = st.columns([0.6, 0.2, 0.2], vertical_alignment="center")
            name.markdown(plain_markdown(view["name"]))
            take.button("Apply", key=f"apply-{view['id']}", on_click=partial(_apply, view["filters"]))
            with drop:
                acts.confirm(
                    "Delete",
                    f"Delete the view {plain_markdown(view['name'])}?",
                    partial(finding.delete_view, view["id"]),
                    key=f"delete-{view['id']}",
                    done="Deleted.",
                    icon=":material/delete:",
                )
        name, keep = st.columns([0.8, 0.2], vertical_alignment="bottom")
        typed = name.text_input("Name of the search below", key=acts.fresh("view-name"), max_chars=100)
        keep.button(
            "Keep",
            disabled=not typed.strip(),
            on_click=acts.attempt,
            args=(partial(finding.save_view, typed.strip(), filters), "Kept."),
        )


def _apply(filters: Json) -> None:
    finding_filters.fill(filters)
    _look_for(filters)
