"""The demo model's tokenizer: BPE with byte fallback, Gemma's special tokens and Gemma's chat template.

Knows nothing of questions, answers or pictures; it is handed lines of text and learns their pieces.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import GemmaTokenizer

#: In the order of their ids: ids are part of the model's configuration.
SPECIAL_TOKENS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<image_soft_token>",
    "<end_of_image>",
)
VOCAB_SIZE = 4096
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
#: Words with the space before them, single digits, runs of newlines, single marks: no piece crosses these.
_PIECES = Regex(r"\n+|▁+(?!\S)|▁?\p{L}+|▁?\p{N}|▁?[^\s▁\p{L}\p{N}]")


def chat_template() -> str:
    """Gemma 3's chat format as a Jinja template."""
    return (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")


def train_tokenizer(lines: Iterable[str]) -> GemmaTokenizer:
    """A tokenizer of at most ``VOCAB_SIZE`` entries learnt from ``lines``; it depends on nothing else."""
    learner = Tokenizer(BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(_PIECES, behavior="isolated")
    learner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    printable = [chr(code) for code in range(0x21, 0x7F)] + ["▁", "\n", "\n\n"]
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS, *_BYTES],
        initial_alphabet=printable,
        show_progress=False,
    )
    learner.train_from_iterator(lines, trainer)
    vocab = learner.get_vocab(with_added_tokens=True)
    return GemmaTokenizer(
        vocab=vocab,
        merges=_merges(learner),
        chat_template=chat_template(),
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
            "sot_token": "<start_of_turn>",
            "eot_token": "<end_of_turn>",
        },
    )


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
