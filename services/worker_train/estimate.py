"""Judges beforehand what a training, or an evaluation, takes of the memory, and how long a training takes. It
reads no weights and no words.

The terms are those of a LoRA step: the frozen base, the adapter with its gradients and moments, what the
backward pass needs of the largest pass of the run (which is known, as the order of the rows is), or where
that is more the work of a layer on the largest pass over the rows held out, one tile of logits, and what
Python and its libraries take. Constants were fitted to measured peaks; tests hold the result to within a
factor.
"""

from dataclasses import asdict, dataclass
from typing import Any

from services.worker_train.child import Refused
from shared.training.recipe import Optimiser, Recipe

_MB = 1e6
_GB = 1e9
#: Bytes that a weight takes in 4 bits, with its scales.
_NF4_BYTES = 0.53
#: Bytes of a weight's two moments.
_MOMENTS = {
    Optimiser.ADAMW: 8,
    Optimiser.PAGED_ADAMW: 8,
    Optimiser.ADAMW_8BIT: 2,
    Optimiser.PAGED_ADAMW_8BIT: 2,
}
#: Python with its libraries, or a CUDA context with cuBLAS's workspace.
_RUNTIME = {"cpu": 750 * _MB, "cuda": 900 * _MB}
#: How much more than a pass takes is held for passes after some twenty of various lengths: a CPU's allocator
#: cannot always reuse the pieces that those of other lengths left. A GPU's is fitted as it is.
_SCATTERED = {"cpu": 1.3, "cuda": 1.0}
#: Tile of logits, see loss.py, in logits; a few copies live at a time.
_TILE = {"cpu": 1 << 20, "cuda": 1 << 28}
_TILE_BYTES = 12
#: Share of the speed of a single product of matrices that training reaches.
_REACHED = 0.6
#: How much longer a step takes with 4-bit weights, which are unpacked each time, and with DoRA.
_NF4_SLOWER, _DORA_SLOWER = 1.33, 2.0


