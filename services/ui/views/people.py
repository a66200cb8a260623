"""People, for admins: who is there, let somebody in, change, disable, hold or erase an account."""

from functools import partial

import pandas as pd
import streamlit as st

from services.ui.client import Gateway, GatewayError, Json
from services.ui.text import moment, plain_markdown
from services.ui.views import acts, erasing, holds, once, password

_ROLES = ("user", "admin", "auditor")
_AUDIENCES = ("patient", "clinician")
_NOTICE = "people-notice"


def show(gateway: Gateway, me: Json) -> None:
    """The list, a form for a new account, and one for changes."""
    st.title("People")
    password.show(gateway)
    acts.show_refusal()
    erasing.show_outcome()
    with once.shown(_NOTICE) as notice:
        if notice:
            st.success(notice["text"])
            if notice["password"]:
                st.code(notice["password"], language=None)
        _people(gateway, me)


def _people(gateway: Gateway, me: Json) -> None:
    people = gateway.users()
    table = [
        {
            "name": person["name"],
            "role": person["role"],
            "answers for": person["audience"],
            "status": person["status"],
            "last seen (UTC)": moment(person["last_seen_at"]) or "never",
        }
        for person in people
    ]
    st.dataframe(pd.DataFrame(table), hide_index=True, width="stretch")
    _new(gateway)
    _change(gateway, [person for person in people if person["id"] != me["id"]])
    holds.section(gateway, people)


def _new(gateway: Gateway) -> None:
    with st.form("new-person", clear_on_submit=True):
        st.subheader("Let somebody in")
        name = st.text_input("Name", max_chars=100, help="Letters, digits and . @ + - _")
        role = st.selectbox("Role", _ROLES)
        audience = st.selectbox("Answers are written for a", _AUDIENCES)
        st.caption(
            "An auditor can log in once an existing auditor has said yes, who hands them another password."
        )
        if not st.form_submit_button("Make the account", type="primary"):
            return
    try:
        made = gateway.create_user(name.strip(), role, audience)
    except GatewayError as error:
        st.error(plain_markdown(error.detail))
        return
    _notice(
        f"{plain_markdown(made['name'])} can log in with this password, shown only now:", made["password"]
    )
    st.rerun()


def _change(gateway: Gateway, others: list[Json]) -> None:
    st.subheader("Change an account")
    if not others:
        st.caption("There is nobody else yet.")
        return
    chosen = st.selectbox("Who", others, format_func=lambda each: each["name"])
    # for what was chosen is remembered as it was when the page was drawn before
    person = {each["name"]: each for each in others}[chosen["name"]]
    role = _choice("Role", _ROLES, person, "role")
    audience = _choice("Answers are written for a", _AUDIENCES, person, "audience")
    changes = {name: new for name, new in (("role", role), ("audience", audience)) if new != person[name]}
    save, reset, disable = st.columns(3)
    save.button("Save", disabled=not changes, on_click=partial(_save, gateway, person, changes))
    reset.button("New password", on_click=partial(_reset, gateway, person))
    turned = "active" if person["status"] == "disabled" else "disabled"
    label = "Enable" if turned == "active" else "Disable"
    disable.button(
        label,
        disabled=person["status"] == "pending",
        help="A disabled account is logged out at once.",
        on_click=partial(_save, gateway, person, {"status": turned}),
    )
    erasing.by_name(
        f"Erase {plain_markdown(person['name'])}",
        "The account ends, and every conversation of this person is destroyed: nobody can read them again, "
        "auditors neither. **This cannot be undone.** What they uploaded to train on stays; backups taken "
        "before hold all until you delete them. To keep somebody out, disable the account instead.",
        person["name"],
        partial(gateway.erase_person, person["id"]),
        key=f"erase-{person['id']}",
    )


def _choice(label: str, options: tuple[str, ...], person: Json, field: str) -> str:
    """What the person is to be; at first what they are."""
    stored = person[field]
    # named for what is stored too: once another admin changed it, what was chosen here would undo that
    key = f"{field}-{person['id']}-{stored}"
    return st.selectbox(label, options, options.index(stored), key=key)


def _save(gateway: Gateway, person: Json, changes: dict[str, str]) -> None:
    try:
        gateway.change_user(person["id"], **changes)
        changed = ", ".join(f"{name} is now {new}" for name, new in changes.items())
        _notice(f"{plain_markdown(person['name'])}: {changed}.")
    except GatewayError as error:
        st.toast(error.detail, icon=":material/error:")


def _reset(gateway: Gateway, person: Json) -> None:
    try:
        _notice(
            f"The new password of {plain_markdown(person['name'])}, shown only now:",
            gateway.reset_password(person["id"]),
        )
    except GatewayError as error:
        st.toast(error.detail, icon=":material/error:")


def _notice(text: str, password: str | None = None) -> None:
    st.session_state[_NOTICE] = {"text": text, "password": password}
