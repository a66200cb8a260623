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
from shared.training.dataset_files import Split
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
    text = "send datasets to fine-tune on, look at them, check them again, remove them"
    dataset = commands.add_parser("dataset", help=text, description=text)
    actions = dataset.add_subparsers(required=True, metavar="ACTION")

    add = actions.add_parser("add", help="send a file and have it checked", epilog=_EPILOG)
    add.add_argument(
        "file", type=Path, metavar="FILE", help="JSONL, CSV, Parquet, or a zip of images and JSONL"
    )
    add.add_argument(
        "--name",
        help="what to call it; when left out, the time (UTC): the file's name may name a person, and is kept "
        "encrypted, as this one is not",
    )
    _add_options(add)
    add.set_defaults(run=_add)

    take = actions.add_parser("import", help="have the gateway fetch one, and check it", epilog=_EPILOG)
    take.add_argument("source", choices=["path", "hub"], help="its import folder, or the hub")
    take.add_argument("location", help="a file of that folder, or a hub id such as OWNER/NAME")
    take.add_argument(
        "--name", help="what to call it; when left out, the hub id, or for a file the time (UTC)"
    )
    take.add_argument("--subset", help="which configuration of a dataset of the hub")
    take.add_argument("--split", help="which split of it; train when left out")
    _add_options(take)
    take.set_defaults(run=_import)

    show = actions.add_parser("show", help="one dataset, and what its check found", epilog=_EPILOG)
    show.add_argument("dataset", metavar="ID", help="see `medichat dataset list`")
    show.add_argument("--json", action="store_true", help="print the report of its check alone, as JSON")
    show.set_defaults(run=_show)

    again = actions.add_parser("check", help="check one again, with other options", epilog=_EPILOG)
    again.add_argument("dataset", metavar="ID", help="options that are left out stay as they were")
    _add_options(again)
    again.set_defaults(run=_check_again)

    rows = actions.add_parser(
        "rows", help="its rows as training sees them, or those set aside", epilog=_EPILOG
    )
    rows.add_argument("dataset", metavar="ID", help="each look at rows is logged")
    rows.add_argument("--split", choices=[each.value for each in Split], default=Split.TRAIN.value)
    rows.add_argument("--offset", type=int, default=0, metavar="N", help="rows to pass over")
    rows.add_argument("--limit", type=int, default=20, metavar="N", help="rows to print, 1 to 100")
    rows.set_defaults(run=_rows)

    remove = actions.add_parser("remove", help="take one out of the list", epilog=_EPILOG)
    remove.add_argument("dataset", metavar="ID", help="adapters that were trained on it stay")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    remove.set_defaults(run=_remove)

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
        "--column",
        action="append",
        metavar="MEANING:NAME",
        type=_column,
        help="e.g. question:Frage; group: for no column, whatever its name says; may be repeated",
    )
    add.add_argument("--wait", action="store_true", help="follow the check and print what it found")


def _add(options: argparse.Namespace) -> int:
    settings = load_settings()
    size = _check_file(options.file, settings)
    query = _chosen(options)
    if options.column:
        query["column"] = options.column
    query |= {"filename": options.file.name, **_named(options)}
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


def _named(options: argparse.Namespace) -> Json:
    return {"name": options.name} if options.name else {}


def _column(pair: str) -> str:
    if ":" not in pair:
        raise argparse.ArgumentTypeError("write MEANING:NAME, such as question:Frage")
    return pair


def _chosen_with_columns(options: argparse.Namespace) -> Json:
    chosen = _chosen(options)
    if options.column:
        pairs = [pair.partition(":") for pair in options.column]
        chosen["columns"] = {meaning: name for meaning, _, name in pairs}
    return chosen


def _import(options: argparse.Namespace) -> int:
    body = {
        **_named(options),
        "source": options.source,
        "location": options.location,
        "options": _chosen_with_columns(options),
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


def _check_again(options: argparse.Namespace) -> int:
    path = f"/v1/datasets/{options.dataset}"
    with log_in(load_settings()) as client:
        former = expect(client.get(path))["options"]
        made = expect(
            client.post(f"{path}/validate", json={"options": former | _chosen_with_columns(options)})
        )
        print(f"{made['id']}  {made['name']}: to be checked again")
        return _follow(client, made["id"]) if options.wait else ACCEPTED


def _rows(options: argparse.Namespace) -> int:
    asked = {"split": options.split, "offset": options.offset, "limit": options.limit}
    with log_in(load_settings()) as client:
        found = expect(client.get(f"/v1/datasets/{options.dataset}/rows", params=asked))
    for row in found["items"]:
        print("\n".join(cli_report.row_told(row)))
    print(f"{len(found['items'])} of {found['total']} rows, from row {options.offset} on")
    if found["next_offset"] is not None:
        print(f"the next: --offset {found['next_offset']}")
    return ACCEPTED


def _remove(options: argparse.Namespace) -> int:
    path = f"/v1/datasets/{options.dataset}"
    with log_in(load_settings()) as client:
        name = expect(client.get(path))["name"]
        if not (options.yes or _agreed(f"Remove {name}? It cannot be trained on any more. [y/N] ")):
            raise CommandRefused("nothing was removed; `--yes` removes it without asking")
        answer = client.delete(path)
        if answer.is_error:
            expect(answer)
    print(f"{options.dataset}  {name}: removed")
    return ACCEPTED


def _agreed(question: str) -> bool:
    """What the person at the terminal says; where nobody sits at one, no."""
    try:
        return sys.stdin.isatty() and input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


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
