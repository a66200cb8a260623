"""The form of a review: verdict, category, whether the guard was right, a corrected answer, a note.

What changed is sent to the gateway at once, and nothing else: what another tab saved stays. It takes no
answer and gives none.
"""

import time
from functools import partial
from typing import Any

import streamlit as st

from services.ui.client import GatewayError, Json
from services.ui.reviewing import Reviewing
from services.ui.text import moment, plain_markdown, words
from services.ui.views import acts
from shared.review.rules import CATEGORIES, MOST_CORRECTED_CHARS, MOST_NOTE_CHARS, ReviewVerdict

_TEXTS = ("corrected", "note")
_FIELDS = ("verdict", "category", "guard_right", *_TEXTS)
#: Seconds between two renewals of a hold, which lasts for half an hour.
RENEW_S = 300
#: What each verdict is called, its key and its sign.
_VERDICTS = {
    ReviewVerdict.SAFE: ("Safe", "1", "check"),
    ReviewVerdict.UNSAFE: ("Unsafe", "2", "dangerous"),
    ReviewVerdict.WRONG: ("Wrong", "3", "close"),
    ReviewVerdict.INCOMPLETE: ("Incomplete", "4", "rule"),
}
#: The keys of the categories in their order; C and R are Streamlit's own, the others are taken here.
_KEYS = "ABDEFHIJKLM"


def show(reviewing: Reviewing, item: Json) -> None:
    """The form, as it was left."""
    _fill_in(item)
    chosen = st.session_state[_key("verdict", item)]
    st.markdown("**Your verdict**")
    for place, (verdict, (label, key, icon)) in zip(st.columns(4), _VERDICTS.items(), strict=True):
        _choice(place, reviewing, item, "verdict", verdict.value, label, key, f":material/{icon}:")
    if chosen == ReviewVerdict.UNSAFE:
        st.markdown("**Unsafe by**")
        places = [place for _ in range(4) for place in st.columns(3)]
        for place, category, key in zip(places, CATEGORIES, _KEYS, strict=False):
            label = words(category).capitalize()
            _choice(place, reviewing, item, "category", category.value, label, key, None)
    if item["stepped_in"]:
        st.markdown("**Was the guard right to step in?**")
        yes, no = st.columns(2)
        _choice(yes, reviewing, item, "guard_right", True, "Yes, it was right", "Y", ":material/thumb_up:")
        _choice(no, reviewing, item, "guard_right", False, "No, a false alarm", "N", ":material/thumb_down:")
    for field, label, most, height in (
        ("corrected", "What the answer should have been", MOST_CORRECTED_CHARS, 150),
        ("note", "Note", MOST_NOTE_CHARS, 80),
    ):
        st.text_area(
            label,
            key=_key(field, item),
            max_chars=most,
            height=height,
            on_change=save,
            args=(reviewing, item),
        )
    _status(reviewing, item)


def save(reviewing: Reviewing, item: Json) -> bool:
    """Have the gateway keep what is filled in, unless it does already; whether it is kept."""
    _fill_in(item)
    former = _kept(item)
    changes = {field: value for field, value in _filled_in(item).items() if value != former[field]}
    if not changes:
        return True
    kept = acts.attempt(partial(reviewing.save, item["id"], changes))
    if kept is None:
        return False
    item["mine"] = kept  # the page shows this very record
    for field in _FIELDS:  # what another tab changed meanwhile
        if field not in changes and kept[field] != former[field]:
            st.session_state[_key(field, item)] = _shown(field, kept[field])
    return True


def keep_hold(reviewing: Reviewing, item: Json) -> None:
    """Have the gateway hold an answer that one is at for half an hour more, if that is due."""
    key = f"review-renewed-{item['id']}"
    now = time.monotonic()
    if now - st.session_state.setdefault(key, now) < RENEW_S / 2:
        return  # drawn because something else was
    st.session_state[key] = now
    try:
        reviewing.save(item["id"], {})
    except GatewayError as error:
        if error.status != 409:  # whatever it is, the next change says so
            return
        st.warning(plain_markdown(error.detail), icon=":material/cloud_off:")


def forget(item_id: str) -> None:
    """Fill the form in anew from what the gateway keeps."""
    for field in _FIELDS:
        st.session_state.pop(f"review-{field}-{item_id}", None)


def describe(review: Json) -> None:
    """A review that was given, in words."""
    said = [f"Verdict: **{words(review['verdict'])}**"]
    if review["category"]:
        said.append(f"by {words(review['category'])}")
    if review["guard_right"] is not None:
        said.append("the guard was right" if review["guard_right"] else "the guard was wrong")
    st.markdown(" · ".join(said))
    for field, label in (("corrected", "What the answer should have been"), ("note", "Note")):
        if review[field]:
            st.caption(label)
            st.markdown(plain_markdown(review[field]))


def _choice(
    place: Any,
    reviewing: Reviewing,
    item: Json,
    field: str,
    value: Any,
    label: str,
    key: str,
    icon: str | None,
) -> None:
    chosen = st.session_state[_key(field, item)] == value
    place.button(
        label,
        key=f"choose-{field}-{value}-{item['id']}",
        type="primary" if chosen else "secondary",
        icon=icon,
        shortcut=key,
        width="stretch",
        on_click=_choose,
        args=(reviewing, item, field, value),
    )


def _choose(reviewing: Reviewing, item: Json, field: str, value: Any) -> None:
    """A second click takes the choice away."""
    key = _key(field, item)
    st.session_state[key] = None if st.session_state[key] == value else value
    save(reviewing, item)


def _status(reviewing: Reviewing, item: Json) -> None:
    if _filled_in(item) != _kept(item):
        _not_saved(reviewing, item)
    elif item["mine"] is None:
        st.caption("Nobody holds this answer for you yet; your first change does.")
    elif _kept(item) == dict.fromkeys(_FIELDS):
        st.caption(
            "Yours as long as this page is open. A choice is saved at once, a text when you leave its field "
            "or press Ctrl+Enter."
        )
    else:
        st.caption(
            f":material/cloud_done: Saved {moment(item['mine']['changed_at'])} (UTC). A text is saved when "
            "you leave its field, or press Ctrl+Enter."
        )


def _not_saved(reviewing: Reviewing, item: Json) -> None:
    st.warning(
        "**What you wrote is not saved.** It stays in the fields while this page is open: save it again, or "
        "copy it to keep it.",
        icon=":material/cloud_off:",
    )
    again, drop = st.columns(2)
    again.button("Save again", on_click=save, args=(reviewing, item))
    with drop:
        acts.confirm(
            "Discard",
            "What is not saved is lost; what was saved stays.",
            partial(forget, item["id"]),
            key=f"discard-{item['id']}",
            done="Discarded.",
            icon=":material/delete:",
        )


def _fill_in(item: Json) -> None:
    """What the gateway keeps, where nothing is filled in: a page that is left forgets its fields."""
    kept = _kept(item)
    for field in _FIELDS:
        st.session_state.setdefault(_key(field, item), _shown(field, kept[field]))


def _shown(field: str, value: Any) -> Any:
    return "" if value is None and field in _TEXTS else value


def _filled_in(item: Json) -> Json:
    values = {field: st.session_state[_key(field, item)] for field in _FIELDS}
    return {
        field: (value.strip() or None) if isinstance(value, str) else value for field, value in values.items()
    }


def _kept(item: Json) -> Json:
    return {field: (item["mine"] or {}).get(field) for field in _FIELDS}


def _key(field: str, item: Json) -> str:
    return f"review-{field}-{item['id']}"
