"""The form that says which conversations are looked for. It asks nobody."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import streamlit as st

from services.ui.client import Json
from services.ui.text import words
from shared.guard.verdict import Action, Category
from shared.review.rules import CATEGORIES, ReviewVerdict

_ANY = "any"
_FLAGS = {"flagged": "Guard", "thumbs_down": "Rated", "reviewed": "Reviewed"}
#: What a flag is called where it must be true, and where it must be false.
_SAID = {
    "flagged": ("stepped in or doubted", "did nothing"),
    "thumbs_down": ("thumbs down", "no thumbs down"),
    "reviewed": ("reviewed", "not reviewed"),
}
#: What the gateway takes: a view that was kept over HTTP may have any of these.
_FIRST_DAY, _LAST_DAY = date(1970, 1, 1), date(9000, 12, 31)
_TEXTS = ("words", "person", "adapter", "model")
_CHOICES = ("action", "category", "review_verdict", "review_category")
_KEYS = (*_TEXTS, *_FLAGS, *_CHOICES, "days")


def draw(filters: Json) -> Json | None:
    """The form, filled with `filters` at first; what is in it when it is sent, else None."""
    fill(filters, anew=False)
    with st.form("find", border=True):
        st.text_input(
            "Words",
            key=_key("words"),
            placeholder='warfarin "left it off"',
            help='All of them must occur, as whole words. "A phrase" in quotation marks within one message.',
        )
        who, when = st.columns(2)
        who.text_input("Person (name or id)", key=_key("person"))
        when.date_input("Days", key=_key("days"), min_value=_FIRST_DAY, max_value=_LAST_DAY)
        for column, name in zip(st.columns(3), _FLAGS, strict=True):
            column.selectbox(_FLAGS[name], (_ANY, *_SAID[name]), key=_key(name))
        with st.expander("More"):
            did, why = st.columns(2)
            actions = [each.value for each in Action if each is not Action.ALLOW]
            did.selectbox("What the guard did", (_ANY, *actions), key=_key("action"))
            categories = [each.value for each in Category]
            why.selectbox("Why", (_ANY, *categories), format_func=words, key=_key("category"))
            said, by = st.columns(2)
            verdicts = [each.value for each in ReviewVerdict]
            said.selectbox(
                "What a reviewer said",
                (_ANY, *verdicts),
                key=_key("review_verdict"),
                help="Of answers that nobody is to review any more.",
            )
            unsafe_by = [each.value for each in CATEGORIES]
            by.selectbox("Unsafe by", (_ANY, *unsafe_by), format_func=words, key=_key("review_category"))
            adapter, model = st.columns(2)
            adapter.text_input("Adapter (SHA-256, or base)", key=_key("adapter"))
            model.text_input("Base model", key=_key("model"))
        if not st.form_submit_button("Search", type="primary", icon=":material/search:"):
            return None
    return _typed()


def fill(filters: Json, *, anew: bool = True) -> None:
    """Put filters into the form; with `anew` in place of what is in it."""
    for name in _KEYS:
        if anew or _key(name) not in st.session_state:
            st.session_state[_key(name)] = _shown(name, filters)


def _key(name: str) -> str:
    return f"find-{name}"


def _shown(name: str, filters: Json) -> Any:
    """What the form's field of this name shows."""
    value = filters.get(name)
    if name == "days":
        return _days(filters)
    if name in _FLAGS:
        return _ANY if value is None else _SAID[name][0 if value else 1]
    return value or ("" if name in _TEXTS else _ANY)


def _days(filters: Json) -> tuple[date, ...]:
    if not filters.get("since") or not filters.get("until"):
        return ()
    first, after = (datetime.fromisoformat(filters[name]) for name in ("since", "until"))
    last = max(first, after - timedelta(microseconds=1))
    return (first.astimezone(UTC).date(), last.astimezone(UTC).date())


def _typed() -> Json:
    """The filters, as the gateway takes them."""
    given = {name: st.session_state[_key(name)] for name in _KEYS}
    filters = {name: given[name].strip() for name in _TEXTS if given[name].strip()}
    filters |= {name: given[name] for name in _CHOICES if given[name] != _ANY}
    filters |= {name: given[name] == _SAID[name][0] for name in _FLAGS if given[name] != _ANY}
    days = given["days"]
    if days:
        filters["since"] = datetime.combine(days[0], time(), UTC).isoformat()
        filters["until"] = (datetime.combine(days[-1], time(), UTC) + timedelta(days=1)).isoformat()
    return filters
