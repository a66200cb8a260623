"""The review of answers, for auditors: take one, judge it, give it, take the next; by keyboard if one likes.

Every change is kept at once as a draft by the gateway, so that a page that is closed loses nothing.
"""

from functools import partial

import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.reviewing import Reviewing
from services.ui.text import moment, plain_markdown, words
from services.ui.views import acts, review_form, transcript

_ITEM = "review-item"
_REASONS = {
    "asked": "asked for",
    "thumbs_down": "thumbs down",
    "guard": "the guard stepped in",
    "doubt": "the guard doubted",
    "sample": "drawn by chance",
}
_STATES = {"held": "you are at it", "draft": "a draft", "given": "given"}


def show(gateway: Gateway, me: Json) -> None:
    """What waits, the answer that one is at with its form, and one's own last reviews."""
    reviewing = Reviewing(gateway)
    st.title("Review")
    st.caption("Identifiers are masked. What you open here is itself logged.")
    acts.show_refusal()
    queue = reviewing.queue()
    _waiting(queue)
    item = _current(reviewing, queue)
    if item is None:
        _start(reviewing, queue)
    elif item["mine"] and item["mine"]["given_at"]:
        _given(reviewing, item)
    else:
        _one(reviewing, item)
        if any(each["item_id"] == item["id"] and each["state"] == "held" for each in queue["mine"]):
            # it is no use of the log-in, so a page that was left gives the answer back in the end
            renewing = partial(review_form.keep_hold, Reviewing(gateway.watching()), item)
            st.fragment(renewing, run_every=review_form.RENEW_S)()
    _undo(reviewing, queue)
    _own(queue)
    _ask_for(reviewing)


def _waiting(queue: Json) -> None:
    """How much waits, by why it is in the queue."""
    counts = [(name, queue["waiting"].get(reason, 0)) for reason, name in _REASONS.items()]
    total = sum(count for _, count in counts)
    badges = " ".join(f":gray-badge[{name}: {count:,}]" for name, count in counts if count)
    st.markdown(f"**{total:,} wait for you** {badges}")
    st.caption(f"{queue['held_by_others']:,} are with others just now · {queue['closed']:,} are done")


def _current(reviewing: Reviewing, queue: Json) -> Json | None:
    """The answer that the address names, or that one is at; asked for once, for to read it is an event."""
    held = next((each["item_id"] for each in queue["mine"] if each["state"] == "held"), None)
    wanted = st.query_params.get("r", held)
    if wanted is None:
        return None
    item = st.session_state.get(_ITEM)
    if item is None or item["id"] != wanted:
        try:
            item = reviewing.item(wanted)
        except GatewayError as error:
            if error.status not in (404, 410):
                raise
            st.warning(plain_markdown(error.detail), icon=":material/visibility_off:")
            _leave()
            return None
    _open(item)
    return item


def _open(item: Json | None) -> None:
    """Have the page show this answer from now on."""
    if item is None:
        _leave()
        return
    st.session_state[_ITEM] = item
    st.query_params["r"] = item["id"]


def _leave() -> None:
    st.session_state.pop(_ITEM, None)
    st.query_params.pop("r", None)


def _start(reviewing: Reviewing, queue: Json) -> None:
    if not queue["waiting"]:
        st.info("Nothing waits to be reviewed. Answers come here by themselves.", icon=":material/check:")
        st.button("Look again", icon=":material/refresh:")
        return
    st.button(
        "Review the next one",
        type="primary",
        icon=":material/play_arrow:",
        shortcut="N",
        on_click=_take_next,
        args=(reviewing,),
    )


def _take_next(reviewing: Reviewing) -> None:
    made = acts.attempt(reviewing.next)
    if made and made["item"] is None:
        st.toast("Nothing that can be opened waits for you.")
    _open(made and made["item"])


def _one(reviewing: Reviewing, item: Json) -> None:
    """The answer and its form."""
    st.caption(
        f"In the queue because: **{_REASONS[item['reason']]}** · since {moment(item['created_at'])} (UTC) · "
        "the last answer is the one to review"
    )
    transcript.show(item["transcript"])
    page = st.session_state.get("pages", {}).get("conversation")
    if page is not None:
        st.page_link(
            page,
            label="The whole conversation",
            icon=":material/open_in_new:",
            query_params={"conversation": item["conversation_id"]},
        )
    review_form.show(reviewing, item)
    give, skip = st.columns(2)
    give.button(
        "Give and next",
        type="primary",
        icon=":material/done_all:",
        shortcut="G",
        width="stretch",
        on_click=_give,
        args=(reviewing, item),
    )
    skip.button(
        "Skip",
        icon=":material/skip_next:",
        shortcut="S",
        width="stretch",
        help="It goes back to the queue. What you wrote is kept, and it is offered to you last.",
        on_click=_skip,
        args=(reviewing, item),
    )


