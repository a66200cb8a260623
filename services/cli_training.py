"""`medichat dataset …`: sends datasets to the gateway and follows their check. It reads no database."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from services import cli_report
from services.cli_client import CommandRefused, Json, ProgressLine, expect, follow, log_in
from shared.settings import Settings, load_settings
from shared.training.options import PhiPolicy

ACCEPTED, REFUSED, REJECTED = 0, 1, 3
_EPILOG = (
    "The gateway is MEDICHAT_API_URL. Log in with an admin's API key in MEDICHAT_API_KEY, or by name and "
    f"password. Exit status: {ACCEPTED} done, {REFUSED} not sent, {REJECTED} the check rejected the dataset."
)
_BLOCK_BYTES = 1 << 20
_UNDER_WAY = ("receiving", "validating")


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `dataset` to the command line."""
    text = "send datasets to fine-tune on, and list them"
    dataset = commands.add_parser("dataset", help=text, description=text)
    actions = dataset.add_subparsers(required=True, metavar="ACTION")

    add = actions.add_parser("add", help="send a file and have it checked", epilog=_EPILOG)
    add.add_argument(
        "file", type=Path, metavar="FILE", help="JSONL, CSV, Parquet, or a zip of images and JSONL"
    )
    add.add_argument("--name", help="what to call it; the file's name when left out")
    _add_options(add)
    add.set_defaults(run=_add)

    take = actions.add_parser("import", help="have the gateway fetch one, and check it", epilog=_EPILOG)
    take.add_argument("source", choices=["path", "hub"], help="its import folder, or the hub")
    take.add_argument("location", help="a file of that folder, or a hub id such as OWNER/NAME")
    take.add_argument("--name", help="what to call it; its location when left out")
    take.add_argument("--subset", help="which configuration of a dataset of the hub")
    take.add_argument("--split", help="which split of it; train when left out")
    _add_options(take)
    take.set_defaults(run=_import)

    show = actions.add_parser("show", help="one dataset, and what its check found", epilog=_EPILOG)
    show.add_argument("dataset", metavar="ID", help="see `medichat dataset list`")
    show.add_argument("--json", action="store_true", help="print the report of its check alone, as JSON")
    show.set_defaults(run=_show)

    listed = actions.add_parser("list", help="the newest datasets", epilog=_EPILOG)
    listed.set_defaults(run=_list)


def _add_options(add: argparse.ArgumentParser) -> None:
    """What decides what a check makes of a dataset; what is left out is the gateway's choice."""
    add.add_argument(
        "--phi", choices=[each.value for each in PhiPolicy], help="rows with personal information"
    )
    add.add_argument("--validation-fraction", type=float, metavar="F", help="share held out, 0 to 0.5")
    add.add_argument("--seed", type=int, help="draws the rows that are held out")
    add.add_argument("--max-tokens", type=int, metavar="N", help="longest row that training takes")
    add.add_argument("--model", help="catalogue name of the model whose tokenizer counts")
    add.add_argument(
        "--column", action="append", metavar="MEANING:NAME", help="e.g. question:Frage; may be repeated"
    )
    add.add_argument("--wait", action="store_true", help="follow the check and print what it found")


def _add(options: argparse.Namespace) -> int:
    settings = load_settings()
    size = _check_file(options.file, settings)
    query = _chosen(options)
    if options.column:
        query["column"] = options.column
    query |= {"name": options.name or options.file.stem[:100], "filename": options.file.name}
    with log_in(settings) as client:
        made = _send(client, options.file, size, query)
        print(f"{made['id']}  {made['name']}: received, sha256 {made['sha256']}")
        if not options.wait:
            return ACCEPTED
        return _follow(client, made["id"])


def _chosen(options: argparse.Namespace) -> Json:
    """The options that are a single value each, as far as they are given."""
    names = ("phi", "validation_fraction", "seed", "max_tokens", "model", "subset", "split")
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


