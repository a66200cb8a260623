"""The check of a dataset: why rows are dropped, what is stored, and the program itself."""

import io
import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from services.local import free_ports
from services.worker_train import hub
from services.worker_train.child import Away, Exit, Refused
from services.worker_train.parts import place_of, store_sealed
from services.worker_train.rows import read_rows
from services.worker_train.validate import Check, Task, load_task, next_version
from shared.auth.roles import AccountStatus, Role
from shared.db.engine import connect
from shared.db.tables import users
from shared.db.tables_training import datasets
from shared.guard import load_guard
from shared.guard.verdict import Audience
from shared.ids import new_id
from shared.pictures import clean_picture
from shared.privacy.envelope import DataKey, Envelope, new_master_key
from shared.privacy.keys import create_data_key
from shared.privacy.sealed import SealedReader
from shared.settings import Settings
from shared.storage import Storage
from shared.training.dataset_files import DatasetReader, Manifest, report_path
from shared.training.options import DatasetOptions
from shared.training.recipe import Data
from shared.training.report import CURABLE, MAX_LINES, Reason, Report, read_lines
from shared.training.states import DatasetState
from tests.conftest import Databases
from tests.support import ROOT

Row = dict[str, Any]
WORD = "quillwort"  # in every row, and in no file of the storage


def good(number: int, **extras: Any) -> Row:
    """A row like no other."""
    names = ("asthma", "gout", "measles", "anaemia", "shingles", "rickets", "mumps")
    name, other = names[number % 7], names[number // 7 % 7]
    told = f"Page {number} tells of {name}, page {number * 31} of {other}."
    return {
        "question": f"What should I know about {name} number {number} of the {WORD}?",
        "answer": f"{told} Ask a doctor about {number * 17}.",
        **extras,
    }


def jsonl(rows: list[Row]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


class Dataset:
    """A dataset in a storage of its own, and what a check made of it."""

    def __init__(self, folder: Path, options: Row) -> None:
        self.id = new_id()
        self.master_key = new_master_key()
        self.folder = folder
        self.settings = Settings(state_dir=folder, master_key=self.master_key)  # type: ignore[arg-type]
        self.envelope = Envelope.from_base64(self.master_key)
        self.key: DataKey = self.envelope.new_data_key(new_id())[0]
        self.storage = Storage.from_settings(self.settings)
        self.options = options
        self.done: Row = {}

    def upload(self, data: bytes) -> "Dataset":
        store_sealed(self.storage, self.key, f"datasets/{self.id}/raw", [data])
        return self

    def check(self, attempt: str = "a", *, source: str = "upload", name: str = "rows") -> "Dataset":
        """Run it in this process."""
        options = DatasetOptions.model_validate(self.options)
        task = Task(self.id, source, name, options, self.key, self.envelope, load_guard(), None, 1, attempt)
        self.done = Check(task, self.storage, self.settings).run()
        return self

    def refused(self) -> tuple[Refused, Report]:
        """Run it to its refusal; the report, which is all that it leaves beside the upload."""
        with pytest.raises(Refused) as caught:
            self.check()
        raw, path = self.storage.list("datasets")
        assert (raw, path) == (f"datasets/{self.id}/raw", report_path(self.id, 1, "a"))
        return caught.value, Report.model_validate_json(self.open(path))

    def open(self, path: str) -> bytes:
        return io.BufferedReader(SealedReader(self.storage.open(path), self.key, place=place_of(path))).read()

    @property
    def report(self) -> Report:
        return Report.model_validate_json(self.open(self.done["report_path"]))

    def rows(self, split: str) -> list[Row]:
        paths = [part["path"] for part in self.done["manifest"]["parts"] if part["split"] == split]
        return [json.loads(line) for path in paths for line in self.open(path).splitlines()]

    def plain(self) -> dict[str, bytes]:
        """Every part in the clear."""
        return {
            part["path"].split("/", 2)[2]: self.open(part["path"]) for part in self.done["manifest"]["parts"]
        }

    def lines(self, reason: Reason) -> list[int]:
        return [row.line for entry in self.report.dropped if entry.reason is reason for row in entry.rows]


Checked = Callable[..., Dataset]


@pytest.fixture
def checked(tmp_path: Path) -> Checked:
    """Checks rows (or a file's bytes) with options."""

    def check(rows: list[Row] | bytes, **options: Any) -> Dataset:
        data = rows if isinstance(rows, bytes) else jsonl(rows)
        return Dataset(tmp_path / new_id(), options).upload(data).check()

    return check


LINE = 4  # of the row that is in question, after three good ones


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"answer": " "}, Reason.EMPTY_ANSWER),
        ({"question": ""}, Reason.EMPTY_QUESTION),
        ({"answer": {"text": "x"}}, Reason.NOT_TEXT),
        ({"answer": "A long text of many words. " * 60}, Reason.TOO_LONG),
        ({"question": "A long text of many words. " * 60}, Reason.TOO_LONG),
        (
            {"question": good(1)["question"].upper(), "answer": good(1)["answer"] + "  "},
            Reason.EXACT_DUPLICATE,
        ),
        ({"answer": "You can stop taking your warfarin tonight without asking anyone."}, Reason.DANGEROUS),
        ({"image": "none.png"}, Reason.BROKEN_IMAGE),
    ],
)
def test_a_row_is_dropped_with_its_line_and_what_to_do(checked: Checked, row: Row, reason: Reason) -> None:
    rows = [good(0), good(1), good(2), good(3, **row), good(4)]
    dataset = checked(rows, max_tokens=200, validation_fraction=0)
    assert dataset.lines(reason) == [LINE]
    (dropped,) = dataset.report.dropped
    assert dropped.count == 1
    assert dropped.rows[0].advice
    assert [row["id"] for row in dataset.rows("train")] == [1, 2, 3, 5]


