"""`medichat export`: an adapter, from the storage or a folder, merged into its base model.

It finds the files; services/worker_train/export.py does the work.
"""

import argparse
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.settings import Settings

_SHA256 = re.compile(r"[0-9a-f]{64}")


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `export` to the command line."""
    text = "merge an adapter into its base model, for transformers, vLLM or Ollama"
    export = commands.add_parser("export", help=text, description=text)
    export.add_argument("adapter", help="the adapter's SHA-256 (from its page), or a folder with its files")
    export.add_argument("folder", type=Path, help="where to write; must not exist")
    export.add_argument("--model", default="", help="base model in the catalogue (default: the adapter's)")
    export.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    export.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    from services.worker_train.export import main

    with tempfile.TemporaryDirectory(prefix="medichat-") as copies:
        adapter, registered = options.adapter, bool(_SHA256.fullmatch(options.adapter))
        if registered:
            adapter = str(_fetch(adapter, Path(copies)))
        arguments = [adapter, str(options.folder), "--dtype", options.dtype]
        status = main([*arguments, *(["--model", options.model] if options.model else [])])
    if registered and status == 0:
        _log_export(options.adapter, options.folder, options.dtype)
    return status


def _log_export(sha256: str, folder: Path, dtype: str) -> None:
    """Add the event to the audit log. Raises CommandRefused, and removes the folder, when that cannot be."""
    from sqlalchemy.exc import SQLAlchemyError

    from services.cli_client import CommandRefused
    from shared.audit import record
    from shared.clock import DatabaseClock
    from shared.db import open_database
    from shared.settings import load_settings

    database = open_database(load_settings())
    try:
        with database.write() as connection:
            record.append(
                connection,
                now=DatabaseClock().now(connection),
                actor=record.OPERATOR_ACTOR,
                action="adapter.exported",
                object=f"adapter:{sha256}",
                details={"dtype": dtype},
            )
    except SQLAlchemyError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise CommandRefused(
            "the export could not be noted in the audit log, so its folder was removed; "
            "see MEDICHAT_DATABASE_URL, and try again"
        ) from error
    finally:
        database.close()


def _fetch(sha256: str, folder: Path) -> Path:
    """Copy the adapter's files from storage into a folder of its name, with the card that was registered.

    Raises:
        CommandRefused: it is not in the registry, was recalled, or could not be verified.
        AdapterRefused: the storage holds other files than those that were registered.
    """
    from services.cli_client import CommandRefused
    from services.setup import load_installed
    from shared.storage import Storage
    from shared.training.adapter_files import CARD, check_adapter, copy_adapter

    settings = load_installed()
    files_sha256, card = _check_registry(settings, sha256)
    copy = folder / sha256
    copy.mkdir()
    try:
        copy_adapter(Storage.from_settings(settings), sha256, copy)
        check_adapter(copy, sha256=sha256, files_sha256=files_sha256)
        (copy / CARD).write_text(card, encoding="utf-8")  # the stored one is not among what was checked
    except FileNotFoundError as error:
        raise CommandRefused("the storage has no files of this adapter; see MEDICHAT_STORAGE_URL") from error
    return copy


def _check_registry(settings: "Settings", sha256: str) -> tuple[str, str]:
    """What the adapter's files beside its weights must hash to, if it may be used, and its card.

    Raises CommandRefused, also when nobody can tell.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from services.cli_client import CommandRefused
    from shared.db import open_database
    from shared.errors import MediChatError
    from shared.training.adapters import card_of, check_usable, files_hash, find
    from shared.training.states import AdapterStatus

    database = open_database(settings)
    try:
        with database.read() as connection:
            adapter = find(connection, sha256)
            if adapter.status is AdapterStatus.RECALLED:
                raise CommandRefused(f"this adapter was recalled: {adapter.recalled_reason}")
            check_usable(connection, sha256, adapter.base_model)
            return files_hash(connection, sha256), card_of(connection, sha256)
    except MediChatError as error:
        raise CommandRefused(error.detail) from error
    except SQLAlchemyError as error:
        raise CommandRefused(
            "the database cannot be read, so nobody can tell whether this adapter was recalled; "
            "see MEDICHAT_DATABASE_URL, or name a folder with its files"
        ) from error
    finally:
        database.close()