@dataclass(frozen=True, kw_only=True)
class Tower:
    """The sizes of the vision tower that matter; its weights are among the model's."""

    #: Of one picture; each goes through the tower as a token does through the language model.
    patches: int
    layers: int
    hidden: int
    intermediate: int

    @classmethod
    def of(cls, config: Any) -> "Tower | None":
        """From a transformers configuration; None for a model that reads no pictures."""
        vision = getattr(config, "vision_config", None)
        if vision is None:
            return None
        return cls(
            patches=(vision.image_size // vision.patch_size) ** 2,
            layers=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
        )

    @property
    def adapter_per_rank(self) -> int:
        """Weights of a rank-1 adapter on every linear layer."""
        return self.layers * (4 * 2 * self.hidden + 2 * (self.hidden + self.intermediate))


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The sizes of the model that matter: the language model's, and its vision tower."""

    parameters: int
    embedding: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tower: Tower | None = None

    @classmethod
    def of(cls, config: Any, parameters: int) -> "Shapes":
        """From a transformers configuration."""
        text = config.get_text_config()
        return cls(
            parameters=parameters,
            embedding=text.vocab_size * text.hidden_size,
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            vocabulary=text.vocab_size,
            tower=Tower.of(config),
        )

    @property
    def adapter_per_rank(self) -> int:
        """Weights of a rank-1 adapter on every linear layer of the language model."""
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = (self.hidden + query) * 2 + (self.hidden + keys) * 2
        return self.layers * (attention + 3 * (self.hidden + self.intermediate))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a training is judged to take."""

    memory_mb: float
    free_mb: float
    total_mb: float
    device: str
    seconds: float

    def fields(self) -> dict[str, Any]:
        """For the `estimate` event."""
        return asdict(self)


class DoesNotFit(Refused):
    """The training needs more memory than the device has."""

    def __init__(self, estimate: Estimate, recipe: Recipe) -> None:
        ways = [
            way
            for way, open_to_it in (
                ("quantisation: nf4", recipe.quantisation == "none"),
                ("gradient_checkpointing: true", not recipe.gradient_checkpointing),
                ("a smaller batch_size with more accumulation", recipe.batch_size > 1),
                ("a smaller max_tokens", recipe.max_tokens > 512),
                ("processes: 1", estimate.device == "cpu" and recipe.processes > 1),
                ("a smaller model", True),
            )
            if open_to_it
        ]
        super().__init__(
            "does-not-fit",
            f"This needs about {estimate.memory_mb / 1000:.1f} GB, and the {estimate.device} has "
            f"{estimate.total_mb / 1000:.1f} GB in all. Try {'; or '.join(ways)}.",
        )


def estimate(
    recipe: Recipe,
    shapes: Shapes,
    *,
    largest_pass: int,
    longest_row: int,
    largest_look: int,
    longest_held_out: int,
    pictures: int,
    tokens: int,
    look_tokens: int,
    device: str,
    weight_bytes: int,
    free: int,
    total: int,
    speed: float,
) -> Estimate:
    """Judge a training.

    Args:
        largest_pass: most tokens in one pass, padding included.
        longest_row: most tokens in one row.
        largest_look, longest_held_out: the same of the rows held out; 0 without any.
        pictures: most pictures in one pass.
        tokens: tokens of the whole training, over all its steps.
        look_tokens: the same of all its looks at the rows held out; 0 without any.
        device: "cpu" or "cuda".
        weight_bytes: of one number of the arithmetic, 2 or 4.
        speed: operations a second of one product of matrices of this model on this device (speed.py).
        free: bytes free on the device. total: bytes in all.

    Processes have a GPU each, and share the memory and the arithmetic of a CPU.
    """
    tower = shapes.tower
    adapter = shapes.adapter_per_rank * recipe.r
    packed = recipe.packing != "off" and not pictures
    activations = _activation_bytes(
        recipe, shapes, largest_pass, longest_row, weight_bytes, packed=packed, device=device
    )
    if tower is not None:
        adapter += tower.adapter_per_rank * recipe.r if recipe.target == "all-linear" else 0
        activations += _tower_bytes(recipe, tower, pictures, weight_bytes)
    # a look at the rows held out keeps nothing for a way back, but may be at longer ones, and at many of them
    activations = max(activations, _look_bytes(shapes, largest_look, longest_held_out, weight_bytes))
    needed = (
        _base_bytes(shapes, weight_bytes, nf4=recipe.quantisation == "nf4")
        + adapter * (8 + _MOMENTS[recipe.optimiser])
        + activations * _SCATTERED[device]
        + _TILE[device] * _TILE_BYTES
        + _RUNTIME[device]
    )
    needed *= recipe.processes if device == "cpu" else 1
    passes = 8 if recipe.gradient_checkpointing else 6
    if recipe.train_on == "answers":
        # no gradient by the frozen weights: one of three matrix products is spared, but for LoRA's own
        passes -= 1
    # two operations a weight on the way there, and a look has no way back
    flops: float = (passes * tokens + 2 * look_tokens) * (shapes.parameters + adapter)
    flops *= _NF4_SLOWER if recipe.quantisation == "nf4" else 1
    flops *= _DORA_SLOWER if recipe.dora else 1
    return Estimate(
        memory_mb=round(needed / _MB, 1),
        free_mb=round(free / _MB, 1),
        total_mb=round(total / _MB, 1),
        device=device,
        seconds=round(flops / (speed * _REACHED * (recipe.processes if device == "cuda" else 1)), 1),
    )


def evaluation_bytes(
    shapes: Shapes,
    *,
    adapter_bytes: int,
    nf4: bool,
    tokens: int,
    longest_row: int,
    device: str,
    weight_bytes: int,
) -> float:
    """Bytes that an evaluation takes: its own base with the adapter, and for the pass that takes most its
    cache, one layer's work, its logits, and those of one row once more as probabilities.

    Args:
        tokens: of the pass, padding included.
        longest_row: most tokens in one row.
        device, weight_bytes: as for `estimate`.
    """
    cache = 2 * shapes.layers * shapes.kv_heads * shapes.head_dim * weight_bytes * tokens
    masks = longest_row * longest_row * weight_bytes * shapes.heads
    logits = shapes.vocabulary * (tokens * weight_bytes + longest_row * _TILE_BYTES)
    return (
        _base_bytes(shapes, weight_bytes, nf4=nf4)
        + adapter_bytes
        + cache
        + _layer_bytes(shapes, tokens, weight_bytes)
        + masks
        + logits
        + _RUNTIME[device]
    )


def _base_bytes(shapes: Shapes, weight_bytes: int, *, nf4: bool) -> float:
    if nf4:
        return shapes.embedding * weight_bytes + (shapes.parameters - shapes.embedding) * _NF4_BYTES
    return shapes.parameters * weight_bytes


def _activation_bytes(
    recipe: Recipe,
    shapes: Shapes,
    largest_pass: int,
    longest_row: int,
    weight_bytes: int,
    *,
    packed: bool,
    device: str,
) -> float:
    """What is kept for the way back: all layers' work, or each layer's input and one layer's work."""
    lora = 14 * recipe.r + (7 * shapes.hidden if recipe.dropout else 0)
    layer = _layer_bytes(shapes, largest_pass, weight_bytes, lora=lora)
    kept = shapes.hidden * weight_bytes * largest_pass
    masks = longest_row * longest_row * weight_bytes * (1 if packed else shapes.heads)
    if packed and device == "cpu":
        # attention.py keeps the weights of its blocks: of a causal sample about half of its square
        layer += largest_pass * longest_row * weight_bytes * shapes.heads / 2
    if recipe.gradient_checkpointing:
        return shapes.layers * kept + layer + masks
    return shapes.layers * layer + masks


def _look_bytes(shapes: Shapes, tokens: int, longest_row: int, weight_bytes: int) -> float:
    """What a pass without a way back takes: the larger half of a layer, and hidden states in float32."""
    query, keys = shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
    # the adapter's share of a product is there beside the product, and so is their sum
    half = max(4 * query + 4 * keys, 5 * shapes.intermediate) * weight_bytes
    masks = longest_row * longest_row * weight_bytes * shapes.heads
    return tokens * (half + 6 * shapes.hidden * 4) + masks


def _tower_bytes(recipe: Recipe, tower: Tower, pictures: int, weight_bytes: int) -> float:
    """What the vision tower keeps of a pass for the way back, as the language model does. Where it is not
    trained it keeps nothing, but for the inputs of layers that would be computed again.
    """
    patches = pictures * tower.patches
    adapted = recipe.target == "all-linear"
    lora = 6 * recipe.r + (5 * tower.hidden + tower.intermediate if recipe.dropout else 0)
    numbers = 8 * tower.hidden + 3 * tower.intermediate + (lora if adapted else 0)
    layer = numbers * weight_bytes * patches * (2 if weight_bytes == 2 else 1)
    if recipe.gradient_checkpointing:
        return tower.layers * tower.hidden * weight_bytes * patches + layer
    return (tower.layers if adapted else 1) * layer


def _layer_bytes(shapes: Shapes, tokens: int, weight_bytes: int, *, lora: int = 0) -> float:
    """One layer's work on a pass; `lora`: numbers a token that the adapter adds."""
    query, keys = shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
    # inputs and outputs of projections and norms, some of them in float32
    attention = 4 * query + 4 * keys + 8 * shapes.hidden
    feed_forward = 5 * shapes.intermediate + 8 * shapes.hidden
    return (attention + feed_forward + lora) * weight_bytes * tokens * (2 if weight_bytes == 2 else 1)
