"""The files an operator deploys with: every name in them exists, and every image installs what it runs."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.routing import iter_route_contexts
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from services import cli, local
from services.api.main import create_app
from services.api.metrics import REGISTRY
from shared.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
README = (ROOT / "README.md").read_text()
#: Read by the launcher or the proxy, not settings of a process.
NOT_SETTINGS = {"MEDICHAT_HOST", "MEDICHAT_SECRETS_DIR", "MEDICHAT_REDIS_PORT"}
OURS = [name for name, service in COMPOSE["services"].items() if "build" in service]


def targets() -> dict[str, str]:
    """The extras that each target of the Dockerfile installs."""
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[2:]
    found = {stage.split()[2]: re.search(r'-e "\.\[(.+?)\]"', stage) for stage in stages}
    return {name: extras[1] for name, extras in found.items() if extras is not None}


def lay_out(target: str, folder: Path) -> None:
    """What an image of this target holds of the project, in a folder."""
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    for stage in stages:
        if stage.split()[2] not in ("base", target):
            continue
        for line in re.findall(r"^COPY (?!--)(.+)$", stage, flags=re.MULTILINE):
            *sources, place = line.split()
            for source in (path for pattern in sources for path in ROOT.glob(pattern)):
                into = folder / place / source.name if place.endswith("/") else folder / place
                into.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy)(source, into)


@pytest.mark.parametrize("target", ["api", "ui", "worker_infer", "worker_train"])
def test_an_image_holds_all_that_its_programs_import(target: str, tmp_path: Path) -> None:
    lay_out(target, tmp_path)
    heavy = "('torch', 'transformers')" if target in ("api", "ui") else "()"
    program = f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.modules.update(dict.fromkeys({heavy}))
from services import cli
assert cli.__file__.startswith({str(tmp_path)!r})
cli.build_parser()
import services.{target}.__main__
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def environment(service: dict[str, Any]) -> dict[str, str]:
    return dict(service.get("environment", {}))


def test_compose_file_follows_the_schema_and_hands_on_what_the_operator_sets(tmp_path: Path) -> None:
    compose = shutil.which("docker-compose")
    if compose is None:
        if os.environ.get("MEDICHAT_REQUIRE_COMPOSE") == "1":
            pytest.fail("docker-compose is not installed")
        pytest.skip("docker-compose is not installed")
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy/make-secrets.sh", tmp_path / "deploy")
    chosen = {"MEDICHAT_LOCALE": "uk", "MEDICHAT_MODEL": "gemma-1b", "AWS_ACCESS_KEY_ID": "clinic"}
    for _ in range(2):  # what was written into the file outlives another start
        subprocess.run(["sh", "deploy/make-secrets.sh"], cwd=tmp_path, check=True, capture_output=True)
        file = tmp_path / "deploy/medichat.env"
        assert file.stat().st_mode & 0o077 == 0
        assert "MEDICHAT_MODEL=medgemma-4b" in file.read_text().splitlines()
        with file.open("a") as opened:
            opened.writelines(f"{name}={value}\n" for name, value in chosen.items())
    done = subprocess.run(
        [compose, "-f", "docker-compose.yml", "config"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    told = {name for name in OURS if chosen.items() <= environment(services[name]).items()}
    assert told == {"init", "api", "worker_infer", "worker_train"}


def test_a_bucket_is_within_reach_of_all_who_need_the_storage() -> None:
    """The proxy is not in the gateway's way out, or it would come from an address that is not believed."""
    networks = {name: set(service["networks"]) for name, service in COMPOSE["services"].items()}
    inside = {name for name, network in COMPOSE["networks"].items() if (network or {}).get("internal")}
    for name in ("api", "worker_infer", "worker_train"):
        assert networks[name] - inside
    assert networks["api"] & networks["proxy"] == {"back"}


def test_the_readmes_way_back_in_works_in_a_container() -> None:
    (command,) = re.findall(r"`docker compose run --rm (.+?)`", README)
    name, program, *arguments = command.split()
    service = COMPOSE["services"][name]
    assert (program, arguments[0]) == ("medichat", "user")
    cli.build_parser().parse_args(arguments)
    assert "MEDICHAT_DATABASE_OWNER_URL" in environment(service)
    assert "medichat_database_owner_password" in service["secrets"]
    stage = re.split(rf"^FROM \S+ AS {service['build']['target']}$", DOCKERFILE, flags=re.MULTILINE)[1]
    assert "ENTRYPOINT" not in stage.split("FROM")[0]


