"""Small Gemma 3 models with random weights, and a small tokenizer: the real classes, made at once."""

from functools import lru_cache

import torch
from transformers import Gemma3ForCausalLM, Gemma3ForConditionalGeneration, GemmaTokenizer, PreTrainedModel

from models.demo.shape import model_config
from models.demo.tokenizer import train_tokenizer

#: Attention of every other layer reaches this far back, in tokens: short, so that tests pass it.
WINDOW = 24
_LINES = [
    "What is the flu? The flu is an infection of the nose, throat and lungs.",
    "Rest, drink enough and take paracetamol 500 mg if you need it. See a doctor when it lasts.",
    "You are a helpful medical assistant. You provide information, not diagnosis.",
] * 20


@lru_cache
def tiny_tokenizer() -> GemmaTokenizer:
    """The demo model's kind of tokenizer, learnt from a few lines."""
    return train_tokenizer(_LINES)


def tiny_model(*, text_only: bool = False, seed: int = 0) -> PreTrainedModel:
    """A Gemma 3 in float32, two of its four layers sliding, whose answers vary from prompt to prompt."""
    config = model_config(len(tiny_tokenizer()))
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 64, 128, 4
    text.num_key_value_heads = 2
    text.layer_types = ["sliding_attention", "full_attention"] * 2
    text.sliding_window = WINDOW
    config.vision_config.num_hidden_layers = 1
    torch.manual_seed(seed)
    model = Gemma3ForCausalLM(text) if text_only else Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)  # flat logits would hide a wrong cache behind one likeliest token
    model.generation_config.eos_token_id = [1, 6]
    model.generation_config.pad_token_id = 0
    return model.requires_grad_(False).eval()
