"""A keyring is read as it was written; what is none is refused, with the way out."""

import base64
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from shared.privacy.envelope import CannotDecrypt, DataKey, Envelope, new_master_key
from shared.privacy.keyring import Keyring
from shared.privacy.master_keys import find_source, is_kept_here, open_envelope
from shared.settings import Settings

PLAIN = base64.b64encode(bytes(range(32))).decode()  # the same in every process: it is in names of tests


def rotated() -> Keyring:
    return Keyring.parse(PLAIN).with_new()


def test_one_key_in_base64_is_version_1() -> None:
    assert Keyring.parse(f"{PLAIN}\n").keys == {1: base64.b64decode(PLAIN)}


def test_a_keyring_comes_back_as_it_was() -> None:
    assert Keyring.parse(rotated().text()).text().splitlines()[0] == f"1:{PLAIN}"
    ring = rotated()
    assert Keyring.parse(ring.text()) == ring
    assert Keyring.parse(ring.text().replace("\n", " ")) == ring, "some can set one line only"


def test_fingerprints_stay_when_the_master_key_changes_and_the_old_one_is_dropped() -> None:
    ring = rotated()
    texts = (PLAIN, ring.text(), ring.only_newest().text(), ring.only_newest().with_new().text())
    assert len({Envelope.from_base64(text).fingerprint("a") for text in texts}) == 1
    assert Keyring.parse(texts[2]).newest == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1:",
        f"one:{PLAIN}",
        f"0:{PLAIN}",
        f"1:{PLAIN} 1:{PLAIN}",
        f"fingerprint:{PLAIN}",
        f"{PLAIN} {PLAIN}",
        f"1:{PLAIN} fingerprint:c2hvcnQ=",
        f"1:{PLAIN} fingerprint:{PLAIN} fingerprint:{PLAIN}",
        "1:not base64!",
    ],
)
def test_what_is_no_keyring_is_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(ValueError, match="master key") as refused:
        Keyring.parse(text)
    assert "put it back from your copy" in str(refused.value)
    assert PLAIN not in str(refused.value)


def test_no_key_is_in_a_repr() -> None:
    assert repr(rotated()) == "Keyring([1, 2])"


def command(tmp_path: Path, program: str, **more: object) -> Settings:
    line = f"{sys.executable} -c {program!r}"
    return Settings(state_dir=tmp_path, master_key_command=line, **more)  # type: ignore[arg-type]


def test_a_key_service_is_asked_by_a_command_without_a_shell(tmp_path: Path) -> None:
    settings = command(tmp_path, f"print('1:{PLAIN}'); print('2:{PLAIN}')", master_key=new_master_key())
    assert open_envelope(settings).version == 2
    assert PLAIN not in repr(settings)
    with pytest.raises(ValueError, match="status 1"):
        open_envelope(Settings(state_dir=tmp_path, master_key_command=SecretStr(f"cat $HOME/x {tmp_path}")))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/no/such/program --key topsecret", "cannot be run: write the full path"),
        ("cat 'topsecret", "cannot be run: write the full path"),
        ("false topsecret", "ended with status 1: run it by hand"),
        ("true topsecret", "printed nothing: run it by hand"),
        ("echo topsecret", "the master key"),
    ],
)
def test_a_command_that_gives_no_key_is_named_and_never_shown(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        open_envelope(Settings(state_dir=tmp_path, master_key_command=SecretStr(line)))
    assert "topsecret" not in str(refused.value)


def test_a_command_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.privacy.master_keys._COMMAND_S", 0.2)
    with pytest.raises(ValueError, match="run it by hand"):
        open_envelope(Settings(state_dir=tmp_path, master_key_command=SecretStr("sleep 60")))


def test_the_environment_comes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_kept_here(Settings(state_dir=tmp_path))
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/medichat_master_key").write_text(PLAIN)
    assert find_source(Settings(state_dir=tmp_path)).read().newest == 1
    monkeypatch.setenv("MEDICHAT_MASTER_KEY", rotated().text())
    assert find_source(Settings(state_dir=tmp_path)).read().newest == 2


def test_a_version_that_is_not_known_is_looked_for_once(caplog: pytest.LogCaptureFixture) -> None:
    looked: list[Keyring] = []
    ring = rotated()

    def look() -> Keyring:
        looked.append(ring)
        return ring

    old, new = Envelope.from_base64(PLAIN), Envelope(ring)
    _, wrapped, version = new.new_data_key("k")
    old = Envelope.from_base64(PLAIN)
    following = Envelope(Keyring.parse(PLAIN), look=look)
    assert version == 2
    with pytest.raises(CannotDecrypt, match="version 2 is not configured"):
        old.unwrap("k", wrapped, 2)
    assert isinstance(following.unwrap("k", wrapped, 2), DataKey)
    assert following.version == 2, "new data keys are under the newest version from now on"
    for _ in range(3):
        with pytest.raises(CannotDecrypt):
            following.unwrap("k", wrapped, 9)
    assert len(looked) == 2, "one look for each version"
    assert caplog.text == ""


def test_a_keyring_that_is_being_written_leaves_the_one_at_hand(caplog: pytest.LogCaptureFixture) -> None:
    envelope = Envelope(Keyring.parse(PLAIN), look=lambda: Keyring.parse("1:"))
    envelope.look_again()
    assert envelope.version == 1
    assert "the keyring cannot be read again" in caplog.text


@pytest.mark.parametrize("changed", ["version 1", "the fingerprint key"])
def test_a_running_process_refuses_a_keyring_with_another_key_under_a_known_name(
    changed: str, caplog: pytest.LogCaptureFixture
) -> None:
    ring, other = rotated(), Keyring.parse(new_master_key()).with_new()
    kept = ring.fingerprint_key if changed == "version 1" else other.fingerprint_key
    keys = {**ring.keys, 1: other.keys[1], 3: other.keys[2]} if changed == "version 1" else ring.keys
    envelope = Envelope(ring, look=lambda: Keyring.of(keys, kept))
    _, wrapped, version = Envelope(ring).new_data_key("k")
    envelope.look_again()
    assert (envelope.version, version) == (2, 2)
    assert envelope.fingerprint("a") == Envelope(ring).fingerprint("a")
    assert isinstance(envelope.unwrap("k", wrapped, version), DataKey)
    (said,) = caplog.records
    assert (said.levelname, changed in said.getMessage()) == ("ERROR", True)
    assert all(base64.b64encode(key).decode() not in caplog.text for key in keys.values())


def test_a_running_process_takes_up_a_keyring_that_was_rotated_or_lacks_the_old_version(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ring = rotated()
    rings = iter([ring, ring.only_newest(), ring.only_newest().with_new()])
    envelope = Envelope(Keyring.parse(PLAIN), look=lambda: next(rings))
    versions = []
    for _ in range(3):
        envelope.look_again()
        versions.append(envelope.version)
    assert (versions, caplog.text) == ([2, 2, 3], "")
