"""What auditors do with the sealed log: by HTTP, on the page and at a terminal."""

import base64
import json
import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import select, update

from services import cli
from services.api import sealing
from services.api.sealing import Sealing
from services.api.signing import Signing
from shared.audit import checkpoints
from shared.audit.check_proof import check
from shared.audit.checkpoint import Signer, Verifier
from shared.audit.independence import dependence, is_network
from shared.audit.sequencer import seal_all
from shared.auth.roles import Role
from shared.db.tables import leases, messages
from shared.db.tables_audit import audit_checkpoints, audit_pending
from shared.settings import Settings
from tests.conftest import MakeApi
from tests.pages import button, open_with, served_by, texts
from tests.support import Api, ask_async, wait_until

PAST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def dialect() -> str:
    """What differs between the databases is in test_sealed_log.py."""
    return "sqlite"


@pytest.fixture
def auditor(api: Api) -> httpx.Client:
    return api.log_in(Role.AUDITOR)


@pytest.fixture
def conversation(api: Api) -> str:
    job = ask_async(api.log_in())
    api.answer("Asthma narrows the airways.")
    return str(job["conversation_id"])


def report(client: httpx.Client) -> dict[str, Any]:
    answer = client.post("/v1/audit/verify")
    assert answer.status_code == 200, answer.text
    *progress, last = map(json.loads, answer.text.splitlines())
    assert all({"checked", "of"} == set(each) for each in progress)
    return dict(last)


def files(api: Api) -> list[str]:
    place = Path(api.settings.checkpoint_url, "signed")
    return [str(path.relative_to(place)) for path in sorted(place.rglob("*.txt"))]


def waiting(api: Api) -> int:
    return api.count(audit_pending)


def put_kept(api: Api, name: str, data: str | bytes) -> None:
    """A file that somebody puts among the checkpoints of the second place."""
    path = Path(api.settings.checkpoint_url, "signed", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def alter(api: Api) -> None:
    """Change a stored text behind the log."""
    with api.gateway.database.write() as connection:
        connection.execute(update(messages).values(ciphertext=b"another"))


def edit(api: Api, statement: str) -> None:
    """What somebody does with the file of the database."""
    file = str(api.gateway.database.writer.url.database)
    with closing(sqlite3.connect(file, timeout=10)) as connection:
        found = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND sql LIKE '%RAISE%'"
        )
        for (name,) in found.fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement)
        connection.commit()


def value(api: Api, metric: str) -> float:
    lines = api.client().get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{metric} "))


def lag_of(api: Api) -> float:
    return value(api, "medichat_audit_seal_lag_seconds")


def test_the_state_says_what_is_sealed_and_signed(api: Api, auditor: httpx.Client, conversation: str) -> None:
    before = auditor.get("/v1/audit/state").json()
    assert (before["size"], before["root"], before["checkpoints"]) == (0, None, [])
    assert before["waiting"] > 0
    made = auditor.post("/v1/audit/checkpoints").json()
    after = auditor.get("/v1/audit/state").json()
    assert (after["size"], after["waiting"], after["root"]) == (made["size"], 0, made["root"])
    assert made.pop("kept") is True
    assert after["checkpoints"] == [made]
    assert api.audit()[-1].action == "checkpoint.asked", "that it was asked for is the last thing signed"
    note = auditor.get(f"/v1/audit/checkpoints/{made['id']}").text
    assert Verifier.from_text(after["key"]).read(note).size == len(api.audit())


