"""`medichat models …`: tells what the catalogue's models take, and whether one fits here. It loads none."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from services.cli_client import CommandRefused
from shared.catalogue import CATALOGUE, DType, Quantisation, find_model
from shared.settings import Settings, load_settings

if TYPE_CHECKING:
    from services.worker_infer.check import Check, WeightFiles

FITS, DOES_NOT_FIT = 0, 1
_GIB = 2**30
_EPILOG = (
    "What is not given is as the MEDICHAT_… settings say. Run it where the worker will run; nothing is "
    f"loaded or fetched. Exit status: {FITS} it fits, {DOES_NOT_FIT} a start would fail."
)


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `models` to the command line."""
    text = "the models by name, and whether one fits this machine"
    actions = commands.add_parser("models", help=text, description=text).add_subparsers(
        required=True, metavar="ACTION"
    )
    actions.add_parser("list", help="every model, and what it takes of memory").set_defaults(run=_list)

    text = "whether a model, its KV cache and adapters fit the device, before anything is started"
    check = actions.add_parser("check", help=text, description=text, epilog=_EPILOG)
    check.add_argument("--model", metavar="NAME", help="see `medichat models list`")
    check.add_argument("--quantise", choices=["auto", *Quantisation], help="4-bit weights, or not")
    check.add_argument("--dtype", choices=["auto", *DType], help="number format")
    check.add_argument("--device", choices=["auto", "cpu", "cuda"])
    check.add_argument("--json", action="store_true", help="print all of it as JSON; sizes in bytes")
    check.set_defaults(run=_check)


def _list(_options: argparse.Namespace) -> None:
    print(f"{'':18} {'weights':>14}  {'float32':>9}  {'bfloat16':>9}  {'nf4':>9}  pictures")
    for entry in CATALOGUE.values():
        sizes = [
            entry.weight_bytes(number_bytes, quantisation)
            for number_bytes, quantisation in (
                (4, Quantisation.NONE),
                (2, Quantisation.NONE),
                (2, Quantisation.NF4),
            )
        ]
        told = "  ".join(f"{_gib(size):>9}" for size in sizes)
        pictures = f"{entry.shape.image_tokens} tokens each" if entry.reads_images else "none"
        print(f"{entry.name:18} {entry.parameters:>14,}  {told}  {pictures:15}  {entry.title}")


def _check(options: argparse.Namespace) -> int:
    settings = _chosen(load_settings(), options)
    find_model(settings.model)  # a wrong name is told without waiting for torch
    try:
        from services.worker_infer.check import check
    except ImportError as error:
        raise CommandRefused(
            f"{error.name} is not installed here; run this where the worker runs, such as "
            "`docker compose run --rm --no-deps worker_infer medichat models check`"
        ) from error
    found = check(settings)
    if options.json:
        print(json.dumps({**asdict(found), "fits": found.fits}, indent=2))
    else:
        _print(found)
    return FITS if found.fits else DOES_NOT_FIT


def _chosen(settings: Settings, options: argparse.Namespace) -> Settings:
    """The settings, with what the command line says instead."""
    names = ("model", "quantise", "dtype", "device")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if given.get("model", settings.model) != settings.model:
        given["model_path"] = None  # that folder holds another model
    return settings.model_copy(update=given)


def _print(found: "Check") -> None:
    pictures = f", a picture takes {found.image_tokens} tokens" if found.image_tokens else ""
    nf4 = "nf4, the rest in " if found.quantisation == Quantisation.NF4 else ""
    lines = {
        "model": f"{found.model}: {found.title}, {found.parameters:,} weights{pictures}",
        "device": f"{found.device}: {_gib(found.free_bytes)} of {_gib(found.total_bytes)} are free now",
        "format": f"{nf4}{found.dtype}",
        "weights": f"{_gib(found.weight_bytes)}, {_source(found.files)}",
        "KV cache": f"{found.cache_bytes_per_token / 1024:,.0f} KiB a token; memory for "
        f"{found.affordable_tokens:,} tokens",
    }
    if found.base_cache_tokens:
        lines["answers"] = (
            f"up to {found.answers} at a time in {found.base_cache_tokens:,} tokens of cache; "
            f"{found.whole_answers} of them may take all of a context of {found.context_tokens:,} tokens"
        )
        if found.image_tokens:
            lines["pictures"] = (
                f"{found.picture_cache_tokens:,} tokens of cache for the questions that come with them"
                if found.picture_cache_tokens
                else "none: there is no memory for them, and a question that comes with one is not answered"
            )
        lines["adapters"] = (
            f"{found.adapters} ready at a time of MEDICHAT_MAX_ADAPTERS_LOADED={found.wanted_adapters}, "
            f"each with {found.adapter_cache_tokens:,} tokens of cache"
        )
        lines["training"] = f"{_gib(found.left_bytes)} are left for it when all of that is in use"
    for name, line in lines.items():
        print(f"{name:9} {line}")
    print(f"\n{_verdict(found)}")
    for way in found.advice:
        print(f"  - {way}")


def _verdict(found: "Check") -> str:
    if not found.fits:
        ways = " Do one of these:" if found.advice else ""
        return f"It would not start. {' '.join(found.problems)}{ways}"
    if found.adapters < found.wanted_adapters:
        fewer = (
            f"set MEDICHAT_MAX_ADAPTERS_LOADED={found.adapters}"
            if found.adapters
            else "an adapter will be refused when it is asked for"
        )
        return f"It fits, but not with {found.wanted_adapters} adapters: {fewer}."
    return "It fits."


def _source(files: "WeightFiles") -> str:
    if files.place == "folder":
        return f"in {files.where}"
    if files.place == "cache":
        return f"{files.where}, in the hub's cache here"
    token = "" if files.has_token else "; HF_TOKEN is not set, and without it the hub will refuse them"
    return f"fetched from the hub at the first start ({files.where}){token}"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.0f} MiB"
