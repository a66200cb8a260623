"""The rows of a checked dataset: read from sealed parts, and only when they are what the manifest says."""

import errno
import gzip
import hashlib
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select

from models.demo.pictures import draw_picture
from services.worker_train import hub, tuning
from services.worker_train.child import Exit, Refused
from services.worker_train.reading import open_source
from services.worker_train.rows import Origin, read_rows
from services.worker_train.shaped_rows import ShapedRows
from services.worker_train.shapes import FIRST_ROWS
from shared.db.tables import data_keys
from shared.db.tables_training import datasets
from shared.ids import new_id
from shared.privacy.envelope import DataKey, Envelope
from shared.privacy.keys import create_data_key
from shared.privacy.sealed import SealedWriter
from shared.storage import Storage, StorageAway
from shared.training.dataset_files import hash_manifest
from shared.training.recipe import Data
from tests.support import Api
from tests.tiny_training import conversation, tiny_recipe, write_model, write_rows


def seal(storage: Storage, key: DataKey, dataset_id: str, below: str, data: bytes) -> str:
    path = f"datasets/{dataset_id}/{below}"
    with storage.create(path) as file:
        writer = SealedWriter(file, key, place=f"dataset:{dataset_id}:{below}")
        writer.write(data)
        writer.close()
    return hashlib.sha256(storage.open(path).read()).hexdigest()


