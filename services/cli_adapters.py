"""`medichat train …` and `medichat adapter …`: fine-tune, judge and use adapters through the gateway."""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import yaml

from services import cli_compare
from services.cli_client import DONE, FAILED, CommandRefused, Json, expect, follow, log_in
from services.cli_measured import print_figures, print_gate, print_samples
from shared.settings import load_settings
from shared.training.states import BASE

_EPILOG = "The gateway is MEDICHAT_API_URL. Log in with an admin's API key in MEDICHAT_API_KEY, or by name."
_ENDED = ("succeeded", "failed", "cancelled")
#: Letters of an adapter's SHA-256 that a person has to write.
_SHORTEST_NAME = 6
#: Of an adapter, for whoever is about to use it.
GONE = "What it was trained on was erased since, and it has learnt it all the same."
#: Items of a list that the gateway is asked for at once.
PAGE = 100


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `train` and `adapter` to the command line."""
    _add_train(commands)
    _add_adapter(commands)


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "fine-tune an adapter, watch it, stop it, start it again"
    actions = commands.add_parser("train", help=text, description=text).add_subparsers(
        required=True, metavar="ACTION"
    )
    start = actions.add_parser("start", help="start a run", epilog=_EPILOG)
    start.add_argument("dataset", help="id of a checked dataset; see `medichat dataset list`")
    start.add_argument("--name", required=True, help="of the adapter; versions of one name are counted")
    start.add_argument("--preset", help="recipe to start from; left out, one for the served model")
    start.add_argument(
        "--set", action="append", default=[], metavar="KNOB=VALUE", help="e.g. epochs=1; may be repeated"
    )
    start.add_argument("--wait", action="store_true", help="follow the run to its end")
    start.set_defaults(run=_start)
    for name, text, run in (
        ("watch", "follow a run to its end", _watch),
        ("stop", "stop a run; it makes no adapter", _stop),
        ("resume", "start a failed run again, from its last checkpoint", _resume),
    ):
        action = actions.add_parser(name, help=text, epilog=_EPILOG)
        action.add_argument("run_id", metavar="RUN")
        action.set_defaults(run=run)
    actions.add_parser("list", help="the newest runs", epilog=_EPILOG).set_defaults(run=_list_runs)


def _add_adapter(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "judge adapters, promote, roll back, recall"
    actions = commands.add_parser("adapter", help=text, description=text).add_subparsers(
        required=True, metavar="ACTION"
    )
    actions.add_parser("list", help="every adapter", epilog=_EPILOG).set_defaults(run=_list_adapters)

    def add(name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, epilog=_EPILOG)
        action.add_argument("adapter", metavar="SHA256", help="or its beginning")
        action.set_defaults(run=run)
        return action

    add("show", "its card, and what was found of it", _show)
    both = actions.add_parser("compare", help="ask two the same question, and vote", epilog=_EPILOG)
    for side in ("left", "right"):
        both.add_argument(side, help=f"SHA256 or its beginning; `{BASE}` is the base model alone")
    cli_compare.add_arguments(both)
    both.set_defaults(run=_compare)
    add("verify", "load it where it will serve, and compare what it computes", _verify)
    evaluate = add("evaluate", "measure it against its base", _evaluate)
    evaluate.add_argument(
        "--dataset", metavar="ID", help="on its held-out rows; on others than its own it does not count"
    )
    add("samples", "answers of its newest evaluation beside the base's (this is logged)", _samples)
    add("stop-evaluation", "stop its evaluation that waits or runs", _stop_evaluation)
    add("approve", "let questions name it", _approve)
    promote = add("promote", "let it answer", _promote)
    kept = "kept for auditors, in the clear: name no patient"
    promote.add_argument("--override", metavar="REASON", help=f"past a gate that failed; {kept}")
    recall = add("recall", "never let it answer again", _recall)
    recall.add_argument("--reason", required=True, help=kept)
    add("answers", "the answers that it gave, newest first: ids and times", _list_answers)
    back = actions.add_parser("roll-back", help="let the one before answer again", epilog=_EPILOG)
    back.add_argument("--base-model", help="catalogue name; the served one when left out")
    back.set_defaults(run=_roll_back)


# -- runs


def _start(options: argparse.Namespace) -> int:
    body = {
        "name": options.name,
        "dataset_id": options.dataset,
        **({"preset": options.preset} if options.preset else {}),
        "changes": _changes(options.set),
    }
    with log_in(load_settings()) as client:
        run = expect(client.post("/v1/training-runs", json=body))
        print(f"{run['id']}  {run['name']}: {run['state']}")
        return _follow_run(client, run["id"]) if options.wait else DONE


class _Values(yaml.SafeLoader):
    """Values as YAML 1.2 has them: on, off, yes, no and dates are text, which the knob's type may convert."""


