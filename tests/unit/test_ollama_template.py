"""The template that goes to Ollama with a merged model says what training and serving say."""

from typing import Any, cast

import pytest

from services.worker_train.export import OLLAMA_TEMPLATE
from tests.go_template import as_ollama_says
from tests.tiny_model import tiny_tokenizer

SYSTEM = "You are a helpful medical assistant.\nYou are brief."


def conversation(system: str, *said: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    spoken = [
        {"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(said)
    ]
    return ([{"role": "system", "content": system}] if system else []) + spoken


@pytest.mark.parametrize(
    "messages",
    [
        conversation(SYSTEM, "What is the flu?"),
        conversation("", "What is the flu?"),
        conversation(SYSTEM, "What is the flu?", "An infection.", "And {{ then }}?\nTell me."),
        conversation("", "What is the flu?", "An infection.", "And then?", "Rest.", "For long?"),
    ],
    ids=["system", "no-system", "system-several-turns", "several-turns"],
)
def test_ollama_is_given_the_prompt_that_was_learnt(messages: list[dict[str, str]]) -> None:
    tokenizer = cast(Any, tiny_tokenizer())
    learnt: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # Ollama puts the token that begins a text in front by itself
    assert as_ollama_says(OLLAMA_TEMPLATE, messages) == learnt.removeprefix(tokenizer.bos_token)


def test_an_answer_that_was_begun_is_gone_on_with() -> None:
    messages = conversation(SYSTEM, "What is the flu?", "An infection of")
    assert as_ollama_says(OLLAMA_TEMPLATE, messages).endswith("<start_of_turn>model\nAn infection of")
