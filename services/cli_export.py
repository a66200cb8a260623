"""`medichat export`: an adapter, from the storage or a folder, merged into its base model.

It finds the files; services/worker_train/export.py does the work.
"""

import argparse
import re
import shutil
import tempfile
from pathlib import Path

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

    with tempfile.TemporaryDirectory(prefix="medichat-") as copy:
        adapter = options.adapter
        if _SHA256.fullmatch(adapter):
            adapter = str(_fetch(adapter, Path(copy)))
        arguments = [adapter, str(options.folder), "--dtype", options.dtype]
        return main([*arguments, *(["--model", options.model] if options.model else [])])


def _fetch(sha256: str, folder: Path) -> Path:
    """Copy the adapter's files from storage. Raises ValueError when they are not there."""
    from shared.settings import load_settings
    from shared.storage import Storage

    storage = Storage.from_settings(load_settings())
    paths = storage.list(f"adapters/{sha256}")
    if not paths:
        raise ValueError("there is no adapter of this SHA-256 in the storage; see the Adapters page")
    for path in paths:
        with storage.open(path) as source, (folder / path.rpartition("/")[2]).open("wb") as target:
            shutil.copyfileobj(source, target)
    return folder
