"""`medichat export` takes what the serving worker would take, and writes nothing of anything else."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from sqlalchemy import select
from transformers import AutoTokenizer

from services import cli
from services.worker_train import export as merging
from services.worker_train.base import SENTENCEPIECE, Source, find_sentencepiece
from services.worker_train.child import Refused
from services.worker_train.export import MODELFILE, compare, new_folder, said
from services.worker_train.probe import probe_ids
from shared.audit.record import Actor
from shared.auth.roles import Role
from shared.catalogue import CATALOGUE
from shared.db.tables_training import adapters
from shared.storage import Storage
from shared.training.adapter_files import CARD, CONFIG, PROBE, WEIGHTS
from shared.training.adapters import AdapterStore
from shared.weights import hash_weights
from tests.evaluating import WEIGHTS as DEMO
from tests.evaluating import Registered, demo_weights, message_row, nudge, register, with_lora
from tests.support import ROOT, Api

#: peft still asks transformers by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ROWS = {"train": [message_row(1, "What helps?", "Rest.")], "validation": [message_row(2, "And?", "Sleep.")]}
Export = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of the demo model."""
    folder = tmp_path_factory.mktemp("adapter")
    model = with_lora(demo_weights())
    nudge(model)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    set_config(folder, base_model_name_or_path="demo")
    return folder


@pytest.fixture
def dialect() -> str:
    """Who may be exported is asked of one table; one database is enough."""
    return "sqlite"


@pytest.fixture
def registered(api: Api, adapter: Path) -> Registered:
    """The adapter in this installation's registry and storage."""
    gateway = api.gateway
    storage = Storage.from_settings(api.settings)
    return register(gateway.database, storage, gateway.jobs, gateway.envelope, folder=adapter, rows=ROWS)


@pytest.fixture
def export(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Export:
    """Run the command in the installation; returns its exit status and what it complained of, or told."""
    monkeypatch.setenv("MEDICHAT_STATE_DIR", str(api.settings.state_dir))
    monkeypatch.setenv("MEDICHAT_DATABASE_URL", api.settings.database_url)

    def run(named: str, *, told: bool = False) -> tuple[int, str]:
        capsys.readouterr()
        status = cli.main(["export", named, str(tmp_path / "merged"), "--dtype", "float32"])
        written = capsys.readouterr()
        return status, written.out if told else written.err

    return run


def set_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **values}))


def stored(api: Api, registered: Registered) -> Path:
    """Where the storage keeps the adapter."""
    return Path(api.settings.storage_url) / "adapters" / registered.sha256


def change_a_byte(folder: Path) -> None:
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS).write_bytes(weights)


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:30_000])


def add_a_pickle(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"x")


def add_a_pickle_below(folder: Path) -> None:
    (folder / "more").mkdir()
    add_a_pickle(folder / "more")


def name_another_revision(folder: Path) -> None:
    set_config(folder, revision="deadbeef")


def name_no_revision(folder: Path) -> None:
    set_config(folder, revision=None)
    (folder / PROBE).write_text(json.dumps({"base_revision": hash_weights(DEMO)}))


def name_another_base(folder: Path) -> None:
    set_config(folder, base_model_name_or_path="somebody/else")


def name_no_base(folder: Path) -> None:
    set_config(folder, base_model_name_or_path=None)


FAULTS = [
    (change_a_byte, "tampered with: the SHA-256"),
    (cut, "truncated"),
    (add_a_pickle, "pickled file"),
    (add_a_pickle_below, "pickled file"),
    (name_another_revision, "tampered with: adapter_config.json"),
]
#: Of an adapter that was not registered; one that was has lost the configuration that it was registered with.
OF_A_FOLDER = [
    (name_another_revision, "trained on other weights"),
    (name_no_revision, "does not name the revision"),
    (name_another_base, "not in the catalogue"),
    (name_no_base, "not in the catalogue"),
]