@pytest.mark.parametrize("file", ["docker-compose.yml", "deploy/Dockerfile", "Procfile"])
def test_every_setting_named_in_a_deployed_file_exists(file: str) -> None:
    named = set(re.findall(r"\bMEDICHAT_[A-Z_]+\b", (ROOT / file).read_text()))
    known = {f"MEDICHAT_{field.upper()}" for field in Settings.model_fields} | NOT_SETTINGS
    assert named <= known


def without_token() -> dict[str, str]:
    """The environment of whoever runs the tests, without what they tell the hub."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HF_")}


def test_every_secret_named_in_the_compose_file_is_a_setting_and_is_made(tmp_path: Path) -> None:
    settings = {f"medichat_{field}" for field in Settings.model_fields}
    shutil.copy(ROOT / "deploy/make-secrets.sh", tmp_path)
    subprocess.run(["sh", tmp_path / "make-secrets.sh"], check=True, capture_output=True)
    made = {file.name: file.stat().st_size for file in (tmp_path / "secrets").iterdir()}
    secrets = set(COMPOSE["secrets"])
    assert secrets == set(made)
    assert {name for name, size in made.items() if size == 0} == {"medichat_hf_token"}
    # read by the postgres image itself, and by the hub's library
    assert secrets - settings == {"medichat_postgres_password", "medichat_hf_token"}


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_no_secret_is_handed_to_a_service_in_its_environment(name: str) -> None:
    given = environment(COMPOSE["services"][name])
    assert [each for each in given if each.endswith(("TOKEN", "PASSWORD", "KEY", "SECRET"))] == []


@pytest.mark.parametrize("name", ["worker_infer", "worker_train"])
@pytest.mark.parametrize(("written", "read"), [("hf_abc\n", "hf_abc"), ("", "None")])
def test_the_hubs_library_reads_its_token_from_the_secret(
    name: str, written: str, read: str, tmp_path: Path
) -> None:
    service, token = COMPOSE["services"][name], "medichat_hf_token"
    assert token in service["secrets"]
    (tmp_path / token).write_text(written)
    given = {
        key: value.replace("/run/secrets", str(tmp_path))
        for key, value in environment(service).items()
        if value == f"/run/secrets/{token}"
    }
    program = "import huggingface_hub; print(huggingface_hub.get_token())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**without_token(), **given, "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == read


@pytest.mark.parametrize("name", OURS)
def test_every_command_in_the_compose_file_exists(name: str) -> None:
    service = COMPOSE["services"][name]
    target = service["build"]["target"]
    stage = re.split(rf"^FROM \S+ AS {target}$", DOCKERFILE, flags=re.MULTILINE)[1].split("FROM")[0]
    if target == "proxy":  # runs what its base image runs
        assert "CMD" not in stage
        assert "command" not in service
        return
    command = service.get("command") or json.loads(re.search(r"^CMD (.+)$", stage, re.MULTILINE)[1])  # type: ignore[index]
    if command[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(f"{command[2]}.__main__")
    else:
        assert command[0] == "medichat"
        cli.build_parser().parse_args(command[1:])


@pytest.mark.parametrize("command", local.procfile_commands().values())
def test_every_module_in_the_procfile_exists(command: str) -> None:
    words = shlex.split(command.replace("$KEEP ", "").replace("$", ""))
    module = words[words.index("-m") + 1]
    found = importlib.util.find_spec(module)
    assert found
    if found.submodule_search_locations:  # a package runs by its `__main__`
        assert importlib.util.find_spec(f"{module}.__main__")


def test_only_the_proxy_is_published() -> None:
    assert [name for name, service in COMPOSE["services"].items() if "ports" in service] == ["proxy"]


def test_redis_keeps_what_it_was_given_and_asks_for_the_password() -> None:
    redis = COMPOSE["services"]["redis"]
    command = redis["command"][-1]
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert "--dir /data" in command
    assert "redis:/data" in redis["volumes"]
    assert re.search(r"requirepass .*\$\$\(cat /run/secrets/medichat_redis_password\).* > (\S+) ", command)
    assert redis["secrets"] == ["medichat_redis_password"]


@pytest.mark.parametrize(("name", "count"), [("worker_infer", 1), ("worker_train", "all")])
def test_a_worker_is_given_a_gpu_and_a_run_of_several_processes_all_of_them(name: str, count: object) -> None:
    (device,) = COMPOSE["services"][name]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": count, "capabilities": ["gpu"]}


def test_the_proxy_speaks_tls_and_sends_whoever_comes_without_to_it() -> None:
    """Caddy does both by itself for a site that names no scheme and no port, unless it is told not to."""
    rules = (ROOT / "deploy/proxy/Caddyfile").read_text()
    assert re.findall(r"^(\S+) \{$", rules, re.MULTILINE) == ["{$MEDICHAT_HOST:localhost}"]
    assert not re.search(r"^\s*(auto_https|tls|bind)\b|http://", rules, re.MULTILINE)
    proxy = COMPOSE["services"]["proxy"]
    assert set(proxy["ports"]) == {"80:80", "443:443"}
    assert environment(proxy)["MEDICHAT_HOST"] == "${MEDICHAT_HOST:-localhost}"
    for name in ("init", "api", "worker_infer", "worker_train"):
        given = environment(COMPOSE["services"][name])
        assert given["MEDICHAT_PUBLIC_API_URL"].startswith("https://")
        assert given["MEDICHAT_SECURE_COOKIES"] == "true"


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_runs_with_little_power(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert name == "init" or "healthcheck" in service


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_no_service_runs_as_root(name: str) -> None:
    service = COMPOSE["services"][name]
    user = service.get("user")
    if user is None:
        target = service["build"]["target"]
        stage = re.split(rf"^FROM \S+ AS {target}$", DOCKERFILE, flags=re.MULTILINE)[1].split("FROM")[0]
        user = re.findall(r"^USER (\S+)$", stage, flags=re.MULTILINE)[-1]
    assert user.split(":")[0] not in ("root", "0")
    assert "cap_add" not in service


@pytest.mark.parametrize("name", OURS)
def test_every_volume_of_a_service_belongs_to_its_user(name: str) -> None:
    """A new volume is root's, but where the image has a folder of another's at its place."""
    stages = {stage.split()[2]: stage for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]}
    given = {"/data", "/config"} if "chown -R caddy /data /config" in stages["proxy"] else set()
    (home,) = re.findall(r"--home-dir (\S+) --create-home", stages["base"])
    made = {home}.union(
        *map(str.split, re.findall(r"install -d -o medichat -g medichat (.+)", stages["base"]))
    )
    service = COMPOSE["services"][name]
    volumes = (each.split(":") for each in service.get("volumes", []))
    places = {place for source, place, *_ in volumes if source in COMPOSE["volumes"]}
    assert places <= (given if service["build"]["target"] == "proxy" else made)


def test_the_gateway_believes_the_network_of_the_proxy() -> None:
    (config,) = COMPOSE["networks"]["back"]["ipam"]["config"]
    assert environment(COMPOSE["services"]["api"])["MEDICHAT_TRUSTED_PROXIES"] == config["subnet"]
    assert "back" in COMPOSE["services"]["proxy"]["networks"]


def test_the_proxy_hands_out_nothing_that_is_meant_for_the_inside() -> None:
    """Caddy takes the first `handle` that matches; a `respond` beside them would never be reached."""
    rules = (ROOT / "deploy/proxy/Caddyfile").read_text()
    (inside,) = re.findall(r"@inside path (.+)", rules)
    assert {"/metrics", "/readyz", "/_stcore/metrics"} <= set(inside.split())
    assert re.findall(r"^\thandle(?: (@\w+))? \{", rules, re.MULTILINE) == ["@inside", "@gateway", ""]
    assert re.search(r"handle @inside \{\s+respond 404\s+\}", rules)
    (gateway,) = re.findall(r"@gateway path (.+)", rules)
    served = {context.path for context in iter_route_contexts(create_app(Settings()).routes)}
    assert {path for path in gateway.split() if "*" not in path} <= served


def test_the_proxy_logs_no_word_of_a_search() -> None:
    """An error of a request is logged with its address; only what is set for all logs is set for errors."""
    rules = (ROOT / "deploy/proxy/Caddyfile").read_text()
    ((pattern, shown),) = re.findall(
        r"^\{\s+log \{\s+format filter \{\s+wrap json\s+fields \{\s+request>uri regexp (\S+) (\S+)\n",
        rules,
        re.MULTILINE,
    )
    logged = re.sub(pattern, shown, "/v1/conversations?search=hiv+test&limit=30")
    assert logged == "/v1/conversations?REDACTED"
    assert re.findall(r"^\s*log\b", rules, re.MULTILINE) == ["\tlog"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Requirement]]:
    """All that the install lines would install together, and what each package of it requires.

    The package index is asked once, and nothing is installed. An image gets its part of these, for
    constraints.txt settles the versions.
    """
    report = tmp_path_factory.mktemp("pip") / "report.json"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    done = subprocess.run(
        [*pip, "--report", str(report), "-c", "constraints.txt", f".[{','.join(targets().values())}]"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = (item["metadata"] for item in json.loads(report.read_text())["install"])
    return {
        canonicalize_name(each["name"]): [Requirement(line) for line in each.get("requires_dist", ())]
        for each in found
    }


def brought_along(wanted: Requirement, packages: dict[str, list[Requirement]]) -> set[str]:
    """The names of all packages that one requirement installs."""
    seen: set[tuple[str, str]] = set()
    following = [wanted]
    while following:
        requirement = following.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                following += [
                    each
                    for each in packages[name]
                    if each.marker is None or each.marker.evaluate({"extra": extra})
                ]
    return {name for name, _ in seen}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", targets())
def test_each_image_installs_what_it_runs(target: str, packages: dict[str, list[Requirement]]) -> None:
    names = brought_along(Requirement(f"medichat[{targets()[target]}]"), packages)
    assert ("torch" in names) == target.startswith("worker")
    needed = {"api": "fastapi", "ui": "streamlit", "worker_infer": "transformers", "worker_train": "trl"}
    assert needed[target] in names


def test_every_metric_named_in_an_alert_is_exported() -> None:
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    named = {name for rule in rules for name in re.findall(r"medichat_\w+", rule["expr"])}
    assert "medichat_break_glass_unacknowledged" in named
    metrics = list(REGISTRY.collect())
    exported = {sample.name for metric in metrics for sample in metric.samples}
    exported |= {
        metric.name for metric in metrics if metric.type == "gauge"
    }  # one with labels has no sample yet
    assert named <= exported


DOCKER = """#!/bin/sh
case "$*" in
  *"$REFUSED"*) exit $STATUS;;
  *--print) echo with a new version;;
  *drop-old) echo without the old version;;