@pytest.fixture
def dataset_id(api: Api, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset of four rows to learn, one of them with a picture, and one held out."""
    settings = api.settings
    for name in ("database_url", "storage_url", "state_dir"):
        monkeypatch.setenv(f"MEDICHAT_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.setenv("MEDICHAT_MASTER_KEY", settings.secret("master_key"))
    person, made, storage = api.person(), new_id(), Storage.from_settings(settings)
    now = datetime.now(UTC)
    with api.gateway.database.write() as connection:
        envelope = Envelope.from_base64(settings.secret("master_key"))
        key = create_data_key(connection, envelope, scope="dataset", owner_id=made, now=now)
        picture = io.BytesIO()
        Image.fromarray(draw_picture("left", np.random.default_rng(0))).save(picture, "PNG")
        image = hashlib.sha256(picture.getvalue()).hexdigest()
        seal(storage, key, made, f"images/{image}", picture.getvalue())
        parts = []
        for split, count in (("train", 4), ("validation", 1)):
            rows = [
                {
                    "id": number,
                    "messages": conversation(number),
                    "image": image if number == 3 else None,
                    "group": "a" if number < 2 else None,
                }
                for number in range(count)
            ]
            below, data = f"v1/{split}-00000.jsonl", "\n".join(map(json.dumps, rows)).encode()
            sha256 = seal(storage, key, made, below, data)
            parts.append(
                {
                    "path": f"datasets/{made}/{below}",
                    "split": split,
                    "sha256": sha256,
                    "rows": count,
                    "bytes": len(data),
                }
            )
        manifest = {
            "parts": parts,
            "images": [{"sha256": image, "bytes": len(picture.getvalue())}],
            "raw_sha256": "0" * 64,
            "shape": "messages",
            "options": {},
        }
        connection.execute(
            datasets.insert().values(
                id=made,
                name="rows",
                state="ready",
                source="upload",
                source_name="rows.jsonl",
                options={},
                key_id=key.key_id,
                manifest=manifest,
                manifest_sha256=hash_manifest(manifest),
                created_by=person.id,
                created_at=now,
            )
        )
    return made


def test_the_rows_of_a_dataset_are_read(api: Api, dataset_id: str) -> None:
    with api.gateway.database.read() as connection:
        manifest_sha256 = connection.execute(select(datasets.c.manifest_sha256)).scalar_one()
    rows = read_rows(Data(train=f"medichat:{dataset_id}"), seed=0)
    assert [row.messages for row in rows.train] == [conversation(number) for number in range(4)]
    assert [row.unit for row in rows.train] == [b"a", b"a", b"", b""]
    assert len(rows.validation) == 1
    assert rows.origin == Origin(manifest_sha256, "SHA-256 of the dataset's manifest")
    assert rows.validation_origin is None


def test_a_picture_of_a_dataset_is_read(dataset_id: str) -> None:
    rows = read_rows(Data(train=f"medichat:{dataset_id}"), seed=0)
    assert rows.train[0].picture is None
    assert rows.train[3].picture is not None
    assert rows.train[3].picture().size == (64, 64)


def alter(api: Api, path: str) -> None:
    """Change the last byte of a stored file."""
    storage = Storage.from_settings(api.settings)
    data = storage.open(path).read()
    with storage.create(path) as file:
        file.write(data[:-1] + bytes([data[-1] ^ 1]))


def test_an_altered_part_is_refused(api: Api, dataset_id: str) -> None:
    alter(api, f"datasets/{dataset_id}/v1/train-00000.jsonl")
    with pytest.raises(Refused, match="not what was checked"):
        read_rows(Data(train=f"medichat:{dataset_id}"), seed=0)


def test_a_part_that_the_manifest_was_made_to_count_among_others_is_refused(
    api: Api, dataset_id: str
) -> None:
    with api.gateway.database.read() as connection:
        manifest = connection.execute(select(datasets.c.manifest)).scalar_one()
    parts = [{**part, "split": "train"} for part in manifest["parts"]]
    api.set(datasets, datasets.c.id == dataset_id, manifest={**manifest, "parts": parts})
    with pytest.raises(Refused, match="not what was checked") as refusal:
        read_rows(Data(train=f"medichat:{dataset_id}"), seed=0)
    assert refusal.value.reason == "data-altered"


def test_an_altered_picture_ends_the_run_at_once_with_advice(
    api: Api,
    dataset_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MEDICHAT_MODEL_PATH", str(write_model(tmp_path / "model")))
    (picture,) = Storage.from_settings(api.settings).list(f"datasets/{dataset_id}/images")
    alter(api, picture)
    recipe = tiny_recipe(tmp_path, data={"train": f"medichat:{dataset_id}"}, batch_size=4)
    assert tuning.run_and_report(recipe, tmp_path / "run") is Exit.REFUSED
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["event"], told["code"]) == ("stopped", "data-altered")
    assert "upload it again" in told["detail"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (StorageAway(errno.EIO, "the storage cannot be used"), Exit.AWAY, "storage"),
        (OSError(errno.ENOSPC, "No space left on device"), Exit.REFUSED, "disk-full"),
    ],
)
def test_a_storage_or_disk_that_fails_while_rows_are_read_is_said(
    dataset_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    status: Exit,
    code: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setenv("MEDICHAT_MODEL_PATH", str(write_model(tmp_path / "model")))
    monkeypatch.setattr(Storage, "open", fail)
    recipe = tiny_recipe(tmp_path, data={"train": f"medichat:{dataset_id}"})
    assert tuning.run_and_report(recipe, tmp_path / "run") is status
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["event"], told["code"]) == ("stopped", code)


def test_rows_that_were_erased_are_refused(api: Api, dataset_id: str) -> None:
    api.set(data_keys, data_keys.c.owner_id == dataset_id, wrapped_key=None)
    with pytest.raises(Refused, match="cannot be decrypted any more"):
        read_rows(Data(train=f"medichat:{dataset_id}"), seed=0)


def test_a_dataset_that_is_not_there_is_refused(dataset_id: str) -> None:
    with pytest.raises(Refused, match="no checked dataset"):
        read_rows(Data(train=f"medichat:{new_id()}"), seed=0)


def test_a_file_may_be_written_in_every_shape_that_a_dataset_may(tmp_path: Path) -> None:
    row = {"instruction": "Explain it.", "input": "Asthma.", "output": "The airways\u2028narrow.\x85"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    (found,) = read_rows(Data(train=str(tmp_path / "rows.jsonl")), seed=0).train
    assert [turn["content"] for turn in found.messages] == [
        "Explain it.\n\nAsthma.",
        "The airways\u2028narrow.",
    ]


NAMED = {"question": "Frage", "answer": "Antwort", "context": "Befund"}


def write_german(folder: Path) -> Path:
    """Rows whose columns say nothing by their names; the second has less than the first."""
    rows = [
        {"Frage": "Was ist Asthma?", "Antwort": "Enge.", "Befund": "Husten.", "group": "a"},
        {"Frage": "Und Gicht?", "Antwort": "Schmerz.", "group": "b"},
    ]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_columns_of_a_file_mean_what_the_recipe_says(tmp_path: Path) -> None:
    name = str(write_german(tmp_path))
    with pytest.raises(Refused, match=r"columns: Frage, Antwort.*data\.columns") as refusal:
        read_rows(Data(train=name), seed=0)
    assert refusal.value.reason == "unknown-shape"
    data = Data(train=name, validation=name, columns=NAMED)
    rows = read_rows(data, seed=0)
    assert [[turn["content"] for turn in row.messages] for row in rows.train] == [
        ["Husten.\n\nWas ist Asthma?", "Enge."],
        ["Und Gicht?", "Schmerz."],
    ]
    assert [row.messages for row in rows.validation] == [row.messages for row in rows.train]
    read = hashlib.sha256(Path(name).read_bytes()).hexdigest()
    assert rows.origin == rows.validation_origin == Origin(read, "SHA-256 of the file")
    assert {row.unit[:6] for row in rows.train} == {b"group:"}
    nobody = read_rows(data.model_copy(update={"columns": {**NAMED, "group": ""}}), seed=0)
    assert [row.unit for row in nobody.train] == [row.question for row in nobody.train]


def test_a_column_that_the_recipe_names_and_no_row_has_is_refused(tmp_path: Path) -> None:
    name = str(write_german(tmp_path))
    with pytest.raises(Refused, match="There is no column 'Antowrt' to read as answer") as refusal:
        read_rows(Data(train=name, columns={**NAMED, "answer": "Antowrt"}), seed=0)
    assert refusal.value.reason == "unknown-column"


def test_a_column_of_what_rows_may_have_besides_may_come_after_the_first_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.worker_train.rows.FIRST_ROWS", 2)
    rows = [{"question": f"Q{number}?", "answer": "A."} for number in range(2)]
    rows.append({"question": "Whose?", "answer": "A.", "case": "7"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Data(train=str(tmp_path / "rows.jsonl"), validation_fraction=0, columns={"group": "case"})
    assert read_rows(data, seed=0).train[2].unit.startswith(b"group:")
    with pytest.raises(Refused, match=r"no column 'patient' to read as group in any row.* answer, case"):
        read_rows(data.model_copy(update={"columns": {"group": "patient"}}), seed=0)


@pytest.mark.parametrize("named_as_on_the_hub", ["owner/data-1.5"], indirect=True)
def test_columns_of_a_dataset_of_the_hub_mean_what_the_recipe_says(
    named_as_on_the_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_refuse_elsewhere", lambda table: None)
    write_german(named_as_on_the_hub).rename(named_as_on_the_hub / "train.jsonl")
    data = Data(train=str(named_as_on_the_hub), validation_fraction=0, columns=NAMED)
    assert [row.messages[-1]["content"] for row in read_rows(data, seed=0).train] == ["Enge.", "Schmerz."]


def test_rows_of_one_patient_or_question_are_held_out_together(tmp_path: Path) -> None:
    rows = [
        {"question": f"Q{number}?", "answer": f"A{number}.", "patient": f"P{number % 5}"}
        for number in range(20)
    ]
    rows += [{"question": f"Again {number % 5}?", "answer": f"B{number}."} for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    of = {row["answer"]: row.get("patient", row["question"]) for row in rows}
    for seed in range(5):
        found = read_rows(Data(train=str(tmp_path / "rows.jsonl"), validation_fraction=0.2), seed=seed)
        learnt, held_out = (
            {of[row.messages[1]["content"]] for row in side} for side in (found.train, found.validation)
        )
        assert len(found.validation) == 8
        assert learnt.isdisjoint(held_out)
        assert len(learnt | held_out) == 10


def test_a_patient_under_another_name_than_the_one_that_is_read_is_never_passed_over(tmp_path: Path) -> None:
    row = {"question": "Whose?", "answer": "A.", "patient_id": "", "subject_id": "7"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    data = Data(train=str(tmp_path / "rows.jsonl"), validation_fraction=0)
    with pytest.raises(
        Refused, match=r"Line 1 has nothing in .*'patient_id', .* 'subject_id'.*data\.columns"
    ):
        read_rows(data, seed=0)
    chosen = data.model_copy(update={"columns": {"group": "subject_id"}})
    assert read_rows(chosen, seed=0).train[0].unit.startswith(b"group:")


def test_a_context_that_is_no_text_is_not_read_unless_the_recipe_says_so(tmp_path: Path) -> None:
    row = {"prompt": "What is it?", "completion": "Gout.", "context": {"labels": ["METHODS"]}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    data = Data(train=str(tmp_path / "rows.jsonl"), validation_fraction=0)
    assert read_rows(data, seed=0).train[0].messages[0]["content"] == "What is it?"
    with pytest.raises(
        Refused, match=r"line 1 cannot be learnt\. The column 'context' is read as context and"
    ):
        read_rows(data.model_copy(update={"columns": {"context": "context"}}), seed=0)


@pytest.mark.parametrize(
    "late",
    [
        [{"context": 7}, {"context": 8}],
        [{"context": {"labels": ["METHODS"]}}],
        [{"context": None}, {"context": 7}],
        [{"context": "C"}, {"context": 7}],
        [{"input": [0.5]}, {"context": "C"}],
    ],
)
def test_a_column_that_comes_late_is_read_as_a_check_reads_it(
    late: list[dict[str, object]], tmp_path: Path
) -> None:
    plain = {"prompt": "P", "completion": "A"}
    rows = [*[plain] * FIRST_ROWS, *({**plain, **more} for more in late)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with path.open("rb") as file:
        checked = ShapedRows(open_source(file, max_bytes=10**6), {})
        as_checked = [checked.read(row).messages for _, row in checked]
    found = read_rows(Data(train=str(path), validation_fraction=0), seed=0).train
    assert [row.messages for row in found] == as_checked


def test_what_names_the_same_patient_in_all_rows_names_none(tmp_path: Path) -> None:
    rows = [{"question": f"Q{number}?", "answer": "A.", "patient": "Anatomy"} for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_rows(Data(train=str(tmp_path / "rows.jsonl"), validation_fraction=0.2), seed=0)
    assert (len(found.train), len(found.validation)) == (16, 4)


def test_a_picture_is_found_beside_the_file(tmp_path: Path) -> None:
    Image.new("RGB", (9, 7)).save(tmp_path / "a.png")
    row = {"question": "<image> What is it?", "answer": "A rash.", "image": "a.png"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (found,) = read_rows(Data(train=str(tmp_path / "rows.jsonl")), seed=0).train
    assert found.messages[0]["content"] == "What is it?"
    assert found.picture is not None
    assert found.picture().size == (9, 7)


@pytest.fixture
def named_as_on_the_hub(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder of this machine, named as a dataset of the hub could be."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = Path(request.param)
    folder.mkdir(parents=True)
    write_rows(folder / "train.jsonl", count=3)
    return folder


def write_pictures(folder: Path, *names: str) -> Data:
    """A file of a row without a picture, and one row for each of these."""
    rows = [{"question": "What is it?", "answer": "A rash.", "image": name} for name in ("", *names)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Data(train=str(folder / "rows.jsonl"), validation_fraction=0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_may_be_of_every_kind_that_a_dataset_may_have(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (9, 7), "red").save(tmp_path / "a", kind)
    read = read_rows(write_pictures(tmp_path, "a"), seed=0).train[1].picture
    assert read is not None
    assert (read().mode, read().size) == ("RGB", (9, 7))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("lost.png", "cannot be opened.* say in the options that no column is the image"),
        (".", "cannot be opened"),
        ("\0", "cannot be opened"),
        ("a" * 300, "cannot be opened"),
        ("text.png", "PNG, JPEG or WebP"),
        ("large.png", "more than 40 million pixels"),
        ("bomb.png", "under 40 million pixels"),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused_before_the_training(
    name: str, advice: str, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (9000, 5000)).save(tmp_path / "large.png")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    with pytest.raises(Refused, match=rf"^The row on line 2 cannot be learnt\..*{advice}") as refusal:
        read_rows(write_pictures(tmp_path, name), seed=0)
    assert refusal.value.reason == "bad-data"


def test_a_picture_that_breaks_off_or_goes_is_refused_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    read = read_rows(write_pictures(tmp_path, "a.png"), seed=0).train[1].picture
    assert read is not None
    with pytest.raises(Refused, match=r"^The row on line 2 cannot be learnt\. Give the row a PNG"):
        read()
    path.unlink()
    with pytest.raises(Refused, match=r"^The row on line 2 cannot be learnt\. The picture that it names"):
        read()


@pytest.mark.parametrize("named_as_on_the_hub", ["owner/data"], indirect=True)
def test_a_dataset_of_the_hub_names_no_picture_of_this_machine(
    named_as_on_the_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_refuse_elsewhere", lambda table: None)
    Image.new("RGB", (9, 7)).save(tmp_path / "a.png")
    row = {"question": "What is it?", "answer": "A rash.", "image": str(tmp_path / "a.png")}
    (named_as_on_the_hub / "train.jsonl").write_text(json.dumps(row))
    with pytest.raises(Refused, match="The row on line 1 cannot be learnt"):
        read_rows(Data(train=str(named_as_on_the_hub)), seed=0)


def test_a_gzip_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"question": "q", "answer": "a"}')[:-9])
    with pytest.raises(Refused, match="compress it again"):
        read_rows(Data(train=str(tmp_path / "rows.jsonl.gz")), seed=0)


@pytest.mark.parametrize("named_as_on_the_hub", ["owner/data", "owner/data-1.5"], indirect=True)
def test_a_folder_of_this_machine_is_never_read_in_the_hubs_stead(named_as_on_the_hub: Path) -> None:
    with pytest.raises(Refused) as refusal:
        read_rows(Data(train=str(named_as_on_the_hub)), seed=0)
    assert refusal.value.reason == "not-on-hub"


@pytest.mark.parametrize("named_as_on_the_hub", ["owner/data-1.5"], indirect=True)
def test_the_rows_of_a_dataset_of_the_hub_are_read(
    named_as_on_the_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder stands for the hub: `datasets` reads both the same way."""
    monkeypatch.setattr(hub, "_refuse_elsewhere", lambda table: None)
    rows = read_rows(Data(train=str(named_as_on_the_hub), validation_fraction=0), seed=0)
    same = read_rows(Data(train=str(named_as_on_the_hub / "train.jsonl"), validation_fraction=0), seed=0)
    assert rows.train == same.train
    name, commit = str(named_as_on_the_hub), hub.find_table(str(named_as_on_the_hub), None).hash
    assert rows.origin == Origin(commit, f"commit of `{name}` on the Hugging Face hub")


@pytest.mark.parametrize("name", ["lost/rows.jsonl", "lost/rows.jsonl.gz", "rows", "a/b/c"])
def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(Refused, match="There is no such file"):
        read_rows(Data(train=name), seed=0)


def test_a_checked_dataset_that_holds_none_out_is_not_split_by_row(api: Api, dataset_id: str) -> None:
    with api.gateway.database.read() as connection:
        manifest = connection.execute(select(datasets.c.manifest)).scalar_one()
    parts = [part for part in manifest["parts"] if part["split"] == "train"]
    without = {**manifest, "parts": parts}
    own = datasets.c.id == dataset_id
    api.set(datasets, own, manifest=without, manifest_sha256=hash_manifest(without))
    rows = read_rows(Data(train=f"medichat:{dataset_id}", validation_fraction=0.5), seed=0)
    assert (len(rows.train), rows.validation) == (4, [])