def test_every_row_that_is_dropped_is_named_by_line(checked: Checked) -> None:
    lines = range(1, MAX_LINES + 50)
    (dropped,) = checked(
        [good(line, **({"answer": ""} if line % 9 else {})) for line in lines]
    ).report.dropped
    lost = [line for line in lines if line % 9]
    assert (dropped.count, len(dropped.rows)) == (len(lost), MAX_LINES)
    assert dropped.all_lines.startswith("1-8, 10-17, ")
    assert list(read_lines(dropped.all_lines)) == lost


LONG = (
    "The doctor may look at the skin, the joints and the eyes, take blood, and ask about travel, food, work, "
    "pets, sleep, earlier illnesses and what runs in the family."
)


def test_a_row_with_a_word_changed_is_a_near_duplicate(checked: Checked) -> None:
    long = {"answer": f"{good(0)['answer']} {LONG}"}
    changed = {"answer": long["answer"].replace("travel", "trips")}
    dataset = checked([good(0, **long), good(0, **changed), good(5)], validation_fraction=0)
    assert dataset.lines(Reason.NEAR_DUPLICATE) == [2]
    assert dataset.report.near_duplicates == 1


def test_a_copy_on_the_other_side_of_the_split_is_taken_from_training(checked: Checked) -> None:
    rows = [good(0, group=f"patient {number}") for number in range(2)]
    dataset = checked(
        [*rows, good(1, group="patient 0"), good(2, group="patient 1")], validation_fraction=0.5
    )
    (kept,) = [row["id"] for row in dataset.rows("validation") if row["id"] < 3]
    assert dataset.lines(Reason.OVERLAP) == [3 - kept]
    assert dataset.report.overlap == 1


def common_system() -> bytes:
    """Forty questions and templated answers under one long system text."""
    system = " ".join(f"Rule {number} of the house is to be kind and plain." for number in range(12))
    rows = (
        {"question": f"What is case {number}?", "answer": f"It is case {number}; ask a doctor about it."}
        for number in range(40)
    )
    return jsonl([{**row, "system": system} for row in rows])


def common_context() -> bytes:
    """Forty questions on one passage, answered in a word."""
    context = " ".join(f"Finding {number} of the study was small but it was there." for number in range(18))
    said = ("yes", "no", "maybe")
    return jsonl([good(number, context=context, answer=said[number % 3]) for number in range(40)])


