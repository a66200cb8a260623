"""What the trained model says of four fixed texts, so that whoever loads the adapter can tell that it is
the same.

An adapter with keys that a server does not know is ignored without a word; comparing these figures shows it.
It knows nothing of training.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel

from services.worker_train.attention import PACKED
from services.worker_train.rows import Row
from services.worker_train.tokens import Encoder

#: Own words: no row of anybody's data.
_TEXTS = (
    ("What is hay fever?", "Hay fever is an allergy to pollen. It makes the nose run and the eyes itch."),
    ("How much water should I drink?", "Most adults need about two litres a day, and more when it is hot."),
    ("Can I take two medicines together?", "That depends on them. Please ask your doctor or pharmacist."),
    (
        "When should I see a doctor about a cough?",
        "See a doctor when it lasts over three weeks or you cough blood.",
    ),
)


@torch.no_grad()
def take_probe(model: PeftModel, tokenizer: Any, *, base_revision: str) -> dict[str, Any]:
    """The content of `probe.json`; the model goes to evaluation mode.

    `logprobs_…[i][j]` is log p(token j+1 | tokens ≤ j) of text i, in float32.
    """
    model.eval()
    token_ids, base = probe_ids(tokenizer), model.get_base_model()
    with model.disable_adapter():
        without = [logprobs(model, ids) for ids in token_ids]
    return {
        "base_revision": base_revision,
        "dtype": "nf4" if getattr(base, "is_quantized", False) else str(base.dtype).removeprefix("torch."),
        "token_ids": token_ids,
        "logprobs_base": without,
        "logprobs_adapter": [logprobs(model, ids) for ids in token_ids],
    }


def probe_ids(tokenizer: Any) -> list[list[int]]:
    """The fixed texts in Gemma's chat format."""
    encoder = Encoder(tokenizer=tokenizer, max_tokens=4096)
    return [
        encoder.encode(
            Row(messages=[{"role": "user", "content": asked}, {"role": "assistant", "content": answered}])
        ).ids.tolist()
        for asked, answered in _TEXTS
    ]


def logprobs(model: Any, ids: Sequence[int]) -> list[float]:
    """Log-probability of each token after the first, given those before it."""
    chosen = next_logprobs(model, ids).gather(-1, torch.tensor(ids)[1:, None])[:, 0]
    return [float(value) for value in chosen]


def next_logprobs(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """(len(ids) − 1, vocabulary): log-probabilities of every token after each but the last, in float32 on the
    CPU.
    """
    tokens = torch.tensor([list(ids)], device=model.device)
    packed = {"segments": [len(ids)]} if _is_packed(model) else {}
    logits: torch.Tensor = model(input_ids=tokens, **packed).logits[0, :-1].float()
    return logits.log_softmax(dim=-1).cpu()


def _is_packed(model: Any) -> bool:
    return bool(model.config.get_text_config()._attn_implementation == PACKED)
