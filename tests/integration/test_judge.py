"""The base model as a judge of sentences, on a real engine; how well it judges is not measured here."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from services.worker_infer.judge import ModelAsker
from services.worker_infer.loading import open_model
from shared.catalogue import CATALOGUE
from shared.settings import Settings


@pytest.fixture(scope="module")
def asker() -> ModelAsker:
    return ModelAsker(open_model(Settings(model="demo", device="cpu", worker_concurrency=2)))


def test_its_likelihood_is_one_and_that_of_the_models_own_words(asker: ModelAsker) -> None:
    sure = asker.likelihood("Say whether it is bad.", "Rest well.", "", 60)
    assert 0 <= sure <= 1
    assert sure == asker.likelihood("Say whether it is bad.", "Rest well.", "", 60)
    assert sure != asker.likelihood("Say whether it is bad.", "Stop your warfarin.", "You feel well.", 60)


def test_yes_is_weighed_against_no_after_the_instruction_the_context_and_the_sentence() -> None:
    told = open_model(Settings(model="demo", device="cpu", worker_concurrency=2))
    read: list[str] = []

    class Sure:
        def compare(self, token_ids: list[int], choices: Sequence[int], timeout_s: float) -> list[float]:
            assert timeout_s == 2.5
            read.append(told.text.decode(token_ids))
            yes, no = told.text.first_token("Yes"), told.text.first_token("No")
            return [{yes: -1.0, no: -2.0}.get(choice, -50.0) for choice in choices]

    engine: Any = Sure()
    found = ModelAsker(replace(told, engine=engine)).likelihood("Is it bad?", "Rest.", "You are ill.", 2.5)
    assert found == pytest.approx(0.731, abs=1e-3)
    (prompt,) = read
    assert prompt.index("Is it bad?") < prompt.index("You are ill.") < prompt.index("Rest.")


def test_medgemma_judges_and_the_demo_model_does_not() -> None:
    assert {name for name, entry in CATALOGUE.items() if entry.judges} == {
        name for name in CATALOGUE if name.startswith("medgemma")
    }