def test_an_adapter_of_the_installation_is_exported_by_its_name(
    export: Export, api: Api, registered: Registered, tmp_path: Path
) -> None:
    assert export(registered.sha256) == (0, "")
    (event,) = api.audit("adapter.exported")
    assert (event.actor, event.object) == ("operator", f"adapter:{registered.sha256}")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    files = list((tmp_path / "merged").iterdir())
    assert len({file.stat().st_mode for file in files}) == 1


def test_without_a_tokenizer_that_ollama_takes_there_is_no_modelfile_and_that_is_said(
    export: Export, registered: Registered, tmp_path: Path
) -> None:
    status, told = export(registered.sha256, told=True)
    assert (status, "Ollama cannot" in told) == (0, True)
    assert not (tmp_path / "merged" / MODELFILE).exists()


def test_a_tokenizer_of_the_hub_is_taken_from_the_cache_and_may_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    entry = CATALOGUE["medgemma-4b"]
    source = Source(entry=entry, folder=None)
    assert find_sentencepiece(source) is None
    snapshot = tmp_path / "models--google--medgemma-4b-it" / "snapshots" / str(entry.revision)
    snapshot.mkdir(parents=True)
    (snapshot / SENTENCEPIECE).write_bytes(b"pieces")
    assert find_sentencepiece(source) == snapshot / SENTENCEPIECE


