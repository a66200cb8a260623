"""Ask and read answers. The page owns nothing: it shows what the gateway holds."""

import itertools
import uuid
from collections.abc import Iterator, Sequence
from functools import partial

import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.text import answer_markdown, plain_markdown, words
from services.ui.views import acts, erasing, history, password, pictures, unsent
from shared.prompts import DISCLAIMER, REMINDER

#: How often a running answer is looked at, in seconds.
POLL_S = 0.5
#: How often a conversation in which nothing runs is looked at: it may go on in another tab.
LOOK_S = 5
#: How many ratings were not taken.
_NOT_RATED = "not-rated"
EXAMPLES = (
    "What are the symptoms of asthma?",
    "How is high blood pressure usually treated?",
    "When should I see a doctor about back pain?",
)


#: What a program of the person's sent with its question as said before, by whose words it says that it was.
_SENT = {
    "system": "Instructions of your program.",
    "user": "Sent along by your program.",
    "assistant": "Sent along by your program as an answer; whether it is one of MediChat's is not known.",
}


def show(gateway: Gateway, me: Json) -> None:
    """The conversation named in the address, or a new one."""
    conversation_id = st.query_params.get("c")
    history.show(gateway, conversation_id)
    _disclaimer(me)
    password.show(gateway)
    acts.show_refusal()
    erasing.show_outcome()
    conversation = _load(gateway, conversation_id)
    if conversation_id is not None and conversation is None:
        # no place to write in: a question put here could only be refused. One that was begins anew elsewhere
        unsent.show(conversation_id, partial(_send_anew, gateway))
        return
    running = conversation is not None and _is_running(conversation["job"])
    if conversation is not None:
        history.show_title(gateway, conversation)
        _show_messages(gateway, conversation)
        if running:
            st.fragment(partial(_follow, gateway, conversation), run_every=POLL_S)()
        else:
            _show_end(gateway, conversation)
            look = partial(_look, gateway.watching(), conversation, itertools.count())
            st.fragment(look, run_every=LOOK_S)()
    unsent.show(conversation_id, partial(_send, gateway))
    st.chat_input(
        "Write your next question meanwhile" if running else "Ask about a condition, a symptom, a treatment",
        # with a key and never disabled: else a question sent to a page that was out of date would be lost
        key="question",
        max_chars=me["max_query_chars"],
        # only where the model sees them: a picture that nobody looks at must not seem to be answered
        accept_file="multiple" if me["max_images"] else False,
        file_type=pictures.TYPES if me["max_images"] else None,
        max_upload_size=pictures.FILE_MB if me["max_images"] else None,
        # a callback, for it runs also when the page cannot be drawn because the gateway is away
        on_submit=partial(_ask_what_is_written, gateway, conversation_id),
    )
    st.bottom.caption(f"{REMINDER} {pictures.HINT}" if me["max_images"] else REMINDER)
    if conversation_id is None and not unsent.of(None):
        _offer_examples(gateway)


def _disclaimer(me: Json) -> None:
    st.info(DISCLAIMER, icon=":material/smart_toy:")
    if me["answers_stopped"]:
        st.error(
            "**Answers are stopped for now.** Questions are not taken; ask again later. In an emergency call "
            "your emergency number; if you write about a crisis or an emergency here, you are still told "
            "where help is.",
            icon=":material/front_hand:",
        )
    if me["model"] == "demo":
        st.caption(
            "The demo model answers: a toy that knows a few dozen conditions by heart and nothing else. "
            "Do not act on what it says."
        )


def _load(gateway: Gateway, conversation_id: str | None) -> Json | None:
    if conversation_id is None:
        return None
    try:
        return gateway.conversation(conversation_id)
    except GatewayError as error:
        if error.status == 410:
            st.error(error.detail, icon=":material/error:")
            history.show_removal(gateway, conversation_id)
            return None
        if error.status not in (404, 422):
            raise
        st.error(
            "There is no conversation of yours at this address. Start a new one, or choose one at the left.",
            icon=":material/error:",
        )
        return None


