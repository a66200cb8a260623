"""One question to two adapters, side by side, blind on request; and how the votes stand. For admins."""

from functools import partial

import pandas as pd
import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.text import answer_markdown, moment, plain_markdown
from services.ui.tuning import Tuning
from services.ui.views import acts, erasing, password

POLL_S = 1
_BASE = "base"
_SIDES = (("left", "A"), ("right", "B"))


def show(gateway: Gateway, me: Json) -> None:
    """A form, both answers, the votes so far."""
    tuning = Tuning(gateway)
    st.title("Compare")
    st.caption("Both answers pass the guard, as every answer does.")
    password.show(gateway)
    acts.show_refusal()
    erasing.show_outcome()
    found = [each for each in tuning.adapters() if each["status"] != "recalled"]
    names = {_BASE: "base model alone"} | {
        each["sha256"]: f"{each['name']} v{each['version']} ({each['status']})" for each in found
    }
    able = {each["sha256"] for each in found if each["base_model"] == me["model"] and each["has_files_hash"]}
    _ask(tuning, {each: name for each, name in names.items() if each in {_BASE, *able}})
    comparison_id = st.query_params.get("q")
    if comparison_id:
        _show(gateway, names, comparison_id)
    made = tuning.comparisons()
    _earlier(made["newest"], names, comparison_id)
    _votes(made["totals"], names)


def _ask(tuning: Tuning, names: dict[str, str]) -> None:
    if len(names) == 1:
        st.info(
            "There is no adapter to compare with yet: none changes the model that answers, or it must be "
            "verified again first (page Adapters)."
        )
        return
    with st.form("ask"):
        question = st.text_area("Question", max_chars=5000, key="compare-question")
        left, right = st.columns(2)
        choices = list(names)
        one = left.selectbox("One", choices, 0, format_func=names.get, key="compare-left")
        other = right.selectbox("The other", choices, 1, format_func=names.get, key="compare-right")
        blind = st.checkbox("Blind: hide which is which until I have voted", True, key="compare-blind")
        if not st.form_submit_button("Ask both", type="primary"):
            return
    if not question.strip() or one == other:
        st.error(
            "Write a question, and choose two different ones."
            if question.strip()
            else "Write a question first."
        )
        return
    wish = partial(tuning.compare, question=question.strip(), left=_sha(one), right=_sha(other), blind=blind)
    made = acts.attempt(wish)
    if made:
        st.query_params["q"] = made["id"]
        st.rerun()
    acts.show_refusal()


def _sha(choice: str) -> str | None:
    return None if choice == _BASE else choice


def _show(gateway: Gateway, names: dict[str, str], comparison_id: str) -> None:
    """A comparison, looked at again and again until both answers have ended."""
    tuning = Tuning(gateway)
    try:
        seen = tuning.comparison(comparison_id)
    except GatewayError as error:
        if error.status not in (404, 410, 422):
            raise
        gone = "There is no comparison of yours at this address."
        st.error(plain_markdown(error.detail) if error.status == 410 else gone, icon=":material/error:")
        return
    if not seen["conversation_ids"]:
        st.info(
            "This comparison was erased: nobody can read it any more. A vote that was given still counts."
        )
        return
    if seen["state"] == "done":
        _sides(seen, names)
        _offer_vote(tuning, seen)
    else:
        watching = Tuning(gateway.watching())
        st.fragment(partial(_follow, watching, names, comparison_id), run_every=POLL_S)()
    _offer_erasure(gateway, seen)


def _follow(tuning: Tuning, names: dict[str, str], comparison_id: str) -> None:
    try:
        seen = tuning.comparison(comparison_id)
    except GatewayError as error:
        if error.status in (401, 404):
            st.rerun()
        st.caption(f"{plain_markdown(error.detail)} Trying again.")
        return
    if seen["state"] == "done":
        st.rerun()
    _sides(seen, names)