@pytest.mark.parametrize(
    ("database", "place", "independent"),
    [
        ("postgresql+psycopg://medichat@db/medichat", "/var/lib/medichat/checkpoints", False),
        ("postgresql+psycopg://medichat@127.0.0.1/medichat", "/mnt/checkpoints", False),
        ("postgresql+psycopg://medichat@db.clinic.example/medichat", "/mnt/checkpoints", True),
        ("postgresql+psycopg://medichat@db/medichat", "s3://elsewhere/checkpoints", True),
        ("sqlite:////tmp/medichat.db", "/dev/shm", False),
        ("sqlite:////tmp/medichat.db", "local:///dev/shm", False),
        ("sqlite:////tmp/medichat.db", "s3://elsewhere/checkpoints", True),
    ],
)
def test_checkpoints_are_independent_only_where_they_surely_are(
    database: str, place: str, independent: bool
) -> None:
    settings = Settings(database_url=database, checkpoint_url=place)
    assert (dependence(settings) is None) is independent


#: Of this machine, as others reach it where there are others.
OWN_ADDRESS = max(
    (
        address.address
        for all_of_one in psutil.net_if_addrs().values()
        for address in all_of_one
        if address.family == socket.AF_INET
    ),
    key=lambda address: not address.startswith("127."),
)
CLINICS = "postgresql+psycopg://medichat@db.clinic.example/medichat"