def _is_running(job: Json | None) -> bool:
    return job is not None and job["finished_at"] is None


def _show_messages(gateway: Gateway, conversation: Json) -> None:
    for message in conversation["messages"]:
        with st.chat_message(message["role"]):
            if message["given"]:
                st.markdown(plain_markdown(message["text"]))
                st.caption(_SENT[message["given"]])
            elif message["role"] == "user":
                st.markdown(plain_markdown(message["text"]))
                pictures.show_stored(message["images"], partial(gateway.image, conversation["id"]))
            else:
                _show_answer(gateway, message)


def _show_answer(gateway: Gateway, message: Json) -> None:
    _guard_banner(message["guard"])
    st.markdown(answer_markdown(message["text"]))
    # named for what is stored: under a name of before it would go on showing what was clicked
    key = f"rate-{message['id']}-{message['feedback']}-{st.session_state.get(_NOT_RATED, 0)}"
    st.feedback(
        "thumbs",
        key=key,
        default={"down": 0, "up": 1}.get(message["feedback"]),
        on_change=partial(_rate, gateway, message["id"], key),
    )


def _guard_banner(guard: Json | None) -> None:
    """Say that the guard stepped in, and why; nothing when it did not."""
    if guard is None or guard["action"] == "allow":
        return
    reason = words(guard["category"])
    if guard["action"] == "crisis":
        st.error(
            f"**The guard answered at once** ({reason}). No model wrote this.", icon=":material/emergency:"
        )
    elif guard["action"] == "refuse":
        why = reason or "check failed"
        st.warning(f"**The guard answered in place of a model** ({why}).", icon=":material/shield:")
    elif guard["sentences_replaced"]:
        st.warning(
            f"**The guard stepped in** ({reason or 'check failed'}): a sentence was held back and replaced.",
            icon=":material/shield:",
        )
    elif guard["action"] == "append":
        told = f"**The guard asks you to check this with a clinician** ({reason})."
        if guard["category"] == "omission":
            told = "**The guard added the last sentence**, because the answer did not say whom to turn to."
        elif guard["category"] == "identifiers":
            told = "**The guard kept what names a person from the model**; an answer does not need it."
        elif guard["category"] in ("crisis", "emergency"):
            told = "**The guard put first where help is found**, because of what was said before."
        st.info(told, icon=":material/shield:")


def _guard_so_far(released: list[Json]) -> Json | None:
    """What the guard did to an answer that is still being written, as it is told of a finished one."""
    touched = [sentence for sentence in released if sentence["action"] != "allow"]
    if not touched:
        return None
    replaced = [sentence for sentence in touched if sentence["action"] == "replace"]
    gravest = (replaced or touched)[-1]
    return {
        "action": gravest["action"],
        "category": gravest["category"],
        "sentences_replaced": len(replaced),
    }


def _rate(gateway: Gateway, message_id: str, key: str) -> None:
    try:
        gateway.rate(message_id, {0: "down", 1: "up", None: None}[st.session_state[key]])
        st.toast("Thank you; noted." if st.session_state[key] is not None else "Taken back.")
    except GatewayError as error:
        st.session_state[_NOT_RATED] = st.session_state.get(_NOT_RATED, 0) + 1
        st.toast(error.detail, icon=":material/error:")


def _follow(gateway: Gateway, shown: Json) -> None:
    """What is released of the running answer, looked at again and again until it has ended."""
    try:
        conversation = gateway.conversation(shown["id"])
    except GatewayError as error:
        if error.status in (401, 404, 410):
            st.rerun()
        st.caption(f"{error.detail} Your answer goes on; trying again.")
        return
    job = conversation["job"]
    # a person in need is answered at once, in another tab too, beside the answer that is under way
    if not _is_running(job) or len(conversation["messages"]) != len(shown["messages"]):
        st.rerun()
    with st.chat_message("assistant"):
        _guard_banner(_guard_so_far(conversation["released"]))
        released = "".join(sentence["text"] for sentence in conversation["released"])
        if released:
            st.markdown(answer_markdown(released))
        st.caption(_progress(job))
        st.button(
            "Stop",
            icon=":material/stop_circle:",
            key="stop",
            disabled=job["cancel_requested"],
            on_click=partial(_stop, gateway, job["id"]),
        )


