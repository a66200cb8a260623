"""`medichat export`: an adapter, from the storage or a folder, merged into its base model.

It finds the files, asks the registry whether they may be used, and logs it; services/worker_train/export.py
does the work.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from shared.db import Database
    from shared.settings import Settings
    from shared.training.adapters import Adapter

#: Of an adapter's SHA-256, as much as a person has to write, or all of it.
_NAME = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True, kw_only=True)
class _Known:
    """An adapter of the registry."""

    settings: "Settings"
    sha256: str
    #: Where its files are; None for the storage.
    folder: Path | None
    #: What its files beside the weights must hash to.
    files_sha256: str
    #: As it was registered; the one beside the files is not among what is checked.
    card: str


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `export` to the command line."""
    text = (
        "merge an adapter into its base model, for transformers and vLLM, and for Ollama if the base model "
        "has a tokenizer.model (the demo has none)"
    )
    export = commands.add_parser("export", help=text, description=text)
    export.add_argument(
        "adapter", help="its SHA-256 (from its page) or the beginning, or a folder with its files"
    )
    export.add_argument("folder", type=Path, help="where to write; must not exist")
    export.add_argument("--model", default="", help="base model in the catalogue (default: the adapter's)")
    export.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    export.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    from services.worker_train.checkpoints import remove_abandoned
    from services.worker_train.copies import folder_for_copy
    from services.worker_train.export import MODELFILE, export

    adapter, agree = Path(options.adapter), None
    known = _look_up(options.adapter)
    for path in remove_abandoned(options.folder.absolute().parent, options.folder.name):
        sys.stderr.write(f"medichat: removed {path}, which an export left that was killed\n")
    with ExitStack() as stack:
        if known is not None:
            copies = stack.enter_context(folder_for_copy(known.settings.state_dir))
            adapter = _copy(known, copies / known.sha256)
            agree = partial(_log_export, known, options.dtype)
        difference = export(adapter, options.folder, model=options.model, dtype=options.dtype, agree=agree)
    sys.stdout.write(
        f"{options.folder}: merged; log-probabilities differ by at most {difference:.2g} from base and "
        "adapter.\n"
    )
    if not (options.folder / MODELFILE).exists():
        sys.stdout.write(
            "transformers and vLLM can load it. Ollama cannot: it takes the base model's tokenizer.model, "
            "which was neither among its files here nor to be fetched.\n"
        )
    return 0


def _look_up(named: str) -> _Known | None:
    """What the registry holds of an adapter by its name, or by the weights of a folder, wherever that lies;
    None, which is said, for a folder of weights that it does not know, and where there is no installation.

    Raises CommandRefused or MediChatError: it may not be used, or nobody can tell.
    """
    from services.cli_adapters import GONE
    from services.setup import load_installed
    from shared.errors import NotFound
    from shared.training.adapter_files import sha256_of
    from shared.training.adapters import card_of, files_hash, is_dataset_gone

    folder = Path(named) if Path(named).is_dir() else None
    if folder is None and not _NAME.fullmatch(named):
        raise _no_such(named)
    of_folder = sha256_of(folder) if folder else None
    try:
        settings = load_installed()
        otherwise = "the database cannot be read, so nobody can tell whether this adapter was recalled"
        with _open(settings, otherwise) as database, database.read() as connection:
            sha256 = of_folder or _whole(connection, named)
            adapter = _check_usable(connection, sha256)
            if is_dataset_gone(connection, adapter.dataset_id):
                sys.stderr.write(f"medichat: {GONE} So has what is exported.\n")
            files_sha256, card = files_hash(connection, sha256), card_of(connection, sha256)
    except (NotFound, FileNotFoundError) as error:
        if folder is None:
            raise
        if isinstance(error, NotFound):
            told = "the registry does not know these weights: the export is not logged"
        else:
            told = f"{error}: nobody looked whether these weights were recalled, and the export is not logged"
        sys.stderr.write(f"medichat: {told}\n")
        return None
    return _Known(settings=settings, sha256=sha256, folder=folder, files_sha256=files_sha256, card=card)


def _whole(connection: "Connection", beginning: str) -> str:
    """The whole SHA-256 of the one adapter that begins like this. Raises CommandRefused."""
    from sqlalchemy import select

    from services.cli_client import CommandRefused
    from shared.db.tables_training import adapters

    found = connection.execute(select(adapters.c.sha256).where(adapters.c.sha256.startswith(beginning))).all()
    if not found:
        raise _no_such(beginning)
    if len(found) > 1:
        raise CommandRefused(f"{len(found)} adapters begin with {beginning}; write more letters of one")
    return str(found[0].sha256)


def _no_such(named: str) -> Exception:
    from services.cli_client import CommandRefused

    return CommandRefused(f"there is no folder {named}, and no adapter of this name")


def _copy(known: _Known, copy: Path) -> Path:
    """Copy the adapter's files into a folder of its name, with the card that was registered.

    Raises:
        CommandRefused: the storage has none.
        AdapterRefused: there are other files than those that were registered.
    """
    from services.cli_client import CommandRefused
    from shared.storage import Storage
    from shared.training.adapter_files import CARD, check_adapter, copy_adapter

    if known.folder is None:
        copy.mkdir()
        try:
            copy_adapter(Storage.from_settings(known.settings), known.sha256, copy)
        except FileNotFoundError as error:
            raise CommandRefused(
                "the storage has no files of this adapter; see MEDICHAT_STORAGE_URL"
            ) from error
    else:
        check_adapter(known.folder, sha256=known.sha256)
        shutil.copytree(known.folder, copy)
    check_adapter(copy, sha256=known.sha256, files_sha256=known.files_sha256)
    (copy / CARD).write_text(known.card, encoding="utf-8")
    return copy


def _log_export(known: _Known, dtype: str) -> None:
    """Add the event to the audit log, if the adapter may still be used: merging it took minutes.

    Raises CommandRefused or MediChatError.
    """
    from shared.audit import record
    from shared.clock import DatabaseClock

    otherwise = "the export could not be noted in the audit log, so nothing was written"
    with _open(known.settings, otherwise) as database, database.write() as connection:
        _check_usable(connection, known.sha256)
        record.append(
            connection,
            now=DatabaseClock().now(connection),
            actor=record.OPERATOR_ACTOR,
            action="adapter.exported",
            object=f"adapter:{known.sha256}",
            details={"dtype": dtype},
        )


def _check_usable(connection: "Connection", sha256: str) -> "Adapter":
    """The adapter. Raises CommandRefused when it was recalled, and NotFound or AdapterRefused."""
    from services.cli_client import CommandRefused
    from shared.training.adapters import check_usable, find
    from shared.training.states import AdapterStatus

    adapter = find(connection, sha256)
    if adapter.status is AdapterStatus.RECALLED:
        raise CommandRefused(f"this adapter was recalled: {adapter.recalled_reason}")
    return check_usable(connection, sha256, adapter.base_model)


@contextmanager
def _open(settings: "Settings", otherwise: str) -> "Iterator[Database]":
    """The database. Raises CommandRefused, saying `otherwise`, when it cannot be used."""
    from sqlalchemy.exc import SQLAlchemyError

    from services.cli_client import CommandRefused
    from shared.db import open_database

    database = open_database(settings)
    try:
        yield database
    except SQLAlchemyError as error:
        raise CommandRefused(f"{otherwise}; see MEDICHAT_DATABASE_URL, and try again") from error
    finally:
        database.close()
