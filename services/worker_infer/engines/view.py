"""Make views of a model: other modules over the same weights, one of them with an adapter's matrices.

Knows modules, weights and PEFT; nothing of requests, and not where an adapter comes from.
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from shared.errors import AdapterRefused
from shared.training.adapter_files import WEIGHTS, AdapterFiles

#: What PEFT writes before each layer's name.
_PREFIX = "base_model.model."
#: Positions whose logits are held at a time: a vocabulary of 262,144 takes 1 MiB for each.
_SCORED_AT_ONCE = 256


def make_view(model: PreTrainedModel) -> PreTrainedModel:
    """Modules of its own over the weights of `model`: every parameter and buffer is the same tensor."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        # how 4-bit weights are read back (bitsandbytes); tensors as well, though no buffers
        state = getattr(module, "quant_state", None)
        if state is not None:
            shared[id(state)] = state
    return copy.deepcopy(model, memo=shared)


def linear_layers(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """(in, out) features of every linear layer, quantised ones too, by name: what an adapter can change."""
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def put_adapter(view: PreTrainedModel, files: AdapterFiles) -> int:
    """Change the view by a checked adapter, in the view's number format; returns the bytes it takes.

    The layers are those that the file holds matrices for; what the configuration says of targets is not read.

    Raises:
        AdapterRefused: a weight is not a finite number, or has no place in the model.
    """
    # here, because PEFT takes a second or two to load, and a worker without adapters starts sooner
    from peft import LoraConfig, inject_adapter_in_model

    config = cast(Any, LoraConfig)(
        r=files.config.r,
        lora_alpha=files.config.lora_alpha,
        use_rslora=files.config.use_rslora,
        use_dora=files.config.use_dora,
        target_modules=list(files.layers),
        inference_mode=True,
    )
    weights = load_file(files.folder / WEIGHTS, device=str(view.device))
    if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise AdapterRefused("The adapter holds weights that are no finite numbers: train it again.")
    inject_adapter_in_model(config, view)
    # PEFT's own loader asks for the model's state_dict, which rewrites shared 4-bit weights on a CPU
    named = {name.removeprefix(_PREFIX).removesuffix(".weight"): weight for name, weight in weights.items()}
    size = 0
    for name, parameter in view.named_parameters():
        if ".lora_" in name:
            weight = named.pop(name.removesuffix(".default.weight"), None)
            if weight is None or weight.shape != parameter.shape:
                raise AdapterRefused("The adapter does not fit this base model: a weight is missing.")
            parameter.data = weight.to(view.dtype)
            parameter.requires_grad_(False)
            size += parameter.nbytes
    if named:
        raise AdapterRefused("The adapter does not fit this base model: not all of its weights have a place.")
    cast(Any, view).eval()
    return size


@torch.inference_mode()
def log_likelihoods(model: PreTrainedModel, token_ids: list[int]) -> list[float]:
    """log p(token j+1 | tokens up to j) in nats, float32, for each of `token_ids` but the last."""
    whole = cast(Any, model)
    ids = torch.tensor([token_ids], device=model.device)
    states: torch.Tensor = whole.model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    found: list[float] = []
    for part, following in zip(_parts(states), _parts(ids[0, 1:]), strict=True):
        logits = whole.lm_head(part).float().log_softmax(dim=-1)
        found += logits.gather(1, following.unsqueeze(1)).squeeze(1).tolist()
    return found


@torch.inference_mode()
def next_likelihoods(model: PreTrainedModel, token_ids: list[int], choices: Sequence[int]) -> list[float]:
    """log p(choice | token_ids) in nats, float32, for each of `choices`."""
    whole = cast(Any, model)
    ids = torch.tensor([token_ids], device=model.device)
    last: torch.Tensor = whole.model(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
    found: list[float] = whole.lm_head(last).float().log_softmax(dim=-1)[list(choices)].tolist()
    return found


def _parts(rows: torch.Tensor) -> Sequence[torch.Tensor]:
    return torch.split(rows, _SCORED_AT_ONCE)