esac
"""


@pytest.mark.parametrize("status", [0, 1])
@pytest.mark.parametrize(
    ("refused", "left", "before"),
    [
        ("--print", "the only key", None),
        ("drop-old", "with a new version\n", "the only key"),
        ("nothing", "without the old version\n", "with a new version\n"),
    ],
)
def test_the_recipe_of_a_rotation_never_writes_nothing_over_the_keyring(
    refused: str, left: str, before: str | None, status: int, tmp_path: Path
) -> None:
    page = (ROOT / "docs/operations.md").read_text()
    (recipe,) = [part for part in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "keys rotate" in part]
    if refused == "--print":  # the second half is another day's
        recipe = recipe.partition("# ten minutes later")[0]
    for name, program in {"docker": DOCKER, "sleep": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(program)
        (tmp_path / name).chmod(0o755)
    key = tmp_path / "deploy/secrets/medichat_master_key"
    key.parent.mkdir(parents=True)
    key.write_text("the only key")
    inode = key.stat().st_ino
    path = f"{tmp_path}:{os.environ['PATH']}"
    env = {"PATH": path, "REFUSED": refused, "STATUS": str(status)}
    subprocess.run(["sh", "-c", recipe], cwd=tmp_path, env=env, check=False, timeout=20)
    assert (key.read_text(), key.stat().st_ino) == (left, inode)
    kept = key.with_name(f"{key.name}.before")
    assert (kept.read_text() if kept.exists() else None) == before
