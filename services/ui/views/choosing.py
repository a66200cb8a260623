"""Chooses one of a list: the one that the address names, or the newest. It does not know what is listed."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import streamlit as st

from services.ui.client import GatewayError, Json

#: Listed at first, and more at each click.
PAGE = 50
#: So many last characters of an id tell it from others.
_TOLD = 8
Default = TypeVar("Default", bound=str | None)


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
    chosen = pick(
        what.capitalize(),
        parameter,
        ids,
        told_apart({name: title(each) for name, each in known.items()}).__getitem__,
        otherwise=None if wanted else ids[0],
        placeholder=f"Choose a {what}",
    )
    if more:
        st.button("Show older", key=f"older-{parameter}", on_click=partial(_go_further, parameter, times + 1))
    if chosen is None:
        st.error(f"There is no {what} of the id in this page's address. Choose another.")
        return None
    return known[chosen]


def pick(
    label: str,
    parameter: str,
    names: Sequence[str],
    title: Callable[[str], str],
    *,
    otherwise: Default,
    placeholder: str | None = None,
) -> str | Default:
    """The name that the address gives, else `otherwise`, and a list to choose another; the address follows.

    Args:
        label: of the list.
        parameter: of the address; it alone says what is chosen, from one drawing of the page to the next.
        names: what there is.
        title: what a person sees of a name.
        otherwise: one of the names, or None for nothing chosen yet, which leaves the address as it is.
        placeholder: shown while nothing is chosen.
    """
    key = f"chosen-{parameter}"
    wanted = st.query_params.get(parameter)
    st.session_state[key] = wanted if wanted in names else otherwise
    chosen: str | Default = st.selectbox(
        label,
        names,
        format_func=title,
        key=key,
        on_change=partial(_follow, parameter, names, key),
        placeholder=placeholder,
    )
    if chosen is not None:
        st.query_params[parameter] = chosen
    return chosen


def told_apart(titles: Mapping[str, str]) -> dict[str, str]:
    """Titles by id, with the end of the id where several are equal: a list sends back the title of what was
    chosen, and of equal ones the last would be taken.
    """
    often = Counter(titles.values())
    return {
        name: title if often[title] == 1 else f"{title} · {name[-_TOLD:]}" for name, title in titles.items()
    }


def _follow(parameter: str, names: Sequence[str], key: str) -> None:
    chosen = st.session_state[key]
    if chosen in names:  # it is a title that is no more, where that changed since the list was shown
        st.query_params[parameter] = chosen


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