def _sides(seen: Json, names: dict[str, str]) -> None:
    st.markdown(f"**{plain_markdown(seen['question'] or 'Erased')}**")
    for column, (side, letter) in zip(st.columns(2), _SIDES, strict=True):
        with column.container(border=True):
            st.markdown(f"**{_who(seen, side, names, letter)}**")
            st.markdown(answer_markdown(seen[side]["answer"] or ""))
            if seen[side]["state"] in ("queued", "running"):
                st.caption("Writing …")
            elif seen[side]["state"] != "succeeded":
                st.error((seen[side]["error"] or {}).get("detail") or "It has no answer.")
            elif seen[side]["answer"] is None:
                st.caption("Erased.")


def _offer_vote(tuning: Tuning, seen: Json) -> None:
    if seen["vote"]:
        verdicts = {"left": "You preferred A.", "right": "You preferred B.", "tie": "You found them equal."}
        st.success(verdicts[seen["vote"]])
        return
    if len(seen["conversation_ids"]) < 2:
        st.caption("There is nothing to vote on: a part of it was erased. Ask again.")
        return
    if any(seen[side]["state"] != "succeeded" for side in ("left", "right")):
        st.caption("There is nothing to vote on: one of them has no answer. Ask again.")
        return
    if any(seen[side]["by_guard"] for side in ("left", "right")):
        st.caption("The guard answered this itself: there is nothing to vote on. Ask another question.")
        return
    votes = (("left", "A is better"), ("tie", "Equal"), ("right", "B is better"))
    for column, (vote, label) in zip(st.columns(3), votes, strict=True):
        act = partial(acts.attempt, partial(tuning.vote, seen["id"], vote), "Counted.")
        column.button(label, key=f"vote-{vote}", width="stretch", on_click=act)


def _offer_erasure(gateway: Gateway, seen: Json) -> None:
    acts.confirm(
        "Erase",
        "The question and its answers are destroyed: nobody can read them again, neither you nor auditors. "
        "This cannot be undone. A vote that was given still counts. "
        "Backups taken before hold them until they are deleted.",
        partial(_erase, gateway, seen["conversation_ids"]),
        key=f"erase-{seen['id']}",
        done="Erased.",
        icon=":material/delete_forever:",
    )


def _erase(gateway: Gateway, conversation_ids: list[str]) -> None:
    erased = [gateway.erase_conversation(each) for each in conversation_ids]
    erasing.note({**erased[-1], "conversations": len(erased)})  # no dataset is made of hidden ones
    st.query_params.pop("q", None)


def _who(seen: Json, side: str, names: dict[str, str], letter: str) -> str:
    if not seen["told"]:
        return letter
    return f"{letter}: {plain_markdown(names.get(seen[f'adapter_{side}'] or _BASE, 'a recalled adapter'))}"


def _earlier(newest: list[Json], names: dict[str, str], shown: str | None) -> None:
    """One's newest comparisons, to look at again or to vote on."""
    found = [each for each in newest if each["id"] != shown]
    if not found:
        return
    with st.expander("Your earlier comparisons"):
        for each in found:
            sides = " and ".join(_who(each, side, names, letter) for side, letter in _SIDES)
            vote = "voted" if each["vote"] else "no vote yet"
            st.button(
                f"{moment(each['created_at'])} UTC · {sides if each['told'] else 'blind'} · {vote}",
                f"open-{each['id']}",
                type="tertiary",
                on_click=st.query_params.update,
                args=({"q": each["id"]},),
            )


def _votes(totals: list[Json], names: dict[str, str]) -> None:
    st.subheader("Votes")
    if not totals:
        st.caption("No votes yet.")
        return
    table = [
        {
            "one": names.get(each["first"] or _BASE, each["first"]),
            "the other": names.get(each["second"] or _BASE, each["second"]),
            "one is better": each["first_wins"],
            "equal": each["ties"],
            "the other is better": each["second_wins"],
        }
        for each in totals
    ]
    st.dataframe(pd.DataFrame(table), hide_index=True, width="stretch")
