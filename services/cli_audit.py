"""`medichat audit`: verify the log, sign it, prove a conversation. It works on the database directly."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.audit.checkpoint import Signer
    from shared.audit.checkpoints import Signed
    from shared.audit.findings import Report
    from shared.db import Database
    from shared.settings import Settings

#: Exit status: the log is not what was signed.
ALTERED = 3


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `audit` to the command line."""
    text = "verify the log, sign it, prove what it says of a conversation"
    actions = commands.add_parser("audit", help=text, description=text).add_subparsers(
        required=True, metavar="ACTION"
    )

    def add(name: str, run: object, text: str) -> argparse.ArgumentParser:
        command = actions.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    check = add("verify", _verify, "recompute the log and hold it against every known checkpoint")
    check.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="one that you kept elsewhere",
    )
    check.add_argument("--json", action="store_true", help="print the report as one JSON object")
    add("checkpoint", _checkpoint, "seal what waits, sign a checkpoint and print it")
    prove = add("prove", _prove, "write a file that proves what the log says of a conversation")
    prove.add_argument("conversation", metavar="CONVERSATION")
    prove.add_argument("file", type=Path, metavar="FILE")
    add("key", _key, "print the public key that checkpoints and proofs are checked with")


def _verify(options: argparse.Namespace) -> int:
    from shared.audit.checkpoint import Signer
    from shared.audit.verifying import report_json, verify_log
    from shared.storage import Storage

    also = [(str(path), path.read_text(encoding="utf-8")) for path in options.checkpoint]
    with _opened() as (settings, database):
        signer = Signer(settings.secret("audit_key"))
        for path, note in also:
            _must_be_signed(signer, path, note)
        place = Storage.of_checkpoints(settings, patient=True)
        try:
            report = verify_log(database, place, signer.verifier, _progress, also)
        except Exception:
            _note(database, None)
            raise
        _note(database, report_json(report))
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if options.json:
        print(json.dumps(report_json(report)))
    else:
        _tell(report, settings)
    return 0 if report.holds else ALTERED


def _note(database: Database, report: dict[str, Any] | None) -> None:
    """How it ended is in the log too, and from there a metric of the gateways."""
    from sqlalchemy.exc import SQLAlchemyError

    from shared.audit import record
    from shared.audit.outcomes import note_outcome
    from shared.clock import DatabaseClock

    try:
        with database.write() as connection:
            now = DatabaseClock().now(connection)
            note_outcome(connection, report, actor=record.OPERATOR_ACTOR, now=now)
    except SQLAlchemyError as error:
        print(f"What was found could not be logged: {type(error).__name__}", file=sys.stderr)


def _must_be_signed(signer: Signer, path: str, note: str) -> None:
    """A file that this log did not sign is a slip, or the mark of a log that was written anew."""
    from shared.errors import BadCheckpoint

    try:
        signer.verifier.read(note)
    except BadCheckpoint as error:
        raise BadCheckpoint(
            f"{path} is no checkpoint of this log ({error}). If you took it from this log, then the log has "
            "another key now: that is what a log looks like which was written anew under a key of somebody "
            "else's. Compare `medichat audit key` with the key that you noted. Else name another file."
        ) from error


def _tell(report: Report, settings: Settings) -> None:
    from shared.audit.independence import dependence

    for finding in report.findings:
        entry = "" if finding.entry is None else f"entry {finding.entry}: "
        event = "" if finding.event is None else f" (event {finding.event})"
        print(f"BAD  {entry}{finding.what}{event}")
    if report.count > len(report.findings):
        print(f"     and {report.count - len(report.findings)} more")
    print(f"{report.size} entries, root {report.root.hex()}")
    print(f"{report.checkpoints} checkpoints agree; {report.waiting} events wait to be sealed")
    if report.superseded:
        print(f"{report.superseded} checkpoints are newer than a backup that was restored, as the log says")
    if why := dependence(settings):
        print(
            f"Not independent: {why}. Compare with a checkpoint that you kept elsewhere (--checkpoint FILE)."
        )
    if report.holds and not report.checkpoints:
        print("The entries agree with each other; no checkpoint is known that they could be held against.")
    else:
        print("The log is what was signed." if report.holds else "The log was ALTERED.")


def _checkpoint(_options: argparse.Namespace) -> None:
    with _opened() as (settings, database):
        print(_sign(settings, database).note, end="")


def _prove(options: argparse.Namespace) -> None:
    from sqlalchemy import select

    from shared.audit import record
    from shared.audit.checkpoint import Signer
    from shared.audit.proofs import prove_conversation
    from shared.clock import DatabaseClock
    from shared.db.tables import conversations
    from shared.errors import NotFound
    from shared.ids import is_id

    with _opened() as (settings, database):
        with database.write() as connection:
            found = select(conversations.c.id).where(conversations.c.id == options.conversation)
            if not is_id(options.conversation) or connection.execute(found).first() is None:
                raise NotFound("There is no conversation under this id.")
            record.append(
                connection,
                now=DatabaseClock().now(connection),
                actor=record.OPERATOR_ACTOR,
                action="proof.made",
                object=f"conversation:{options.conversation}",
            )
        signed = _sign(settings, database)
        verifier = Signer(settings.secret("audit_key")).verifier
        with database.read() as connection:
            proof = prove_conversation(connection, options.conversation, signed, verifier)
    options.file.write_text(json.dumps(proof, indent=1), encoding="utf-8")
    print(f"{len(proof['entries'])} entries are proved by {options.file}; check it with check_proof.py.")


def _key(_options: argparse.Namespace) -> None:
    from services.setup import load_installed
    from shared.audit.checkpoint import Signer

    print(Signer(load_installed().secret("audit_key")).verifier)


def _sign(settings: Settings, database: Database) -> Signed:
    """Seal what waits, sign it, and keep the checkpoint in both places."""
    from shared.audit import checkpoints
    from shared.audit.checkpoint import Signer
    from shared.audit.sequencer import seal_all
    from shared.clock import DatabaseClock
    from shared.storage import Storage

    signer, place, clock = (
        Signer(settings.secret("audit_key")),
        Storage.of_checkpoints(settings),
        DatabaseClock(),
    )
    seal_all(database, clock)
    found = checkpoints.look(database, place, signer.verifier)
    for path in found.bad:
        print(f"{path} of MEDICHAT_CHECKPOINT_URL is not what its name says: see why.", file=sys.stderr)
    with database.write() as connection:
        signed = checkpoints.sign(connection, signer, clock.now(connection), kept=found.newest)
    checkpoints.publish(place, signed, signer.verifier)
    return signed


@contextmanager
def _opened() -> Iterator[tuple[Settings, Database]]:
    from services.setup import load_installed
    from shared.db import open_database

    settings = load_installed()
    database = open_database(settings, pool_size=2)
    try:
        yield settings, database
    finally:
        database.close()


def _progress(checked: int, size: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{checked} of {size} entries", end="", file=sys.stderr, flush=True)