@pytest.mark.parametrize(
    ("database", "endpoint", "independent"),
    [
        ("sqlite:////tmp/medichat.db", "http://127.0.0.1:9000", False),
        ("sqlite:////tmp/medichat.db", "http://[::1]:9000", False),
        ("sqlite:////tmp/medichat.db", "http://LOCALHOST.:9000", False),
        ("sqlite:////tmp/medichat.db", f"http://{socket.gethostname()}.clinic.example", False),
        ("sqlite:////tmp/medichat.db", f"http://{OWN_ADDRESS}:9000", False),
        ("sqlite:////tmp/medichat.db", "https://store.clinic.example", True),
        (CLINICS, "http://minio:9000", False),
        (CLINICS, "https://db.clinic.example:9000", False),
        (CLINICS, "https://store.clinic.example", True),
        ("postgresql+psycopg://medichat@db/medichat", "https://db.clinic.example:9000", False),
        ("postgresql+psycopg://medichat@10.0.0.5/medichat", "http://10.0.0.5:9000", False),
        ("postgresql+psycopg://medichat@10.0.0.5/medichat", "http://10.0.0.50:9000", True),
    ],
)
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_a_bucket_is_not_independent_where_its_server_may_be_the_machine_of_the_database(
    monkeypatch: pytest.MonkeyPatch, name: str, database: str, endpoint: str, independent: bool
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://another.example")
    monkeypatch.setenv(name, endpoint)
    why = dependence(Settings(database_url=database, checkpoint_url="s3://a-bucket/checkpoints"))
    assert (why is None) is independent
    assert independent or "machine of the database" in str(why)


MOUNTS = r"""
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
25 24 0:23 / /backup rw shared:7 - ext4 /dev/sdb rw
26 27 0:50 / /backup/far\040away rw,relatime shared:9 master:1 - nfs4 store:/export rw
28 27 0:51 / /bucket rw - fuse.s3fs s3fs rw
29 27 0:52 / /covered rw - nfs4 store:/export rw
30 29 0:53 / /covered rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("folder", "there"),
    [
        ("/backup/checkpoints", False),
        ("/backup/far away/checkpoints", True),
        ("/backup/far", False),
        ("/bucket", True),
        ("/covered/x", False),
        ("/elsewhere", False),
    ],
)
def test_only_a_network_mount_is_another_machine(folder: str, there: bool) -> None:
    assert is_network(Path(folder), MOUNTS) is there
    assert not is_network(Path(folder), "")


def test_checkpoints_on_the_disk_of_the_database_are_not_independent(api: Api, auditor: httpx.Client) -> None:
    assert "disk of the database" in auditor.get("/v1/audit/state").json()["not_independent"]


def test_a_checkpoint_is_kept_in_the_second_place_with_the_key_it_is_checked_with(
    api: Api, auditor: httpx.Client
) -> None:
    made = auditor.post("/v1/audit/checkpoints").json()
    (name,) = files(api)
    assert name == f"00000000/checkpoint-{made['size']:012d}-{made['id']}.txt"
    place = Path(api.settings.checkpoint_url)
    assert (place / "signed" / name).read_text() == made["note"]
    assert Verifier.from_text((place / "log-key.txt").read_text()).read(made["note"]).size == made["size"]


def test_the_log_is_verified_and_that_is_logged(api: Api, auditor: httpx.Client, conversation: str) -> None:
    auditor.post("/v1/audit/checkpoints")
    found = report(auditor)
    assert (found["holds"], found["checkpoints"], found["waiting"]) == (True, 2, 1)  # both places
    assert len(api.audit("log.verified")) == 1
    assert api.audit("log.found_whole")


def test_a_change_behind_the_log_is_named(api: Api, auditor: httpx.Client, conversation: str) -> None:
    auditor.post("/v1/audit/checkpoints")
    alter(api)
    found = report(auditor)
    assert not found["holds"]
    assert {"was changed" in each["what"] for each in found["findings"]} == {True}
    (event,) = api.audit("log.found_altered")
    assert event.outcome == "failed"
    assert value(api, "medichat_log_found_altered") == 1


def test_an_altered_log_is_told_by_a_metric_until_it_is_found_whole(
    api: Api, auditor: httpx.Client, conversation: str
) -> None:
    with api.gateway.database.read() as connection:
        texts_before = connection.execute(select(messages.c.id, messages.c.ciphertext)).all()
    auditor.post("/v1/audit/checkpoints")
    alter(api)
    report(auditor)
    assert auditor.post("/v1/audit/checkpoints").status_code == 201, "the tree is what was signed"
    assert value(api, "medichat_log_found_altered") == 1
    for message in texts_before:
        api.set(messages, messages.c.id == message.id, ciphertext=message.ciphertext)
    assert report(auditor)["holds"]
    assert not value(api, "medichat_log_found_altered")


def test_a_verification_that_cannot_be_ended_is_a_failure_and_a_metric(
    api: Api, auditor: httpx.Client
) -> None:
    unreadable = Path(api.settings.checkpoint_url, "signed", "unreadable.txt")
    unreadable.parent.mkdir(parents=True)
    unreadable.symlink_to("nowhere")
    assert "could not be ended" in report(auditor)["failed"]
    (event,) = api.audit("log.verification_failed")
    assert event.outcome == "failed"
    assert value(api, "medichat_log_not_verified") == 1
    unreadable.unlink()
    assert report(auditor)["holds"]
    assert not value(api, "medichat_log_not_verified")


def test_what_was_found_is_shown_only_once_it_is_in_the_log(api: Api, auditor: httpx.Client) -> None:
    with closing(sqlite3.connect(str(api.gateway.database.writer.url.database), timeout=10)) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON audit_events WHEN NEW.action = 'log.found_whole' "
            "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )
    told = report(auditor)
    assert "could not be logged" in told["failed"]
    assert "holds" not in told


def test_a_conversation_is_proved(api: Api, auditor: httpx.Client, conversation: str) -> None:
    key = auditor.get("/v1/audit/state").json()["key"]
    proof = auditor.get(f"/v1/audit/conversations/{conversation}/proof").json()
    proved = [event["action"] for event in check(proof, key, conversation)]
    assert proved == ["question.asked", "answer.given", "proof.made"]
    assert "Asthma" not in json.dumps(proof)
    program = auditor.get("/v1/audit/check-proof.py").text
    assert program.startswith('"""Checks a proof of MediChat')


def test_a_conversation_that_is_not_there_is_not_proved(api: Api, auditor: httpx.Client) -> None:
    for name in ("01a20ced-32e0-731b-806d-a95e481a1022", "x"):
        assert auditor.get(f"/v1/audit/conversations/{name}/proof").status_code == 404
    assert not api.audit("proof.made")


def test_a_log_that_was_altered_is_not_signed_and_a_metric_says_so(api: Api, auditor: httpx.Client) -> None:
    auditor.post("/v1/audit/checkpoints")
    put_kept(
        api, "checkpoint-900000000000-x.txt", api.gateway.signer.sign(size=999, root=bytes(32), now=PAST)
    )
    put_kept(api, "note.txt", "sorts last, and is no checkpoint")
    put_kept(api, ".DS_Store", b"\xff")
    refused = auditor.post("/v1/audit/checkpoints")
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:medichat:problem:log-altered")
    assert "medichat_log_altered 1.0" in api.client().get("/metrics").text


JUNK = "CAST(x'ff' AS TEXT)"


@pytest.mark.parametrize(
    ("change", "signed"),
    [
        ("audit_checkpoints SET signed_at = 'x'", True),
        (f"audit_checkpoints SET signed_at = {JUNK}", True),
        ("audit_checkpoints SET size = 'x'", False),
        ("audit_checkpoints SET root = 'x'", False),
        ("audit_checkpoints SET note = x'ff'", False),
        (f"audit_checkpoints SET note = {JUNK}", False),
        (f"audit_seals SET leaf_hash = {JUNK}", False),
        ("audit_seals SET sealed_at = 'x'", True),
    ],
)
def test_a_value_of_another_kind_blinds_neither_metrics_nor_state(
    api: Api, auditor: httpx.Client, change: str, signed: bool
) -> None:
    auditor.post("/v1/audit/checkpoints")
    edit(api, f"UPDATE {change}")
    assert auditor.post("/v1/audit/checkpoints").status_code == (201 if signed else 409)
    metrics = api.client().get("/metrics")
    assert metrics.status_code == 200
    assert f"medichat_log_altered {0 if signed else 1}.0" in metrics.text
    state = auditor.get("/v1/audit/state").json()
    assert len(state["checkpoints"]) == 1 + signed
    for each in state["checkpoints"]:
        assert auditor.get(f"/v1/audit/checkpoints/{each['id']}").text == each["note"]


def test_an_event_with_a_moment_that_is_none_waits_longest_of_all(api: Api) -> None:
    edit(
        api,
        "INSERT INTO audit_events (id, occurred_at, actor, action, outcome, canonical_bytes, schema_version) "
        f"VALUES ('e', {JUNK}, 'a', 'x', 'done', {JUNK}, 1)",
    )
    assert lag_of(api) > 1e9
    seal_all(api.gateway.database, api.gateway.clock)
    assert lag_of(api) == 0


def test_a_log_that_was_never_signed_is_as_old_as_its_first_entry(api: Api) -> None:
    ask_async(api.log_in())
    assert value(api, "medichat_checkpoint_age_seconds") == 0, "nothing is sealed"
    seal_all(api.gateway.database, api.gateway.clock)
    edit(api, "UPDATE audit_seals SET sealed_at = '2026-01-01 00:00:00.000000'")
    assert value(api, "medichat_checkpoint_age_seconds") > 1e6


def test_a_second_place_that_cannot_be_written_is_a_metric_and_no_error(
    api: Api, auditor: httpx.Client
) -> None:
    place = Path(api.settings.checkpoint_url)
    place.mkdir()
    (place / "signed").write_text("a file where the folder should be")
    made = auditor.post("/v1/audit/checkpoints")
    assert (made.status_code, made.json()["kept"]) == (201, False)
    assert "medichat_checkpoint_failed 1.0" in api.client().get("/metrics").text
    (place / "signed").unlink()
    Signing(api.gateway, "any").round()
    assert "medichat_checkpoint_failed 0.0" in api.client().get("/metrics").text
    assert len(files(api)) == 1, "what was signed gets there, though the log has not grown"


def test_a_second_place_that_cannot_be_read_is_a_metric_and_no_error(api: Api, auditor: httpx.Client) -> None:
    auditor.post("/v1/audit/checkpoints")
    broken = Path(api.settings.checkpoint_url, "signed", "00000001")
    broken.symlink_to(broken)
    assert auditor.post("/v1/audit/checkpoints").status_code == 201
    assert value(api, "medichat_checkpoint_unread") == 1
    broken.unlink()
    Signing(api.gateway, "any").round()
    assert value(api, "medichat_checkpoint_unread") == 0


def test_a_file_under_a_checkpoints_name_hides_no_checkpoint(api: Api, auditor: httpx.Client) -> None:
    lost = api.gateway.signer.sign(size=999, root=bytes(32), now=PAST)
    put_kept(api, "00000000/checkpoint-000000000999-x.txt", lost)
    put_kept(api, "00000001/checkpoint-000000010000-x.txt", b"\xff")
    assert auditor.post("/v1/audit/checkpoints").status_code == 409
    assert value(api, "medichat_checkpoint_unread") == 1


def test_a_file_that_is_no_text_is_found_by_a_verification(api: Api, auditor: httpx.Client) -> None:
    auditor.post("/v1/audit/checkpoints")
    put_kept(api, ".DS_Store", b"\x00\xff")
    (finding,) = report(auditor)["findings"]
    assert finding["what"].startswith("signed/.DS_Store cannot be used")


def test_a_second_place_that_is_silent_does_not_stop_the_sealing(make_api: MakeApi) -> None:
    api = make_api(seal_s=0.01, checkpoint_s=0.05)
    folder = Path(api.settings.checkpoint_url, "signed", "00000009")
    folder.mkdir(parents=True)
    silent = folder / "checkpoint-000000099999-x.txt"
    os.mkfifo(silent)

    def let_go() -> bool:
        with suppress(OSError):  # nobody reads it
            os.close(os.open(silent, os.O_WRONLY | os.O_NONBLOCK))
            return True
        return False

    def signed_meanwhile() -> int:
        let_go()
        return api.count(audit_checkpoints)

    wait_until(let_go, 10, "for somebody who reads the newest checkpoint")  # and does so soon again
    ask_async(api.log_in())
    wait_until(lambda: not waiting(api), 10, "for the log to be sealed")
    assert not value(api, "medichat_audit_seal_lag_seconds")
    wait_until(let_go, 10, "for who still waits for it")
    silent.rename(folder / "note")
    silent = folder / "note"
    wait_until(signed_meanwhile, 10, "for a checkpoint, when it is silent no more")


KILLED = """
import os
from services import cli
from shared.audit import checkpoints
checkpoints.publish = lambda *_: os.kill(os.getpid(), 9)
cli.main(["audit", "checkpoint"])
"""


@pytest.mark.usefixtures("machine")
def test_what_was_signed_by_who_is_killed_then_gets_to_the_second_place(api: Api) -> None:
    ask_async(api.log_in())
    assert subprocess.run([sys.executable, "-c", KILLED], check=False).returncode == -9
    assert api.count(audit_checkpoints) == 1
    assert not files(api)
    Signing(api.gateway, "any").round()
    assert api.count(audit_checkpoints) == 1, "nothing has grown"
    (name,) = files(api)
    with api.gateway.database.read() as connection:
        (signed,) = checkpoints.stored(connection)
    assert name == f"00000000/checkpoint-{signed.size:012d}-{signed.id}.txt"


def test_the_lag_is_a_metric(api: Api) -> None:
    ask_async(api.log_in())
    told = api.client().get("/metrics").text
    assert f"medichat_audit_waiting {len(api.audit())}.0" in told
    assert lag_of(api) > 0
    seal_all(api.gateway.database, api.gateway.clock)
    told = api.client().get("/metrics").text
    assert "medichat_audit_seal_lag_seconds 0.0" in told
    assert f"medichat_audit_entries {len(api.audit())}.0" in told


def test_the_gateway_seals_and_signs_by_itself(make_api: MakeApi) -> None:
    api = make_api(seal_s=0.01, checkpoint_s=0.05)
    ask_async(api.log_in())
    auditor = api.log_in(Role.AUDITOR)
    wait_until(lambda: auditor.get("/v1/audit/state").json()["checkpoints"], 10, "for a checkpoint")
    assert report(auditor)["holds"]


def test_another_gateway_takes_over_when_the_lease_ends(api: Api) -> None:
    ask_async(api.log_in())
    first, second = Sealing(api.gateway), Sealing(api.gateway)
    first.round()
    assert not waiting(api)
    ask_async(api.log_in())
    second.round()
    assert waiting(api), "it waits its turn"
    api.set(leases, leases.c.name == sealing.LEASE_NAME, expires_at=PAST)
    second.round()
    assert not waiting(api)


# -- at a terminal


@pytest.fixture
def machine(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the gateway's machine."""
    for name in ("state_dir", "database_url", "checkpoint_url"):
        monkeypatch.setenv(f"MEDICHAT_{name.upper()}", str(getattr(api.settings, name)))
    monkeypatch.setenv("MEDICHAT_AUDIT_KEY", api.settings.secret("audit_key"))


@pytest.mark.usefixtures("machine")
def test_an_operator_signs_verifies_and_proves(
    api: Api, conversation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["audit", "checkpoint"]) == 0
    kept = tmp_path / "kept.txt"
    kept.write_text(capsys.readouterr().out)
    proof = tmp_path / "proof.json"
    assert cli.main(["audit", "prove", conversation, str(proof)]) == 0
    assert cli.main(["audit", "key"]) == 0
    key = capsys.readouterr().out.splitlines()[-1]
    assert check(json.loads(proof.read_text()), key, conversation)
    assert cli.main(["audit", "verify", "--checkpoint", str(kept)]) == 0
    told = capsys.readouterr().out
    assert "The log is what was signed." in told
    assert "5 checkpoints agree" in told
    alter(api)
    assert cli.main(["audit", "verify"]) == 3
    told = capsys.readouterr().out
    assert "The log was ALTERED." in told
    assert told.startswith("BAD  entry ")
    assert value(api, "medichat_log_found_altered") == 1
    assert [event.actor for event in api.audit("log.found_altered")] == ["operator"]


@pytest.mark.usefixtures("machine")
def test_a_file_that_is_no_checkpoint_is_told(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("x")
    assert cli.main(["audit", "verify", "--checkpoint", str(other)]) == 1
    assert f"{other} is no checkpoint of this log" in capsys.readouterr().err
    another = Signer(base64.b64encode(bytes(32)).decode())
    other.write_text(another.sign(size=1, root=bytes(32), now=datetime.now(UTC)))
    assert cli.main(["audit", "verify", "--checkpoint", str(other)]) == 1
    assert "written anew under a key" in capsys.readouterr().err
    assert cli.main(["audit", "prove", "x", str(tmp_path / "p")]) == 1
    assert "There is no conversation under this id" in capsys.readouterr().err


# -- on the page


def test_an_auditor_verifies_the_log_on_the_page(
    api: Api, conversation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served_by(api, monkeypatch):
        token = api.browser_token(api.person(Role.AUDITOR))
        app = open_with(monkeypatch, token, page="integrity")
        assert "Not independent" in texts(app)
        assert "None is signed yet" in texts(app)
        button(app, "Verify the whole log").click().run()
        assert "agree with each other. No checkpoint is signed yet" in texts(app)
        Path(api.settings.checkpoint_url).write_text("a file where the folder should be")
        button(app, "Sign one now").click().run()
        assert "could not take the checkpoint" in texts(app)
        Path(api.settings.checkpoint_url).unlink()
        button(app, "Sign one now").click().run()
        assert "could not take the checkpoint" not in texts(app)
        assert "medichat/" in texts(app)
        button(app, "Verify the whole log").click().run()
        assert "The log is what was signed" in texts(app)
        assert f"Verified at {datetime.now(UTC):%Y-%m-%d}" in texts(app).replace("\\", "")
        alter(api)
        button(app, "Verify the whole log").click().run()
        assert "The log was altered: 2 findings. The first: entry " in texts(app).replace("\\", "")
        assert not app.exception