def _stop(gateway: Gateway, job_id: str) -> None:
    try:
        gateway.cancel(job_id)
    except GatewayError as error:
        st.toast(error.detail, icon=":material/error:")


def _progress(job: Json) -> str:
    if job["cancel_requested"]:
        return "Stopping …"
    if job["state"] == "running":
        return "Writing; each sentence is checked before you see it …"
    place = f", place {job['position']}" if job["position"] else ""
    return f"Waiting for a free worker{place} …"


def _show_end(gateway: Gateway, conversation: Json) -> None:
    """How the newest answer ended, and the way to another one."""
    job = conversation["job"]
    if job is None:
        return
    if job["state"] == "failed":
        st.error(job["error"]["detail"] or "The answer failed.", icon=":material/error:")
    elif job["state"] == "cancelled":
        st.caption("You stopped this answer.")
    answered = conversation["messages"][-1]["role"] == "assistant"
    label = "Regenerate" if answered and job["state"] == "succeeded" else "Try again"
    st.button(
        label,
        icon=":material/refresh:",
        key="regenerate",
        on_click=partial(_regenerate, gateway, conversation["id"]),
    )


def _regenerate(gateway: Gateway, conversation_id: str) -> None:
    try:
        gateway.regenerate(conversation_id)
    except GatewayError as error:  # an answer may be under way that this page does not know of yet
        st.toast(error.detail, icon=":material/error:")


def _look(gateway: Gateway, shown: Json, looks: Iterator[int]) -> None:
    """Show the page anew once the conversation is another than the one shown; it was only just read at first.

    That the log-in ended hides it at once. Whatever else the gateway refuses is told when the person does
    something: now they may be writing.
    """
    if not next(looks):
        return
    try:
        changed = gateway.conversation(shown["id"]) != shown
    except GatewayError as error:
        changed = error.status == 401
    if changed:
        st.rerun()


def _offer_examples(gateway: Gateway) -> None:
    st.subheader("What would you like to know?")
    for number, example in enumerate(EXAMPLES):
        st.button(example, key=f"example-{number}", on_click=partial(_ask, gateway, None, example))


def _ask_what_is_written(gateway: Gateway, conversation_id: str | None) -> None:
    written = st.session_state["question"]
    if isinstance(written, str):  # the model sees no pictures
        _ask(gateway, conversation_id, written)
    else:
        query = written.text.strip() or pictures.WHAT_IS_SEEN
        _ask(gateway, conversation_id, query, pictures.taken_from(written.files))


def _ask(gateway: Gateway, conversation_id: str | None, query: str, images: Sequence[str] = ()) -> None:
    key = str(uuid.uuid4())
    _send(gateway, {"query": query, "images": images, "conversation_id": conversation_id, "key": key})


def _send_anew(gateway: Gateway, question: Json) -> None:
    """Ask in a new conversation, where the question then is, sent or not.

    As another question it has another key, the same for each click.
    """
    unsent.forget(question)
    st.query_params.pop("c", None)
    _send(
        gateway,
        {**question, "conversation_id": None, "key": str(uuid.uuid5(uuid.UUID(question["key"]), "anew"))},
    )


def _send(gateway: Gateway, question: Json) -> None:
    """Ask; a question that did not get through is kept for another try under the same key."""
    try:
        accepted = gateway.ask(
            question["query"], question["conversation_id"], question["key"], question["images"]
        )
    except GatewayError as error:
        unsent.keep(question, error)
        return
    unsent.forget(question)
    st.query_params["c"] = accepted["conversation_id"]
