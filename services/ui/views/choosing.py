"""Chooses one of a list: the one that the address names, or the newest. It does not know what is listed."""

from collections.abc import Callable
from functools import partial

import streamlit as st

from services.ui.client import GatewayError, Json

#: Listed at first, and more at each click.
PAGE = 50


def choose(
    what: str,
    parameter: str,
    listed: Callable[[str | None, int], Json],
    find: Callable[[str], Json],
    title: Callable[[Json], str],
    *,
    empty: str,
) -> Json | None:
    """The chosen one, as the list or `find` gives it; None when nothing is, and then the page says so.

    Args:
        what: names the kind, in one word.
        parameter: of the address; a selection changes it.
        listed: a page of the list, newest first, by its cursor and length.
        find: one of it by its id, listed or not.
        title: what a person chooses by.
        empty: said when there is none at all.
    """
    times = st.session_state.get(f"further-{parameter}", 0)
    items, more = _newest(listed, times)
    known = {each["id"]: each for each in items}
    wanted = st.query_params.get(parameter)
    if wanted and wanted not in known:
        found = _found(find, wanted)
        if found is not None:
            known[wanted] = found
    if not known:
        st.info(empty)
        return None
    ids = list(known)
    first = ids.index(wanted) if wanted in known else None if wanted else 0
    chosen = st.selectbox(
        what.capitalize(),
        ids,
        first,
        format_func=lambda each: title(known[each]),
        placeholder=f"Choose a {what}",
    )
    if more:
        st.button("Show older", key=f"older-{parameter}", on_click=partial(_go_further, parameter, times + 1))
    if chosen is None:
        st.error(f"There is no {what} of the id in this page's address. Choose another.")
        return None
    st.query_params[parameter] = chosen
    return known[chosen]


def _newest(listed: Callable[[str | None, int], Json], times: int) -> tuple[list[Json], bool]:
    """The newest, after going further this many times, and whether older ones are left."""
    page = listed(None, PAGE)
    items = page["items"]
    for _ in range(times):
        if page["next_cursor"] is None:
            break
        page = listed(page["next_cursor"], PAGE)
        items += page["items"]
    return items, page["next_cursor"] is not None


def _found(find: Callable[[str], Json], wanted: str) -> Json | None:
    """The one of this id; None when there is none."""
    if not wanted.replace("-", "").isalnum():  # an address may be written by hand
        return None
    try:
        return find(wanted)
    except GatewayError as error:
        if error.status not in (404, 422):
            raise
        return None


def _go_further(parameter: str, times: int) -> None:
    st.session_state[f"further-{parameter}"] = times