def test_the_card_is_that_of_a_merged_model_and_keeps_where_it_came_from(
    export: Export, api: Api, registered: Registered, tmp_path: Path
) -> None:
    told = (ROOT / "docs" / "adapter-card-example.md").read_text("utf-8")
    api.set(adapters, adapters.c.sha256 == registered.sha256, card=told)
    assert export(registered.sha256[:12])[0] == 0
    card = (tmp_path / "merged" / CARD).read_text("utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["library_name"], front["base_model"]) == ("transformers", "medichat/demo")
    assert "lora" not in front["tags"]
    assert f"Merged from adapter `{registered.sha256}` onto `medichat/demo`" in card
    for kept in ("| Data |", "| Seed |", "## Metrics", "## Recipe"):
        assert kept in told
        assert kept in card
    assert card.count("| Adapter |") == 1
    assert "This model is a **modified** derivative" in card
    named = set(re.findall(r"[\w-]+\.safetensors", card))
    assert all((tmp_path / "merged" / name).exists() for name in named)


def test_a_card_that_was_forged_in_the_storage_is_not_exported(
    export: Export, api: Api, registered: Registered, tmp_path: Path
) -> None:
    told = (ROOT / "docs" / "adapter-card-example.md").read_text("utf-8")
    true = re.findall(r"[\d,]+ learnt", told)[0]
    forged = "9,999,999 learnt"
    api.set(adapters, adapters.c.sha256 == registered.sha256, card=told)
    (stored(api, registered) / CARD).write_text(told.replace(true, forged), "utf-8")
    assert export(registered.sha256)[0] == 0
    card = (tmp_path / "merged" / CARD).read_text("utf-8")
    assert (true in card, forged in card) == (True, False)


@pytest.mark.parametrize(("damage", "reason"), FAULTS)
def test_a_damaged_adapter_is_refused_in_one_line_and_nothing_is_written(
    export: Export,
    api: Api,
    registered: Registered,
    tmp_path: Path,
    damage: Callable[[Path], None],
    reason: str,
) -> None:
    damage(stored(api, registered))
    before = sorted(tmp_path.iterdir())
    status, complaint = export(registered.sha256)
    assert status == 1
    assert reason in complaint
    assert complaint.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    assert not api.audit("adapter.exported")


@pytest.mark.parametrize(("damage", "reason"), OF_A_FOLDER)
def test_a_folder_whose_base_is_not_this_one_is_refused(
    export: Export, adapter: Path, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    folder = tmp_path / "by-hand"
    shutil.copytree(adapter, folder)
    damage(folder)
    status, complaint = export(str(folder))
    assert (status, reason in complaint) == (1, True)


def test_a_folder_of_a_registered_adapter_with_another_configuration_is_refused(
    export: Export, registered: Registered, adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "by-hand"
    shutil.copytree(adapter, folder)
    set_config(folder, lora_alpha=99)
    status, complaint = export(str(folder))
    assert (status, "not the one that was registered" in complaint) == (1, True)


def test_layers_that_the_base_lacks_are_refused(
    export: Export, api: Api, registered: Registered, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(stored(api, registered) / WEIGHTS)
    folder = tmp_path / "by-hand"
    folder.mkdir()
    renamed = {name.replace("layers.0.", "layers.90."): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / WEIGHTS)
    (folder / CONFIG).write_bytes((stored(api, registered) / CONFIG).read_bytes())
    status, complaint = export(str(folder))
    assert (status, "no such layers" in complaint) == (1, True)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("installed", [True, False])
def test_a_folder_named_by_a_hash_must_hold_the_weights_of_it(
    export: Export, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    if not installed:  # such a folder needs no registry
        monkeypatch.setenv("MEDICHAT_DATABASE_URL", f"sqlite:///{tmp_path / 'none.db'}")
    folder = tmp_path / ("0" * 64)
    folder.mkdir()
    for name in (WEIGHTS, CONFIG):
        (folder / name).write_bytes((adapter / name).read_bytes())
    status, complaint = export(str(folder))
    assert (status, "tampered" in complaint) == (1, True)
    told = "the registry does not know these weights: the export is not logged"
    if not installed:
        told = "nobody looked whether these weights were recalled, and the export is not logged"
        assert f"there is no {tmp_path / 'none.db'}" in complaint
    assert told in complaint


def recall(api: Api, registered: Registered) -> None:
    with api.gateway.database.write() as connection:
        store = AdapterStore(api.gateway.clock, api.gateway.envelope)
        store.recall(connection, registered.sha256, Actor(registered.user_id), reason="Wrong doses")


@pytest.mark.parametrize("by_name", [True, False])
def test_a_recalled_adapter_is_refused_with_the_reason(
    export: Export, api: Api, registered: Registered, adapter: Path, tmp_path: Path, by_name: bool
) -> None:
    recall(api, registered)
    named = registered.sha256 if by_name else str(adapter)
    assert export(named) == (1, "medichat: this adapter was recalled: Wrong doses\n")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_that_is_recalled_while_it_is_merged_is_not_exported_of_any_folder_either(
    export: Export,
    api: Api,
    registered: Registered,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merge = merging.export

    def slowly(adapter: Path, folder: Path, *, agree: Callable[[], None], **rest: Any) -> float:
        assert adapter.parent.parent == api.settings.state_dir, "where a killed export's copy is removed"

        def at_the_end() -> None:
            recall(api, registered)
            agree()

        return merge(adapter, folder, agree=at_the_end, **rest)

    monkeypatch.setattr(merging, "export", slowly)
    before = sorted(tmp_path.iterdir())
    assert export(str(adapter)) == (1, "medichat: this adapter was recalled: Wrong doses\n")
    assert sorted(tmp_path.iterdir()) == before
    assert not api.audit("adapter.exported")


def test_what_came_to_lie_there_while_it_was_merged_is_left_and_nobody_is_asked(tmp_path: Path) -> None:
    agreed: list[bool] = []

    def merge() -> None:
        with new_folder(tmp_path / "merged", lambda: agreed.append(True)):
            (tmp_path / "merged").mkdir()

    with pytest.raises(Refused, match="exists already"):
        merge()
    assert (list(tmp_path.iterdir()), agreed) == ([tmp_path / "merged"], [])


def test_an_export_says_that_what_was_learnt_was_erased_since(
    export: Export, api: Api, registered: Registered
) -> None:
    api.log_in(Role.ADMIN).post(f"/v1/datasets/{registered.dataset_id}/erase").raise_for_status()
    change_a_byte(stored(api, registered))  # so that nothing need be merged
    assert "What it was trained on was erased since" in export(registered.sha256)[1]


def test_an_adapter_that_could_not_be_verified_is_refused(
    export: Export, api: Api, registered: Registered
) -> None:
    api.set(adapters, adapters.c.sha256 == registered.sha256, verification={"ok": False, "reason": "NaN"})
    status, complaint = export(registered.sha256)
    assert (status, "could not verify" in complaint) == (1, True)


def test_a_name_that_the_registry_lacks_is_refused(export: Export, api: Api, registered: Registered) -> None:
    other = "0" * 64
    stored(api, registered).rename(stored(api, registered).with_name(other))
    status, complaint = export(other)
    assert (status, "no adapter of this name" in complaint) == (1, True)
    status, complaint = export(registered.sha256)
    assert (status, "no files of this adapter" in complaint) == (1, True)


def test_a_beginning_that_two_adapters_share_names_none(
    export: Export, api: Api, registered: Registered
) -> None:
    beginning = registered.sha256[:6]
    with api.gateway.database.write() as connection:
        row = dict(connection.execute(select(adapters)).one()._mapping)
        other = {"sha256": beginning.ljust(64, "0"), "version": 2}
        connection.execute(adapters.insert().values({**row, **other}))
    complaint = f"medichat: 2 adapters begin with {beginning}; write more letters of one\n"
    assert export(beginning) == (1, complaint)


@pytest.mark.parametrize("named", ["runs/no-such-run/output", "0" * 12, "abcde"])
def test_what_is_no_folder_and_no_adapter_is_named_in_one_line(
    export: Export, registered: Registered, named: str
) -> None:
    complaint = f"medichat: there is no folder {named}, and no adapter of this name\n"
    assert export(named) == (1, complaint)


def test_an_export_removes_what_one_that_was_killed_left_of_its_target(
    export: Export, api: Api, registered: Registered, tmp_path: Path
) -> None:
    left = tmp_path / ".writing-merged-0123abcd"
    left.mkdir()
    (left / "model.safetensors").touch()
    change_a_byte(stored(api, registered))  # so that nothing need be merged
    assert f"medichat: removed {left}, which an export left that was killed\n" in export(registered.sha256)[1]
    assert not left.exists()


@pytest.mark.parametrize("by_name", [True, False])
def test_without_the_database_nobody_can_tell_and_it_is_refused(
    export: Export,
    registered: Registered,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_name: bool,
) -> None:
    (tmp_path / "none.db").write_text("no database")
    monkeypatch.setenv("MEDICHAT_DATABASE_URL", f"sqlite:///{tmp_path / 'none.db'}")
    status, complaint = export(registered.sha256 if by_name else str(adapter))
    assert (status, "the database cannot be read" in complaint) == (1, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_model_must_hold_what_the_adapter_changed_and_nothing_else(dtype: torch.dtype) -> None:
    texts = probe_ids(AutoTokenizer.from_pretrained(DEMO))
    adapted = with_lora(demo_weights().to(dtype)).eval()
    nudge(adapted)
    with adapted.disable_adapter():
        base = said(adapted, texts)
    before = said(adapted, texts)
    merged = adapted.merge_and_unload(safe_merge=True)
    assert compare(texts, base, before, said(merged, texts), dtype=dtype) < 0.25
    with pytest.raises(Refused, match="off by 100%"):  # as if it had been merged as nothing
        compare(texts, base, before, base, dtype=dtype)
    with torch.no_grad():
        merged.get_output_embeddings().weight[::2] += 0.01
    with pytest.raises(Refused, match="merged model") as refused:
        compare(texts, base, before, said(merged, texts), dtype=dtype)
    assert refused.value.reason == "merge-differs"