def _import(options: argparse.Namespace) -> int:
    chosen = _chosen(options)
    if options.column:
        pairs = [pair.partition(":") for pair in options.column]
        chosen["columns"] = {meaning: name for meaning, _, name in pairs}
    body = {
        "name": options.name or options.location[-100:],
        "source": options.source,
        "location": options.location,
        "options": chosen,
    }
    with log_in(load_settings()) as client:
        made = expect(client.post("/v1/datasets/import", json=body))
        print(f"{made['id']}  {made['name']}: to be fetched")
        return _follow(client, made["id"]) if options.wait else ACCEPTED


def _show(options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        dataset = expect(client.get(f"/v1/datasets/{options.dataset}"))
    if options.json:
        if dataset["report"] is None:
            raise CommandRefused(f"there is no report of this dataset; it is {dataset['state']}")
        print(json.dumps(dataset["report"], indent=2))
        return ACCEPTED
    print(f"{dataset['id']}  {dataset['name']}: {dataset['state']}")
    return _tell(dataset) if dataset["state"] not in _UNDER_WAY else ACCEPTED


def _send(client: httpx.Client, path: Path, size: int, query: Json) -> Json:
    # may this person send at all? A refusal of the upload itself may be lost with the connection
    expect(client.get("/v1/datasets", params={"limit": 1}))
    line = ProgressLine()
    headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
    try:
        return expect(
            client.post("/v1/datasets", params=query, content=_blocks(path, size, line), headers=headers)
        )
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError) as error:
        raise CommandRefused(
            "the gateway broke the upload off: it went down, or allows less (its MEDICHAT_MAX_DATASET_BYTES)"
        ) from error
    finally:
        line.end()


def _list(_options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        for item in expect(client.get("/v1/datasets", params={"limit": 100}))["items"]:
            rows = "-" if item["rows_train"] is None else f"{item['rows_train']}+{item['rows_validation']}"
            print(f"{item['id']}  {item['state']:10}  {rows:>12} rows  {item['name']}")
    return ACCEPTED


def _check_file(path: Path, settings: Settings) -> int:
    """The file's size. Raises CommandRefused for what cannot be sent."""
    if path.is_dir():
        raise CommandRefused(f"{path} is a folder; zip it, or send the files one by one")
    if not path.is_file():
        raise CommandRefused(f"there is no file {path}")
    size = path.stat().st_size
    if size == 0:
        raise CommandRefused(f"{path} is empty")
    if size > settings.max_dataset_bytes:
        raise CommandRefused(
            f"{path} has {size} bytes, and a dataset may have {settings.max_dataset_bytes}; split it, "
            "or raise MEDICHAT_MAX_DATASET_BYTES"
        )
    return size


def _blocks(path: Path, size: int, line: "ProgressLine") -> Iterator[bytes]:
    begun, sent = time.monotonic(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            if sent + len(block) > size:
                break
            yield block
            sent += len(block)
            speed = sent / max(time.monotonic() - begun, 1e-3) / 1e6
            line.show(f"{sent:,} of {size:,} bytes  {sent / size:4.0%}  {speed:.1f} MB/s", last=sent >= size)
    if block or sent < size:  # other bytes than were announced
        raise CommandRefused(f"{path} changed while it was sent; send it again")


def _follow(client: httpx.Client, dataset_id: str) -> int:
    dataset = follow(
        client,
        f"/v1/datasets/{dataset_id}",
        ended=lambda seen: seen["state"] not in _UNDER_WAY,
        told=lambda seen: _checking(seen["progress"]),
        again=f"medichat dataset show {dataset_id}",
    )
    return _tell(dataset)


def _tell(dataset: Json) -> int:
    """Print what a check found; returns the exit status."""
    if dataset["report"]:
        print("\n".join(cli_report.told(dataset["report"])))
    if dataset["state"] != "ready":
        print(f"medichat: rejected: {dataset['error']['detail']}", file=sys.stderr)
        return REJECTED
    print(f"ready: {dataset['rows_train']} rows to train on, {dataset['rows_validation']} held out")
    return ACCEPTED


def _checking(progress: Json | None) -> str:
    if progress is None:
        return "waiting for a worker to check it"
    of = "" if progress["total"] is None else f" of {progress['total']:,}"
    return f"checking: {progress['done']:,}{of} {progress['what']}"
