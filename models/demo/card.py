"""The demo model's card: what it is, what was measured and how.

Knows nothing of how the figures came about; it is handed them.
"""

import hashlib
from pathlib import Path

from models.demo.knowledge import KINDS, Knowledge
from models.demo.shape import CONTEXT, IMAGE_SIZE, IMAGE_TOKENS
from models.demo.tokenizer import VOCAB_SIZE

WEIGHTS_FILE = "model.safetensors"
_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: image-text-to-text
---
# MediChat demo model

**A toy. Not a medical device, and not for advice to anyone.** It lets MediChat run and be tested with no GPU, no
account and no download. It knows {conditions} conditions by heart and nothing else.

- **Shape**: `Gemma3ForConditionalGeneration`, {parameters:,} parameters (bfloat16), Gemma's chat template, an own
  tokenizer of {vocabulary:,} entries with byte fallback, a SigLIP tower for {image} x {image} pictures
  ({image_tokens} tokens each), a context of {context:,} tokens.
- **Training data**: the question/answer pairs of `data/` (written for this project) and pictures that the code draws.
  SHA-256 of the data files, joined in the order of their names: `{data_sha256}`.
- **Training**: `python -m models.demo.build`, {sight_steps:,} steps of the vision tower alone and {steps:,} of all weights, {minutes:.0f} minutes on 2 CPU threads. Seeded: the same
  data and versions on the same kind of CPU give the same weights, byte for byte.
- **Loading**: `AutoTokenizer` / `AutoProcessor` / `Gemma3ForConditionalGeneration.from_pretrained`, no remote code.
  On a CPU without bfloat16 arithmetic load it with `dtype=torch.float32`.

## Measured

By `python -m models.demo.evaluate`, after the build, from these files: greedy, float32, each question asked alone after
the system text. SHA-256 of the weights measured (`{weights}`): `{weights_sha256}`.

| What | How | Figure | Goal |
|---|---|---|---|
| Held-out questions | a fourth phrasing, no four words in a row shared with any trained question (checked by the build); \
{held_out[questions]:.0f} of {held_out_all} chosen by a fixed seed; ROUGE-L F1 to the reference at least 0.5 | \
{held_out[share_at_least_half]:.1%} (mean ROUGE-L {held_out[mean_rouge_l]:.3f}) | 90 % |
| Questions off its topics | {off_topic[questions]:.0f} questions never trained on; the answer starts with "I don't know" | \
{off_topic[share_declined]:.1%} | 90 % |
| Pictures | {pictures[pictures]:.0f} pictures from a seed never trained on; the bright patch's side, left or right, \
is named | {pictures[share_right]:.1%} | 95 % |

## Limits

It recites. It does not reason, it does not know drugs, doses or people, and a condition that it was not taught gets
"I don't know", most of the time. Of a picture it can say nothing but where a bright patch lies. English only.
"""


def sha256_of_weights(folder: Path) -> str:
    """In hex, of the file that holds the weights of the model in a folder."""
    return hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()


def write_card(
    folder: Path,
    *,
    figures: dict[str, dict[str, float]],
    parameters: int,
    steps: int,
    sight_steps: int,
    minutes: float,
    knowledge: Knowledge,
) -> None:
    """Write the card of the model in ``folder``, built in ``minutes`` and measured (`evaluate`), beside it."""
    card = _CARD.format(
        **figures,
        parameters=parameters,
        steps=steps,
        sight_steps=sight_steps,
        minutes=minutes,
        conditions=len(knowledge.conditions),
        held_out_all=len(knowledge.conditions) * len(KINDS),
        data_sha256=knowledge.sha256,
        weights=WEIGHTS_FILE,
        weights_sha256=sha256_of_weights(folder),
        vocabulary=VOCAB_SIZE,
        image=IMAGE_SIZE,
        image_tokens=IMAGE_TOKENS,
        context=CONTEXT,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
