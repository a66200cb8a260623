"""The demo model in the repository: what its card says of it is true, and it can be built again."""

import hashlib
import json
import random
import re
from pathlib import Path

import pytest

from models.demo.build import build
from models.demo.card import write_card
from models.demo.evaluate import (
    WEIGHTS,
    Examinee,
    chosen_questions,
    held_out_score,
    off_topic_score,
    picture_score,
)
from models.demo.knowledge import load_knowledge

MAX_BYTES = 16_000_000


@pytest.fixture(scope="module")
def examinee() -> Examinee:
    return Examinee(WEIGHTS)


def test_the_weights_are_safetensors_and_small() -> None:
    files = [path for path in WEIGHTS.iterdir() if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".jinja"}
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


def test_it_is_a_gemma_3_with_a_vision_tower() -> None:
    config = json.loads((WEIGHTS / "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForConditionalGeneration"]
    assert config["vision_config"]["num_hidden_layers"] >= 1


def test_the_card_names_the_data_that_it_was_trained_on() -> None:
    assert load_knowledge().sha256 in (WEIGHTS / "README.md").read_text()


def test_the_cards_figures_are_of_the_weights_beside_it() -> None:
    weights = (WEIGHTS / "model.safetensors").read_bytes()
    (named,) = re.findall(
        r"weights measured \(`model\.safetensors`\): `(\w+)`", (WEIGHTS / "README.md").read_text()
    )
    assert named == hashlib.sha256(weights).hexdigest()


def test_a_build_writes_the_hash_of_its_weights_into_the_card(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    figures = {
        "held_out": {"questions": 1.0, "share_at_least_half": 1.0, "mean_rouge_l": 1.0},
        "off_topic": {"questions": 1.0, "share_declined": 1.0},
        "pictures": {"pictures": 1.0, "share_right": 1.0},
    }
    write_card(
        tmp_path,
        figures=figures,
        parameters=1,
        steps=1,
        sight_steps=1,
        minutes=1,
        knowledge=load_knowledge(),
    )
    assert hashlib.sha256(b"other weights").hexdigest() in (tmp_path / "README.md").read_text()


def test_it_answers_held_out_questions(examinee: Examinee) -> None:
    chosen, _ = chosen_questions(load_knowledge())
    assert held_out_score(examinee, chosen[:32])["share_at_least_half"] >= 0.9


def test_it_declines_what_is_off_its_topics(examinee: Examinee) -> None:
    asked = random.Random(1).sample(load_knowledge().off_topic.held_out, 32)
    assert off_topic_score(examinee, asked)["share_declined"] >= 0.9


def test_it_says_on_which_side_a_patch_lies_in_pictures_it_never_saw(examinee: Examinee) -> None:
    assert picture_score(examinee, 64)["share_right"] >= 0.95


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        build(tmp_path / name, steps=2, sight_steps=2)
        files = sorted(path for path in (tmp_path / name).iterdir() if path.is_file())
        digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    assert digests[0] == digests[1]