def _give(reviewing: Reviewing, item: Json) -> None:
    if not review_form.save(reviewing, item):
        return
    if acts.attempt(partial(reviewing.give, item["id"]), "Given.") is None:
        return
    _take_next(reviewing)


def _skip(reviewing: Reviewing, item: Json) -> None:
    if not review_form.save(reviewing, item):
        return
    acts.attempt(partial(reviewing.release, item["id"]))
    if "refusal" in st.session_state:
        return
    made = acts.attempt(reviewing.next)
    following = made and made["item"]
    if following and following["id"] == item["id"]:
        acts.attempt(partial(reviewing.release, item["id"]))
        st.toast("Nothing else waits for you.")
        following = None
    _open(following)


def _given(reviewing: Reviewing, item: Json) -> None:
    """A review that was given, beside those of others."""
    transcript.show(item["transcript"])
    with st.container(border=True):
        st.markdown(f"**You gave this review** {moment(item['mine']['given_at'])} (UTC)")
        review_form.describe(item["mine"])
    for other in item["others"]:
        with st.container(border=True):
            st.markdown(f"**Another reviewer** · {moment(other['given_at'])} (UTC)")
            review_form.describe(other)
    if item["wanted"] > 1 and not item["others"]:
        st.caption("A second person reviews this answer too; you see what they say once they gave it.")
    back, forth = st.columns(2)
    back.button(
        "Take back to change it",
        icon=":material/undo:",
        width="stretch",
        disabled=bool(item["others"]),
        help="Within a day, and before another person has given theirs.",
        on_click=_take_back,
        args=(reviewing, item["id"]),
    )
    forth.button(
        "Next",
        type="primary",
        icon=":material/play_arrow:",
        shortcut="N",
        width="stretch",
        on_click=_take_next,
        args=(reviewing,),
    )


def _undo(reviewing: Reviewing, queue: Json) -> None:
    """Takes back the review that was given last, if that is not what is shown."""
    last = next((each for each in queue["mine"] if each["state"] == "given"), None)
    if last is None or last["item_id"] == st.query_params.get("r"):
        return
    st.button(
        f"Take back the last one ({words(last['verdict'])})",
        type="tertiary",
        icon=":material/undo:",
        shortcut="U",
        on_click=_take_back,
        args=(reviewing, last["item_id"]),
    )


def _take_back(reviewing: Reviewing, item_id: str) -> None:
    if acts.attempt(partial(reviewing.take_back, item_id), "Taken back: it is a draft again.") is None:
        return
    st.session_state.pop(_ITEM, None)
    review_form.forget(item_id)
    st.query_params["r"] = item_id


def _own(queue: Json) -> None:
    if not queue["mine"]:
        return
    with st.expander("My last reviews", icon=":material/history:"):
        for each in queue["mine"]:
            what = words(each["verdict"]) or "no verdict yet"
            if each["category"]:
                what = f"{what}: {words(each['category'])}"
            st.button(
                f"{moment(each['changed_at'])} · {_STATES[each['state']]} · {what}",
                key=f"own-{each['item_id']}",
                type="tertiary",
                on_click=_show_own,
                args=(each["item_id"],),
            )


def _show_own(item_id: str) -> None:
    st.session_state.pop(_ITEM, None)
    st.query_params["r"] = item_id


def _ask_for(reviewing: Reviewing) -> None:
    with st.expander("Put an answer into the queue", icon=":material/playlist_add:"), st.form("ask-for"):
        job_id = st.text_input(
            "Job of the answer",
            max_chars=36,
            key=acts.fresh("ask-for-job"),
            help="As a conversation names it.",
        ).strip()
        if st.form_submit_button("Ask for a review"):
            if job_id and acts.attempt(partial(reviewing.ask_for, job_id), "It waits to be reviewed."):
                st.rerun()
            acts.show_refusal()
