"""Rows as tokens: the model's own format to the byte, the assistant's words learnt, and nothing else."""

import pytest
from PIL import Image
from transformers import AutoTokenizer

from services.worker_train import tokens
from services.worker_train.child import Refused
from services.worker_train.rows import Row
from services.worker_train.tokens import TEMPLATE, Sample
from shared.catalogue import CATALOGUE
from tests.tiny_model import tiny_tokenizer
from tests.tiny_training import encoder, row

_PICTURE = {"type": "image"}
CONVERSATIONS = [
    [{"role": "user", "content": " Hello "}, {"role": "assistant", "content": "Hi.\n"}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
        {"role": "assistant", "content": "Four."},
    ],
    [
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [_PICTURE, {"type": "text", "text": " What is this? "}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A patch."}]},
    ],
    [{"role": "user", "content": [{"type": "text", "text": "Look:"}, _PICTURE]}],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("prompted", [False, True])
def test_the_training_template_renders_what_the_models_own_does(messages: list[dict], prompted: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CATALOGUE["demo"].folder)
    own, training = (
        tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=prompted
        )
        for template in (None, TEMPLATE)
    )
    assert training == own


def test_it_renders_what_googles_template_does() -> None:
    from trl.chat_template_utils import gemma3_chat_template

    for messages in CONVERSATIONS:
        theirs, ours = (
            tiny_tokenizer().apply_chat_template(messages, chat_template=template, tokenize=False)
            for template in (gemma3_chat_template, TEMPLATE)
        )
        assert ours == theirs


def learnt_text(sample: Sample) -> str:
    ids = [token for token, wanted in zip(sample.ids, sample.learnt, strict=True) if wanted]
    return str(tiny_tokenizer().decode(ids))


def test_only_the_answer_and_its_end_are_learnt() -> None:
    sample = encoder().encode(row(1))
    assert learnt_text(sample) == "The flu is an infection of the nose. " * 1 + (
        "The flu is an infection of the nose.<end_of_turn>"
    )


def test_every_answer_of_a_conversation_is_learnt() -> None:
    assert learnt_text(encoder().encode(row(0, longer=True))) == (
        "The flu is an infection of the nose.<end_of_turn>Rest and drink.<end_of_turn>"
    )


def test_all_is_learnt_on_request() -> None:
    assert all(encoder(train_on_all=True).encode(row()).learnt)


def test_the_text_is_tokenised_as_when_answering() -> None:
    tokenizer = tiny_tokenizer()
    rendered = tokenizer.apply_chat_template(row().messages, tokenize=False)
    assert encoder().encode(row()).ids.tolist() == tokenizer.encode(rendered, add_special_tokens=False)


def test_a_row_without_system_text_gets_the_one_that_is_served() -> None:
    text, _ = encoder(system="Be kind.").render(row())
    assert text.startswith("<bos><start_of_turn>user\nBe kind.\n\nWhat is the flu")


def test_a_rows_own_system_text_stays() -> None:
    own = [{"role": "system", "content": "Own."}, *row().messages]
    text, _ = encoder(system="Be kind.").render(Row(messages=own))
    assert "Own." in text
    assert "Be kind." not in text


def test_a_control_token_in_a_row_is_plain_text() -> None:
    messages = [
        {"role": "user", "content": "A<end_of_turn>B"},
        {"role": "assistant", "content": "C<start_of_turn>"},
    ]
    sample = encoder().encode(Row(messages=messages))
    end = tiny_tokenizer().convert_tokens_to_ids("<end_of_turn>")
    assert sample.ids.count(end) == 2


def test_a_picture_takes_its_tokens_in_the_question() -> None:
    with_picture = Row(messages=row().messages, picture=lambda: Image.new("RGB", (8, 8)))
    sample = encoder(picture_tokens=16).encode(with_picture)
    soft = tiny_tokenizer().convert_tokens_to_ids("<image_soft_token>")
    at = [index for index, token in enumerate(sample.ids) if token == soft]
    assert len(at) == 16
    assert not any(sample.learnt[index] for index in at)


def test_where_all_is_learnt_a_picture_is_not() -> None:
    with_picture = Row(messages=row().messages, picture=lambda: Image.new("RGB", (8, 8)))
    sample = encoder(picture_tokens=16, train_on_all=True).encode(with_picture)
    assert "image" not in learnt_text(sample)
    assert learnt_text(sample).startswith("<bos><start_of_turn>user\n")
    assert sample.learnt.count(0) == 16 + 2


def test_a_row_that_is_too_long_is_left_out_and_never_cut() -> None:
    whole = [encoder().encode(row(number)) for number in (2, 0)]
    limit = len(whole[1].ids)
    assert limit < len(whole[0].ids)
    assert encoder(max_tokens=limit).encode_all([row(2), row(0)]) == [whole[1]]
    assert encoder(max_tokens=limit - 1).encode_all([row(2), row(0)]) == []


def test_a_tokenizer_without_an_end_of_turn_is_refused() -> None:
    from transformers import GemmaTokenizer

    tokenizer = GemmaTokenizer(vocab={"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "a": 4}, merges=[])
    with pytest.raises(Refused, match="never learn to stop"):
        encoder(tokenizer=tokenizer).encode_all([row()])


def test_rows_that_do_not_teach_where_an_answer_ends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = '{{- said(turn["content"]) ~ "<end_of_turn>" -}}\n        {%- endgeneration -%}'
    unmarked = '{{- said(turn["content"]) -}}{%- endgeneration -%}{{- "<end_of_turn>" -}}'
    assert spoken in TEMPLATE
    monkeypatch.setattr(tokens, "TEMPLATE", TEMPLATE.replace(spoken, unmarked))
    with pytest.raises(Refused, match="never learn to stop"):
        encoder().encode_all([row()])


def test_pictures_for_a_model_that_reads_none_are_refused() -> None:
    with_picture = Row(messages=row().messages, picture=lambda: Image.new("RGB", (8, 8)))
    with pytest.raises(Refused, match="reads none"):
        encoder().encode_all([with_picture])
