"""The sizes of the models of the catalogue, so that what they take can be told without their files. It
counts, and builds nothing.

Fields are named as in transformers' configurations.
"""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

#: A weight in 4 bits with its scales: a byte for each 64 weights, and a float32 for each 256 of those bytes.
#: A CPU with AVX512_BF16 keeps bfloat16 scales after its first pass, which is 3 % more.
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


class TextSizes(Protocol):
    """What decides on the KV cache, of a transformers text configuration or of a `TextShape`."""

    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...


def cache_bytes_per_token(text: TextSizes, number_bytes: int) -> int:
    """What one token takes in the KV cache, over all layers; `number_bytes`: of one number in it.

    Of the cache as a whole that is what the library allocates: it turns pages into bytes by all layers,
    rounds up to sectors (the least that holds whole pages of either kind of layer: 18 MiB for MedGemma 4B in
    bfloat16 with pages of 32 tokens, 65 MiB for 27B) and adds two that no answer uses. Of one answer it is
    too much where that is longer than the window: layers of sliding attention, five of six, keep no more of
    it than the window. MedGemma 4B at 8,192 tokens takes a quarter of 8,192 times this, so that more long
    answers find room than `share_cache` counts.
    """
    return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * number_bytes


@dataclass(frozen=True, kw_only=True)
class TextShape:
    """The language model."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    #: Scores of attention are divided by its root.
    query_pre_attn_scalar: int
    #: Tokens that layers of sliding attention look back.
    sliding_window: int
    #: One layer of so many looks back to the first token.
    sliding_window_pattern: int = 6
    vocab_size: int
    max_position_embeddings: int

    @property
    def linear_weights(self) -> int:
        """Weights of the linear layers, without the output layer, which is the table of embeddings."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        each = self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size)
        return self.num_hidden_layers * each


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """The vision tower (SigLIP)."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    #: Side of the square picture, and of its patches, in pixels.
    image_size: int
    patch_size: int

    @property
    def linear_weights(self) -> int:
        """Weights of its linear layers."""
        return self.num_hidden_layers * 2 * self.hidden_size * (2 * self.hidden_size + self.intermediate_size)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A Gemma 3."""

    text: TextShape
    vision: VisionShape | None = None
    #: Tokens that one picture takes in the prompt; 0 for a model that reads none.
    image_tokens: int = 0

    def weight_bytes(self, parameters: int, number_bytes: int, *, nf4: bool) -> int:
        """Memory for so many weights: `number_bytes` each, or 4 bits for those that are quantised.

        transformers quantises every linear layer, the vision tower's too, but for the output layer. That and
        the embeddings are one matrix, which stays as it is: 42 % of what MedGemma 4B takes in 4 bits.
        """
        if not nf4:
            return parameters * number_bytes
        linear = self.text.linear_weights + (self.vision.linear_weights if self.vision else 0)
        return int(linear * _NF4_BYTES) + (parameters - linear) * number_bytes

    def config_fields(self) -> dict[str, Any]:
        """The arguments of transformers' Gemma3Config, or without a vision tower of its Gemma3TextConfig."""
        if self.vision is None:
            return asdict(self.text)
        return {
            "text_config": asdict(self.text),
            "vision_config": {**asdict(self.vision), "vision_use_head": False},
            "mm_tokens_per_image": self.image_tokens,
        }


_SIGLIP = VisionShape(
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    image_size=896,
    patch_size=14,
)
_TEXT_27B = TextShape(
    hidden_size=5376,
    intermediate_size=21504,
    num_hidden_layers=62,
    num_attention_heads=32,
    num_key_value_heads=16,
    head_dim=128,
    query_pre_attn_scalar=168,
    sliding_window=1024,
    vocab_size=262_208,
    max_position_embeddings=131_072,
)

#: The demo model's; models/demo/shape.py is what it is built by.
DEMO = ModelShape(
    text=TextShape(
        hidden_size=256,
        intermediate_size=896,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=512,
        sliding_window_pattern=3,
        vocab_size=3374,
        max_position_embeddings=2048,
    ),
    vision=VisionShape(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
    ),
    image_tokens=16,
)
GEMMA_1B = ModelShape(
    text=TextShape(
        hidden_size=1152,
        intermediate_size=6912,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        vocab_size=262_144,
        max_position_embeddings=32_768,
    )
)
GEMMA_4B = ModelShape(
    text=TextShape(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=34,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=1024,
        vocab_size=262_208,
        max_position_embeddings=131_072,
    ),
    vision=_SIGLIP,
    image_tokens=256,
)
GEMMA_27B = ModelShape(text=_TEXT_27B, vision=_SIGLIP, image_tokens=256)
GEMMA_27B_TEXT = ModelShape(text=_TEXT_27B)
