"""`medichat user`: the way back for somebody whom no admin can help. It works on the database directly."""

import argparse


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `user` to the command line."""
    text = "help somebody whom no admin can help, such as the last auditor"
    actions = commands.add_parser("user", help=text, description=text).add_subparsers(
        required=True, metavar="ACTION"
    )
    text = "give a person a new random password, end their log-ins and API keys, and unlock the account"
    reset = actions.add_parser("reset-password", help=text, description=text)
    reset.add_argument("name", metavar="NAME")
    reset.set_defaults(run=_reset_password)


def _reset_password(options: argparse.Namespace) -> None:
    from services import setup
    from shared.audit import record
    from shared.auth import accounts
    from shared.auth.passwords import hash_password, new_password
    from shared.auth.roles import AccountStatus
    from shared.clock import DatabaseClock

    settings = setup.load_installed()
    password = new_password()
    password_hash = hash_password(password)
    with setup.open_as_owner(settings) as database, database.write() as connection:
        account = accounts.find_account(connection, options.name)
        now = DatabaseClock().now(connection)
        accounts.set_password(connection, account.id, password_hash, actor=record.OPERATOR_ACTOR, now=now)
    print(f"The new password of {account.name}, shown only now: {password}")
    if account.status is not AccountStatus.ACTIVE:
        print(f"The account is {account.status} and stays so: nobody can log in with it yet.")
