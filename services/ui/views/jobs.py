"""One's jobs with their live state; a waiting or running one can be cancelled."""

from functools import partial

import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.text import beginning, moment, plain_markdown, seconds_between

POLL_S = 2
_PAGE = 20
_REMOVED = "Removed from your history"
_UNREADABLE = "This can no longer be read"
#: Characters shown of a question.
_WIDTH = 120
_STATES = ("all", "queued", "running", "succeeded", "failed", "cancelled")
_ICONS = {
    "queued": ":material/schedule:",
    "running": ":material/autorenew:",
    "succeeded": ":material/check_circle:",
    "failed": ":material/error:",
    "cancelled": ":material/cancel:",
}


def show(gateway: Gateway, me: Json) -> None:
    """The newest jobs, looked at every two seconds."""
    st.title("Jobs")
    st.caption("Every question is a job. It goes on when you close the page.")
    state = st.segmented_control("State", _STATES, default="all", key="state") or "all"
    asked: dict[str, str] = {}
    st.fragment(partial(_list, gateway, None if state == "all" else state, asked), run_every=POLL_S)()


def _list(gateway: Gateway, state: str | None, asked: dict[str, str]) -> None:
    """The list as it is now; what was `asked` is kept from one look to the next."""
    shown = st.session_state.get("jobs-shown", _PAGE)
    try:
        jobs, more = _newest(gateway.watching(), state, shown)
        _learn_questions(gateway.watching(), jobs, asked)
    except GatewayError as error:
        if error.status == 401:
            st.rerun()
        st.caption(f"{error.detail} Trying again.")
        return
    if not jobs:
        st.info("No jobs here yet." if state is None else f"No {state} jobs.")
    for job in jobs:
        _row(gateway, job, asked[job["question_id"]])
    if more:
        st.button("Show more", key="more-jobs", on_click=partial(_show_more, shown))


def _newest(gateway: Gateway, state: str | None, count: int) -> tuple[list[Json], bool]:
    """The newest jobs, and whether there are older ones."""
    jobs: list[Json] = []
    cursor = None
    while len(jobs) < count:
        page = gateway.jobs(state, cursor, limit=min(count - len(jobs), 100))
        jobs += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    return jobs, cursor is not None


def _learn_questions(gateway: Gateway, jobs: list[Json], asked: dict[str, str]) -> None:
    """Put the questions of these jobs into `asked`, by their ids, where they are not yet."""
    for job in jobs:
        if job["question_id"] in asked:
            continue
        missing = _REMOVED
        try:
            said = gateway.conversation(job["conversation_id"])["messages"]
        except GatewayError as error:
            if error.status not in (404, 410, 422):
                raise
            said, missing = [], _UNREADABLE if error.status == 410 else _REMOVED
        asked.update({each["id"]: each["text"] for each in said if each["role"] == "user"})
        asked.setdefault(job["question_id"], missing)


def _show_more(shown: int) -> None:
    st.session_state["jobs-shown"] = shown + _PAGE


def _row(gateway: Gateway, job: Json, question: str) -> None:
    with st.container(border=True):
        what, act = st.columns([0.8, 0.2], vertical_alignment="center")
        what.markdown(f"**{plain_markdown(beginning(question, _WIDTH))}**")
        what.markdown(f"{_ICONS[job['state']]} {job['state']}, asked {moment(job['created_at'])} UTC")
        what.caption(_details(job))
        if job["finished_at"] is None:
            stopping = job["cancel_requested"]
            act.button(
                "Stopping" if stopping else "Cancel",
                key=f"cancel-{job['id']}",
                disabled=stopping,
                on_click=partial(_cancel, gateway, job["id"]),
            )
        elif job["conversation_id"]:
            act.page_link(st.session_state["home"], label="Open", query_params={"c": job["conversation_id"]})


def _details(job: Json) -> str:
    parts = [f"attempt {job['attempt']} of {job['max_attempts']}"] if job["attempt"] > 1 else []
    if job["position"]:
        parts.append(f"place {job['position']} in the queue")
    took = seconds_between(job["created_at"], job["finished_at"])
    if took is not None:
        parts.append(f"{took:.1f} s")
    if job["completion_tokens"]:
        parts.append(f"{job['completion_tokens']} tokens")
    if job["error"]:
        parts.append(job["error"]["detail"])
    return " · ".join([*parts, f"id {job['id']}"])


def _cancel(gateway: Gateway, job_id: str) -> None:
    try:
        gateway.cancel(job_id)
    except GatewayError as error:
        st.toast(error.detail, icon=":material/error:")