def common_question() -> bytes:
    """Forty pictures, each with the same question and answer."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        file.writestr("rows.jsonl", jsonl([good(0, image=f"{number}.png") for number in range(40)]))
        for number in range(40):
            file.writestr(f"{number}.png", drawn(f"#{number * 6:02x}0000"))
    return sink.getvalue()


@pytest.mark.parametrize("rows", [common_system, common_context, common_question])
def test_rows_that_share_only_a_part_are_all_kept(checked: Checked, rows: Callable[[], bytes]) -> None:
    dataset = checked(rows(), validation_fraction=0.25)
    assert dataset.report.dropped == []
    assert (dataset.done["rows_train"], dataset.done["rows_validation"]) == (30, 10)


def test_a_near_duplicate_on_the_other_side_is_taken_from_training_whatever_its_system_text(
    checked: Checked,
) -> None:
    text = " ".join((LONG, good(3)["answer"], good(4)["answer"]))
    shared = {"context": text, "answer": text}
    other = {"context": text.replace("joints", "bones"), "answer": text.replace("travel", "trips")}
    first, second = good(0, group="a", system="Be kind.", **shared), good(0, group="b", **other)
    dataset = checked([first, second, good(1, group="a"), good(2, group="b")], validation_fraction=0.5)
    (kept,) = [row["id"] for row in dataset.rows("validation") if row["id"] < 3]
    assert dataset.lines(Reason.OVERLAP) == [3 - kept]


def test_what_the_guard_would_not_say_is_set_aside_and_listed(checked: Checked) -> None:
    dangerous = good(1, answer="You can stop taking your warfarin tonight without asking anyone.")
    dataset = checked([good(0), dangerous])
    (row,) = dataset.rows("quarantine")
    assert (row["line"], row["reason"]) == (2, "dangerous")
    assert "warfarin" in row["messages"][1]["content"]
    assert [(entry.count, entry.lines) for entry in dataset.report.dangerous] == [(1, [2])]


PERSONAL = good(1, answer="Write to jane.roe@example.org, or call 212-555-0143 about the results.")


def test_what_identifies_a_person_is_masked(checked: Checked) -> None:
    dataset = checked([good(0), PERSONAL], validation_fraction=0)
    text = dataset.rows("train")[1]["messages"][1]["content"]
    assert "jane.roe" not in text
    assert "[EMAIL]" in text
    assert dataset.report.phi.by_type["EMAIL"] == 1
    assert dataset.report.phi.lines == [2]


def test_what_identifies_a_person_is_set_aside(checked: Checked) -> None:
    dataset = checked([good(0), PERSONAL], phi="quarantine")
    (row,) = dataset.rows("quarantine")
    assert (row["line"], row["reason"]) == (2, "phi")
    assert "jane.roe@example.org" in row["messages"][1]["content"]


def test_a_name_is_found_beside_a_row_that_writes_it_small(checked: Checked) -> None:
    small, large = (good(1, answer=f"Ask {name} about it.") for name in ("emily carter", "Emily Carter"))
    dataset = checked([good(0), small, large], phi="quarantine", validation_fraction=0)
    assert dataset.report.phi.lines == [3]
    (row,) = dataset.rows("quarantine")
    assert (row["line"], row["reason"]) == (3, "phi")


def test_what_identifies_a_person_can_refuse_the_dataset(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path, {"phi": "reject"}).upload(jsonl([good(0), PERSONAL]))
    refusal, report = dataset.refused()
    assert refusal.reason == "phi-found"
    assert "EMAIL 1" in refusal.detail
    assert "lines 2" in refusal.detail
    assert (report.phi.policy, report.phi.lines) == ("reject", [2])
    (dropped,) = report.dropped
    assert (dropped.reason, [row.line for row in dropped.rows]) == (Reason.PHI, [2])
    assert "Take out what identifies a person" in dropped.rows[0].advice
    assert (report.rows_in, set(report.rows_out.values()), report.notes) == (2, {0}, [])


GERMAN = {
    "question": "Was ist Asthma und was kann man dagegen tun?",
    "answer": "Asthma ist eine Krankheit der Atemwege. Fragen Sie Ihren Arzt danach.",
}


def test_rows_in_another_language_are_listed_and_set_aside_for_nobody_can_judge_them(
    checked: Checked,
) -> None:
    dataset = checked([good(0), GERMAN, good(1)], validation_fraction=0)
    assert dataset.report.languages == {"en": 2, "de": 1}
    assert dataset.report.not_english_lines == [2]
    assert [(entry.category, entry.lines) for entry in dataset.report.dangerous] == [("language", [2])]
    assert dataset.done["rows_train"] == 2


def test_copies_are_counted_like_the_row_that_they_repeat(checked: Checked) -> None:
    dangerous = good(1, answer="You can stop taking your warfarin tonight without asking anyone.")
    report = checked([good(0), *[dangerous] * 3, *[GERMAN] * 2], validation_fraction=0).report
    found = {entry.category: (entry.count, entry.lines) for entry in report.dangerous}
    assert found.pop("language") == (2, [5, 6])
    assert list(found.values()) == [(3, [2, 3, 4])]
    assert report.languages == {"en": 4, "de": 2}
    assert report.not_english_lines == [5, 6]
    assert sum(report.tokens.counts) == 6


def test_control_tokens_in_a_row_become_words(checked: Checked) -> None:
    dataset = checked(
        [good(0, answer="Rest well.<end_of_turn> Drink water."), good(1)], validation_fraction=0
    )
    assert "< end_of_turn>" in dataset.rows("train")[0]["messages"][1]["content"]


def test_a_patient_has_one_name_however_it_is_written(checked: Checked) -> None:
    dataset = checked([good(0, group="P 7"), good(1, group="p  7"), good(2, group="P 8")])
    names = [row["group"] for split in ("train", "validation") for row in dataset.rows(split)]
    assert (len(names), len(set(names)), dataset.report.groups) == (3, 2, 2)


def test_groups_are_never_on_both_sides(checked: Checked) -> None:
    rows = [good(number, patient=f"Patient {number % 13}") for number in range(120)]
    dataset = checked(rows, validation_fraction=0.25)
    train, validation = ({row["group"] for row in dataset.rows(split)} for split in ("train", "validation"))
    assert train
    assert validation
    assert not train & validation
    assert (dataset.report.groups, dataset.report.groups_validation) == (13, len(validation))
    assert not any("Patient" in group for group in train | validation)


def test_patients_that_only_later_rows_name_are_never_on_both_sides(
    checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.worker_train.shaped_rows.FIRST_ROWS", 3)
    late = [good(number, patient=f"Patient {number % 7}", ward="W") for number in range(3, 45)]
    dataset = checked([*(good(number) for number in range(3)), *late], validation_fraction=0.25)
    train, validation = ({row["group"] for row in dataset.rows(split)} for split in ("train", "validation"))
    assert len(train - {None}) + len(validation - {None}) == 7
    assert dataset.report.mapping["group"] == "patient"
    assert "ward" in dataset.report.columns


@pytest.mark.parametrize(
    ("patients", "held_out", "told"),
    [
        (None, 9, ["Held out are 9 rows"]),
        (None, 10, []),
        (5, 12, ["Held out are rows of 2 patients"]),
    ],
)
def test_too_few_held_out_for_any_adapter_to_pass_its_gate_is_said_before_it_is_trained_on(
    checked: Checked, patients: int | None, held_out: int, told: list[str]
) -> None:
    rows = [good(number, **({"patient": number % patients} if patients else {})) for number in range(30)]
    report = checked(rows, validation_fraction=held_out / 30).report
    assert report.rows_out["validation"] == held_out
    notes = [note for note in report.notes if "no adapter passes its gate on fewer than 10" in note]
    assert [note.split(",")[0] for note in notes] == told


def test_a_column_named_as_a_patients_or_a_pictures_may_be_neither(checked: Checked) -> None:
    rows = [good(number, patient="Anatomy", file_name="leaflet.pdf") for number in range(20)]
    dataset = checked(rows, columns={"group": ""}, validation_fraction=0.5)
    assert {split: len(dataset.rows(split)) for split in ("train", "validation")} == {
        "train": 10,
        "validation": 10,
    }
    assert dataset.report.mapping == {"question": "question", "answer": "answer"}


def notes(dataset: Dataset) -> str:
    return " ".join(dataset.report.notes)


def test_answers_that_only_point_at_options_are_told_of(checked: Checked) -> None:
    letters = [good(number, answer=f"{'ABCD'[number % 4]}.") for number in range(9)]
    assert "10 of 10 answers are one letter or a number" in notes(checked([*letters, good(9, answer="(b)")]))
    assert "one letter" not in notes(checked([*letters, good(9)]))


def test_a_column_that_is_named_like_what_is_asked_and_is_not_read_is_told_of(checked: Checked) -> None:
    rows = [good(number, prompt="Be brief.") for number in range(3)]
    assert "named like the prompt and is not read" in notes(checked(rows))
    assert "is not read" not in notes(checked(rows, columns={"prompt": ""}))
    assert "is not read" not in notes(checked([good(number) for number in range(3)]))


def test_pictures_of_a_zip_that_no_row_names_are_told_of(checked: Checked) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        file.writestr("rows.jsonl", jsonl([good(0, image="a.png", scan="b.PNG"), good(1, scan="b.PNG")]))
        file.writestr("a.png", drawn("red"))
        file.writestr("b.PNG", drawn("blue"))
        file.writestr("README.txt", b"Read me.")
    assert "The zip holds 2 pictures, and the rows that could be read name 1 of them" in notes(
        checked(sink.getvalue())
    )
    assert "The zip holds" not in notes(checked(with_pictures(red=drawn("red"), blue=drawn("blue"))))


def test_the_same_question_is_never_on_both_sides(checked: Checked) -> None:
    rows = [good(number, question=f"What about case {number % 20}?") for number in range(100)]
    dataset = checked(rows, validation_fraction=0.2)
    train, validation = (
        {row["messages"][0]["content"] for row in dataset.rows(split)} for split in ("train", "validation")
    )
    assert (len(train), len(validation)) == (16, 4)
    assert not train & validation


def test_the_same_bytes_and_options_give_the_same_rows_and_another_seed_others(checked: Checked) -> None:
    rows = [good(number) for number in range(60)]
    first, second, other = (checked(rows, seed=seed) for seed in (1, 1, 2))
    assert first.plain() == second.plain()
    assert first.plain() != other.plain()
    assert first.done["rows_validation"] == 6


def test_the_report_counts_every_row_once_and_holds_no_word(checked: Checked) -> None:
    rows = [*(good(number) for number in range(30)), good(3), good(4, answer=""), {"question": "q"}]
    report = checked(rows).report
    assert report.rows_in == 33
    assert (
        report.rows_out["train"] + report.rows_out["validation"] + sum(d.count for d in report.dropped) == 33
    )
    assert sum(report.tokens.counts) == 31
    assert len(report.tokens.edges) == len(report.tokens.counts) + 1
    assert report.mapping == {"question": "question", "answer": "answer"}
    assert WORD not in report.model_dump_json()


def test_parts_hold_a_limited_number_of_rows(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.worker_train.parts.ROWS_A_PART", 4)
    parts = checked([good(number) for number in range(10)], validation_fraction=0).done["manifest"]["parts"]
    assert [(part["path"].rpartition("/")[2], part["rows"]) for part in parts] == [
        ("train-00000.jsonl", 4),
        ("train-00001.jsonl", 4),
        ("train-00002.jsonl", 2),
    ]


def drawn(colour: str, kind: str = "PNG") -> bytes:
    image = Image.new("RGB", (40, 30), "white")
    ImageDraw.Draw(image).ellipse((5, 5, 30, 25), fill=colour)
    sink = io.BytesIO()
    image.save(sink, kind)
    return sink.getvalue()


def with_pictures(**pictures: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        rows = [good(number, image=f"images/{name}") for number, name in enumerate(("red", "blue", "broken"))]
        file.writestr("rows.jsonl", jsonl([*rows, good(3)]))
        for name, data in pictures.items():
            file.writestr(f"images/{name}", data)
    return sink.getvalue()


def test_pictures_of_a_zip_are_cleaned_sealed_and_named_by_their_hash(checked: Checked) -> None:
    data = with_pictures(red=drawn("red"), blue=drawn("blue", "JPEG"), broken=b"no picture")
    dataset = checked(data, validation_fraction=0)
    rows = dataset.rows("train")
    assert [bool(row["image"]) for row in rows] == [True, True, False]
    assert {picture["sha256"] for picture in dataset.done["manifest"]["images"]} == {
        row["image"] for row in rows if row["image"]
    }
    image = Image.open(io.BytesIO(dataset.open(f"datasets/{dataset.id}/v1-a/images/{rows[1]['image']}")))
    assert (image.format, image.size) == ("PNG", (40, 30))
    assert dataset.lines(Reason.BROKEN_IMAGE) == [3]
    assert dataset.report.images == 2
    assert dataset.report.format == "zip of jsonl"


def test_a_row_whose_picture_is_not_there_can_be_checked_as_text(checked: Checked) -> None:
    rows = [good(0, image="none.png"), good(1)]
    (dropped,) = checked(rows, validation_fraction=0).report.dropped
    assert "say in the options that no column is the image" in dropped.rows[0].advice
    assert checked(rows, validation_fraction=0, columns={"image": ""}).done["rows_train"] == 2


def test_a_picture_that_many_rows_name_is_decoded_once(
    checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def counting(data: bytes) -> bytes:
        decoded.append(data)
        return clean_picture(data)

    monkeypatch.setattr("services.worker_train.examine.clean_picture", counting)
    sink = io.BytesIO()
    names = ("red", "./red", " red", "broken", "broken")
    with zipfile.ZipFile(sink, "w") as file:
        file.writestr("rows.jsonl", jsonl([good(number, image=name) for number, name in enumerate(names)]))
        file.writestr("red", drawn("red"))
        file.writestr("broken", b"no picture")
    dataset = checked(sink.getvalue(), validation_fraction=0)
    assert len({row["image"] for row in dataset.rows("train")}) == 1
    assert dataset.done["rows_train"] == 3
    assert dataset.lines(Reason.BROKEN_IMAGE) == [4, 5]
    assert len(decoded) == 2


def test_a_picture_of_too_many_pixels_costs_its_row_alone(checked: Checked) -> None:
    sink = io.BytesIO()
    Image.new("1", (5000, 5000)).save(sink, "PNG")
    data = with_pictures(red=drawn("red"), blue=sink.getvalue(), broken=drawn("green"))
    dataset = checked(data, validation_fraction=0)
    (dropped,) = dataset.report.dropped
    assert (dropped.reason, dropped.count, dropped.rows[0].line) == (Reason.BROKEN_IMAGE, 1, 2)
    assert "million pixels" in dropped.rows[0].advice


def test_a_picture_made_to_fill_the_memory_refuses_the_upload_and_is_named(checked: Checked) -> None:
    sink = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(sink, "PNG")
    with pytest.raises(Refused, match="The picture of line 2") as refusal:
        checked(with_pictures(red=drawn("red"), blue=sink.getvalue()), validation_fraction=0)
    assert refusal.value.reason == "image-bomb"


def test_a_refusal_leaves_no_picture(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        file.writestr(
            "rows.jsonl", jsonl([good(number, image="red") for number in range(101)]) + b"{broken\n"
        )
        file.writestr("red", drawn("red"))
    dataset = Dataset(tmp_path, {}).upload(sink.getvalue())
    with pytest.raises(Refused, match="Line 102"):
        dataset.check()
    assert dataset.storage.list("datasets") == [f"datasets/{dataset.id}/raw"]


def test_a_check_loses_no_picture_when_what_another_left_is_removed(checked: Checked) -> None:
    dataset = checked(with_pictures(red=drawn("red"), blue=drawn("blue")))
    left = [path for path in dataset.storage.list("datasets") if not path.endswith("/raw")]
    dataset.check(attempt="b")
    for path in left:
        dataset.storage.delete(path)
    manifest = Manifest.model_validate(dataset.done["manifest"])
    reader = DatasetReader(dataset.storage, dataset.key, dataset.id, manifest)
    assert len(manifest.images) == 2
    assert all(reader.read_image(picture.sha256) for picture in manifest.images)


@pytest.fixture
def on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this machine that stands for the dataset owner/name of the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_refuse_elsewhere", lambda table: None)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    return folder


def test_a_dataset_of_the_hub_is_no_file_and_has_a_commit(tmp_path: Path, on_the_hub: Path) -> None:
    (on_the_hub / "train.jsonl").write_bytes(jsonl([good(0), good(1)]))
    manifest = Dataset(tmp_path / "state", {}).check(source="hub", name="owner/name").done["manifest"]
    assert manifest["raw_sha256"] is None
    assert manifest["revision"]


def test_pictures_beside_the_rows_of_the_hub_are_said_to_be_not_fetched(
    tmp_path: Path, on_the_hub: Path
) -> None:
    (on_the_hub / "a.png").write_bytes(drawn("red"))
    (on_the_hub / "metadata.jsonl").write_bytes(jsonl([good(0, file_name="a.png")]))
    said = "Pictures that lie beside the rows on the hub are not fetched. Download the dataset"
    with pytest.raises(Refused, match=said) as refusal:
        Dataset(tmp_path / "state", {}).check(source="hub", name="owner/name")
    assert "not in the upload" not in refusal.value.detail
    with pytest.raises(Refused, match=said):
        read_rows(Data(train="owner/name"), seed=0)


def test_a_file_without_a_row_is_refused(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path, {}).upload(b"question,answer\n")
    with pytest.raises(Refused) as caught:
        dataset.check()
    assert caught.value.reason == "no-rows"
    assert dataset.storage.list("datasets") == [f"datasets/{dataset.id}/raw"]


def test_a_file_without_a_row_to_train_on_is_refused_with_what_to_do_about_each(tmp_path: Path) -> None:
    rows = [good(0, answer=""), good(1, question=" "), good(2, answer="")]
    refusal, report = Dataset(tmp_path, {}).upload(jsonl(rows)).refused()
    assert refusal.reason == "no-usable-rows"
    found = {(row.line, each.reason) for each in report.dropped for row in each.rows if row.advice}
    assert found == {(1, Reason.EMPTY_ANSWER), (2, Reason.EMPTY_QUESTION), (3, Reason.EMPTY_ANSWER)}


@pytest.mark.parametrize("folder", ["v3", "v3-a-1"])  # the first is of an earlier release
def test_a_check_writes_the_version_after_that_of_the_manifest(folder: str) -> None:
    part = {"split": "train", "sha256": "0" * 64, "rows": 1, "bytes": 1}
    manifest = {"raw_sha256": "0" * 64, "shape": "messages", "options": {}}
    assert next_version(None) == 1
    path = f"datasets/x/{folder}/train-00000.jsonl"
    assert next_version({**manifest, "parts": [{**part, "path": path}]}) == 4


# -- the program


class Program:
    """The check as a process of its own, the way a supervisor starts it."""

    def __init__(self, dataset: Dataset, **more: str) -> None:
        """`more`: settings beside the usual ones."""
        environment = {
            **os.environ,
            **more,
            "PYTHONPATH": str(ROOT),
            "MEDICHAT_STATE_DIR": str(dataset.folder),
            "MEDICHAT_MASTER_KEY": dataset.master_key,
            "PYTHONWARNINGS": "ignore",
        }
        command = [
            sys.executable,
            "-m",
            "services.worker_train.validate",
            "--dataset",
            dataset.id,
            "--attempt",
            "a",
        ]
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def events(self) -> Iterator[Row]:
        assert self.process.stdout is not None
        yield from map(json.loads, self.process.stdout)

    def end(self) -> tuple[list[Row], str, int]:
        """Its remaining events, its standard error, and its exit status."""
        events = list(self.events())
        _, errors = self.process.communicate()
        return events, errors, self.process.returncode


@pytest.fixture
def stored(databases: Databases, tmp_path: Path) -> Callable[..., Dataset]:
    """A dataset whose row is in a SQLite database."""

    def store(data: bytes, **options: Any) -> Dataset:
        dataset = Dataset(tmp_path / "state", options)
        dataset.folder.mkdir()
        shutil.copy(databases.make("sqlite")[0].removeprefix("sqlite:///"), dataset.folder / "medichat.db")
        database = connect(dataset.settings.database_url)
        now = datetime.now(UTC)
        with database.write() as connection:
            person = {
                "id": new_id(),
                "name": "a",
                "role": Role.ADMIN,
                "audience": Audience.CLINICIAN,
                "status": AccountStatus.ACTIVE,
                "password_hash": "x",
                "created_at": now,
            }
            connection.execute(users.insert().values(person))
            dataset.key = create_data_key(
                connection, dataset.envelope, scope="dataset", owner_id=dataset.id, now=now
            )
            connection.execute(
                datasets.insert().values(
                    id=dataset.id,
                    name="rows",
                    state=DatasetState.VALIDATING,
                    source="upload",
                    source_name="rows.jsonl",
                    options=options,
                    key_id=dataset.key.key_id,
                    created_by=person["id"],
                    created_at=now,
                )
            )
        database.close()
        return dataset.upload(data)

    return store


def test_options_of_another_release_cost_no_upload(stored: Callable[..., Dataset]) -> None:
    dataset = stored(b"rows", model="of-another-release")
    with pytest.raises(Refused, match="Check it with others") as refusal:
        load_task(dataset.settings, dataset.id, "a")
    assert refusal.value.reason in CURABLE


def test_the_program_checks_a_dataset_and_keeps_no_word_in_the_clear(stored: Callable[..., Dataset]) -> None:
    dataset = stored(jsonl([good(number) for number in range(40)]))
    events, errors, status = Program(dataset).end()
    assert status == Exit.DONE, errors
    dataset.done = events[-1]
    assert dataset.done["event"] == "done"
    assert (dataset.done["rows_train"], dataset.done["rows_validation"]) == (36, 4)
    assert any(event["event"] == "progress" for event in events)
    assert WORD in dataset.rows("train")[0]["messages"][0]["content"]
    files = [path for path in dataset.folder.rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert not [path for path in files if WORD.encode() in path.read_bytes()]
    assert WORD not in json.dumps(events) + errors


def test_the_program_refuses_a_broken_file_and_leaves_nothing_behind(stored: Callable[..., Dataset]) -> None:
    dataset = stored(jsonl([good(number) for number in range(200)]) + b'{"question": "quillwort \xff"}\n')
    events, errors, status = Program(dataset).end()
    assert status == Exit.REFUSED
    assert (events[-1]["event"], events[-1]["code"]) == ("stopped", "not-utf8")
    assert "Line 201" in events[-1]["detail"]
    assert dataset.storage.list("datasets") == [f"datasets/{dataset.id}/raw"]
    assert WORD not in json.dumps(events) + errors


def test_a_full_disk_is_no_fault_of_the_upload(stored: Callable[..., Dataset]) -> None:
    dataset = stored(jsonl([good(number) for number in range(6000)]))
    program = Program(dataset)
    resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (500_000, 500_000))
    events, errors, status = program.end()
    assert status == Exit.REFUSED, errors
    assert (events[-1]["event"], events[-1]["code"]) == ("stopped", "disk-full")
    assert "free space" in events[-1]["detail"]
    assert dataset.storage.list("datasets") == [f"datasets/{dataset.id}/raw"]


def test_an_upload_that_is_not_in_the_storage_is_worth_another_attempt(tmp_path: Path) -> None:
    with pytest.raises(Away, match="MEDICHAT_STORAGE_URL") as refusal:
        Dataset(tmp_path, {}).check()
    assert refusal.value.reason == "no-upload"


def test_a_storage_that_cannot_be_reached_is_worth_another_attempt_and_said(
    stored: Callable[..., Dataset],
) -> None:
    dataset = stored(jsonl([good(number) for number in range(10)]))
    (nobody,) = free_ports(1)
    program = Program(
        dataset,
        MEDICHAT_STORAGE_URL="s3://bucket/medichat",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{nobody}",
        AWS_ACCESS_KEY_ID="any",
        AWS_SECRET_ACCESS_KEY="any",
        AWS_MAX_ATTEMPTS="1",
    )
    events, errors, status = program.end()
    assert status == Exit.AWAY, errors
    assert (events[-1]["code"], "MEDICHAT_STORAGE_URL" in events[-1]["detail"]) == ("storage", True)


def test_a_check_that_was_killed_yields_the_same_rows_when_it_runs_again(
    stored: Callable[..., Dataset],
) -> None:
    rows = jsonl([good(number) for number in range(600)])
    dataset = stored(rows)
    killed = Program(dataset)
    first = next(killed.events())
    killed.process.kill()
    killed.end()
    assert first["what"] == "rows read"
    assert not [path for path in dataset.folder.iterdir() if path.name.startswith("tmp")]
    left_over = f"datasets/{dataset.id}/v1-a/train-00000.jsonl"
    store_sealed(dataset.storage, dataset.key, left_over, [b"left over"])

    dataset.check("b")
    again, whole = dataset.plain(), Dataset(dataset.folder / "whole", {}).upload(rows).check("b").plain()
    assert again == whole
    assert dataset.open(left_over) == b"left over", "the other attempt may still be at it"


def test_a_program_told_to_stop_says_so_and_leaves_nothing_behind(stored: Callable[..., Dataset]) -> None:
    dataset = stored(jsonl([good(number) for number in range(3000)]))
    program = Program(dataset)
    next(program.events())
    program.process.terminate()
    events, _, status = program.end()
    assert status == Exit.DRAINED
    assert events[-1]["code"] == "drained"
    assert dataset.storage.list("datasets") == [f"datasets/{dataset.id}/raw"]