_Values.yaml_implicit_resolvers = {
    first: [
        each for each in known if each[0] not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
    ]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Values.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def _changes(pairs: list[str]) -> Json:
    """`KNOB=VALUE` pairs; a value is read as YAML, so that 3, 1e-4, true and cosine are what they seem."""
    changes: Json = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise CommandRefused(f"--set takes KNOB=VALUE, not {pair}")
        try:
            changes[name.strip()] = _number(yaml.load(value, _Values))  # noqa: S506 - a SafeLoader
        except yaml.YAMLError as error:
            raise CommandRefused(f"--set {pair}: the value cannot be read") from error
    return changes


def _number(value: Any) -> Any:
    """YAML 1.1 takes 1e-4, without a point, for text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _watch(options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        return _follow_run(client, options.run_id)


def _stop(options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        run = expect(client.post(f"/v1/training-runs/{options.run_id}/cancel"))
        print(f"{run['name']}: {run['state']}")
    return DONE


def _resume(options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        run = expect(client.post(f"/v1/training-runs/{options.run_id}/resume"))
        print(f"{run['name']}: {run['state']}")
    return DONE


def _list_runs(_options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        for run in expect(client.get("/v1/training-runs", params={"limit": 50}))["items"]:
            print(f"{run['id']}  {run['state']:10}  {run['percent']:3.0f} %  {run['name']}")
    return DONE


def _follow_run(client: httpx.Client, run_id: str) -> int:
    run = follow(
        client,
        f"/v1/training-runs/{run_id}",
        ended=lambda seen: seen["state"] in _ENDED,
        told=lambda run: f"{_how_far(run)}{_losses(client, run)}",
        again=f"medichat train watch {run_id}",
    )
    for note in run["notes"]:
        print(note["text"])
    if run["state"] != "succeeded":
        detail = run["error"]["detail"] if run["error"] else "it was stopped"
        print(f"medichat: no adapter: {detail}", file=sys.stderr)
        return FAILED
    print(f"adapter {run['adapter_sha256']}")
    return DONE


def _how_far(run: Json) -> str:
    if run["state"] == "waiting":
        return f"waiting: {run['waiting_reason']}"
    if not run["total_steps"]:
        return f"{run['state']}"
    left = "" if run["eta_s"] is None else f", {run['eta_s']:.0f} s to go"
    return f"step {run['step']} of {run['total_steps']} ({run['percent']:.0f} %{left})"


def _losses(client: httpx.Client, run: Json) -> str:
    """The newest losses of a run that moves."""
    if not run["step"]:
        return ""
    steps = expect(client.get(f"/v1/training-runs/{run['id']}/steps"))["items"]
    told = ""
    for name, what in (("loss", "loss"), ("eval_loss", "held out")):
        newest = next((step[name] for step in reversed(steps) if step[name] is not None), None)
        told += "" if newest is None else f", {what} {newest:.3f}"
    return told


# -- adapters


def _list_adapters(_options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        for adapter in _all(client, "/v1/adapters"):
            gate = {None: "not measured", True: "gate passed", False: "gate failed"}
            passed = adapter["gate"]["passed"] if adapter["gate"] else None
            gone = "; what it was trained on was erased" if adapter["dataset_gone"] else ""
            print(
                f"{adapter['sha256'][:12]}  {adapter['status']:9}  {gate[passed]:12}  "
                f"{adapter['name']} v{adapter['version']} on {adapter['base_model']}{gone}"
            )
    return DONE


def _show(options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        adapter = expect(client.get(f"/v1/adapters/{_find(client, options.adapter)}"))
    print(f"{adapter['sha256']}  {adapter['status']}")
    if adapter["status"] == "recalled":
        print(f"recalled: {adapter['recalled_reason']}")
    if adapter["dataset_gone"]:
        print(f"{GONE} Where the law asks for it to be forgotten, recall it.")
    print()
    found = adapter["verification"]
    if found and found["ok"] and not adapter["has_files_hash"]:
        print("verified: by an earlier release; every answer with it fails until it is verified again")
    else:
        print("not verified yet" if found is None else f"verified: {found['reason'] or 'yes'}")
    ended = [each for each in adapter["evaluations"] if each["gate"]]
    measured = next((each for each in ended if each["counts"]), None)
    newest = next(iter(adapter["evaluations"]), None)
    if newest is not None and newest["state"] != "succeeded":
        print(f"newest evaluation: {_how_it_ended(newest)}")
    if measured is None:
        print("not measured yet")
    else:
        print_gate(measured["gate"])
        print_figures(measured["figures"])
    for each in ended:
        if not each["counts"]:
            print(f"\non dataset {each['dataset_id']}, which does not count for its promotion:")
            print_gate(each["gate"])
            print_figures(each["figures"])
    print(f"\n{adapter['card'] or ''}")
    return DONE


def _compare(options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        left, right = (
            None if name == BASE else _find(client, name) for name in (options.left, options.right)
        )
        return cli_compare.compare(client, left, right, options)


def _verify(options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        sha256 = _find(client, options.adapter)
        expect(client.post(f"/v1/adapters/{sha256}/verify"))
        adapter = _wait(
            client,
            sha256,
            lambda seen: seen["verify_state"] in _ENDED,
            lambda seen: "waiting for a worker" if seen["verify_state"] == "queued" else "a worker loads it",
        )
    found = adapter["verification"]
    if adapter["verify_state"] == "succeeded" and found["ok"]:
        print("verified")
        return DONE
    reason = adapter["verify_error"]["detail"] if adapter["verify_error"] else (found or {}).get("reason")
    print(f"medichat: not verified: {reason or 'it was stopped'}", file=sys.stderr)
    return FAILED


def _samples(options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        adapter = expect(client.get(f"/v1/adapters/{_find(client, options.adapter)}"))
        ended = next((each for each in adapter["evaluations"] if each["gate"]), None)
        if ended is None:
            raise CommandRefused("It is not measured yet: `medichat adapter evaluate` does that.")
        print_samples(expect(client.get(f"/v1/evaluations/{ended['id']}")))
    return DONE


def _evaluate(options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        sha256 = _find(client, options.adapter)
        body = {"dataset_id": options.dataset} if options.dataset else {}
        evaluation = expect(client.post(f"/v1/adapters/{sha256}/evaluate", json=body))

        def own(adapter: Json) -> Json:
            return next(each for each in adapter["evaluations"] if each["id"] == evaluation["id"])

        adapter = _wait(
            client,
            sha256,
            lambda seen: own(seen)["state"] in _ENDED,
            lambda seen: _how_far_measured(own(seen)),
        )
    measured = own(adapter)
    if measured["state"] != "succeeded":
        detail = measured["error"]["detail"] if measured["error"] else "it was stopped"
        print(f"medichat: not measured: {detail}", file=sys.stderr)
        return FAILED
    print_gate(measured["gate"])
    print_figures(measured["figures"])
    return DONE if measured["gate"]["passed"] else FAILED


def _how_it_ended(evaluation: Json) -> str:
    """What came of an evaluation without figures, or how far it is."""
    if evaluation["state"] == "failed":
        return f"failed: {evaluation['error']['detail']}"
    return "was stopped" if evaluation["state"] == "cancelled" else _how_far_measured(evaluation)


def _how_far_measured(evaluation: Json) -> str:
    if evaluation["waiting_reason"]:
        return f"waiting: {evaluation['waiting_reason']}"
    progress = evaluation["progress"]
    if progress and progress["total"]:
        return f"measuring: {progress['what']}, {progress['done']:,} of {progress['total']:,}"
    return "waiting for a worker" if evaluation["state"] == "queued" else "measuring"


def _stop_evaluation(options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        adapter = expect(client.get(f"/v1/adapters/{_find(client, options.adapter)}"))
        moving = [each for each in adapter["evaluations"] if each["state"] not in _ENDED]
        if not moving:
            raise CommandRefused("no evaluation of this adapter waits or runs")
        for each in moving:
            stopped = expect(client.post(f"/v1/evaluations/{each['id']}/cancel"))
            print(f"evaluation {stopped['id']}: {stopped['state']}")
    return DONE


def _approve(options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        adapter = expect(client.post(f"/v1/adapters/{_find(client, options.adapter)}/approve"))
        print(f"{adapter['name']} v{adapter['version']} answers questions that name it")
    return DONE


def _promote(options: argparse.Namespace) -> int:
    body = {"override_reason": options.override} if options.override else {}
    with log_in(load_settings()) as client:
        adapter = expect(client.post(f"/v1/adapters/{_find(client, options.adapter)}/promote", json=body))
        print(f"{adapter['name']} v{adapter['version']} answers from now on")
    return DONE


def _recall(options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        sha256 = _find(client, options.adapter)
        expect(client.post(f"/v1/adapters/{sha256}/recall", json={"reason": options.reason}))
        print(f"recalled; `medichat adapter answers {sha256[:12]}` lists the answers that it gave")
    return DONE


def _list_answers(options: argparse.Namespace) -> int:
    with log_in(load_settings()) as client:
        for each in _all(client, f"/v1/adapters/{_find(client, options.adapter)}/answers"):
            conversation = each["conversation_id"] or "-"
            print(f"{each['created_at']}  conversation {conversation}  job {each['job_id']}")
    return DONE


def _roll_back(options: argparse.Namespace) -> int:
    settings = load_settings()
    with log_in(settings) as client:
        body = {"base_model": options.base_model or settings.model}
        newest = expect(client.get("/v1/deployments", params={**body, "limit": 1}))["items"]
        body["answering"] = newest[0]["adapter_sha256"] if newest else None
        back = expect(client.post("/v1/adapters/roll-back", json=body))
        answering = f"adapter {back['adapter_sha256']}" if back["adapter_sha256"] else "the base model alone"
        print(f"{answering} answers from now on")
    return DONE


def _all(client: httpx.Client, path: str) -> Iterator[Json]:
    """Every item of a list, asked for page by page."""
    query: dict[str, str | int] = {"limit": PAGE}
    while True:
        page = expect(client.get(path, params=query))
        yield from page["items"]
        if page["next_cursor"] is None:
            return
        query["cursor"] = page["next_cursor"]


def _find(client: httpx.Client, beginning: str) -> str:
    """The whole SHA-256 of the one adapter that begins like this."""
    every = _all(client, "/v1/adapters")
    names = [each["sha256"] for each in every if each["sha256"].startswith(beginning)]
    if len(beginning) < _SHORTEST_NAME or len(names) != 1:
        raise CommandRefused(
            f"{len(names)} adapters begin with {beginning}; write at least {_SHORTEST_NAME} letters of one"
        )
    return str(names[0])


def _wait(
    client: httpx.Client, sha256: str, ready: Callable[[Json], bool], told: Callable[[Json], str]
) -> Json:
    again = f"medichat adapter show {sha256[:12]}"
    return follow(client, f"/v1/adapters/{sha256}", ended=ready, told=told, again=again)
