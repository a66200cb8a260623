"""A model of the demo's shape, with random weights, whose answers are as long as asked for.

Long answers are what faults can fall into; what they say does not matter.
"""

from pathlib import Path

import torch

from models.demo.build import save
from models.demo.shape import new_model
from tests.tiny_model import tiny_tokenizer


def write_endless_model(folder: Path, layers: int = 6) -> Path:
    """Write it to ``folder``; returns that. With fewer layers, up to the demo's 6, a token takes less long.

    With tied weights a token whose embedding is zero has the logit 0 and never wins.
    """
    tokenizer = tiny_tokenizer()
    torch.manual_seed(3)
    model = new_model(len(tokenizer))
    with torch.no_grad():
        for token in model.generation_config.eos_token_id:
            model.get_input_embeddings().weight[token].zero_()
    text, language = model.config.get_text_config(), model.model.language_model
    text.num_hidden_layers, text.layer_types = layers, text.layer_types[:layers]
    language.layers = language.layers[:layers]
    save(model, tokenizer, folder)
    return folder
