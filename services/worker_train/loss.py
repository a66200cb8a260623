"""The loss of a frozen output layer over the tokens that are learnt, without ever holding all their logits.

It knows nothing of rows or of how hidden states come about.
"""

import types
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from services.worker_train.batches import IGNORED

#: Logits held at a time: few enough to stay in a CPU's cache, enough to fill a GPU.
_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 28}


class _FrozenHeadLoss(torch.autograd.Function):
    """Sum of cross-entropies, and its gradient by the hidden states, which is found on the way.

    The output layer is not trained, so the gradient by its weight is never needed: a tile of logits is
    made, judged,
    turned into its gradient and dropped. (The idea of Liger's fused linear cross-entropy, Hsu et al. 2024.)
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """hidden (N, H), weight (V, H), targets (N,) → a float32 scalar."""
        rows = max(1, _LOGITS.get(hidden.device.type, 1 << 28) // weight.shape[0])
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, hidden.shape[0], rows):
            tile = slice(start, start + rows)
            logits = (hidden[tile] @ weight.T).float()
            target = targets[tile, None]
            log_sum = logits.logsumexp(dim=-1, keepdim=True)
            total += (log_sum - logits.gather(-1, target)).sum()
            if gradient is not None:
                logits.sub_(log_sum).exp_()
                logits.scatter_add_(-1, target, logits.new_full(target.shape, -1.0))
                torch.mm(logits.to(hidden.dtype), weight, out=gradient[tile])
        ctx.save_for_backward(*([gradient] if gradient is not None else []))
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None


def head_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy of the labels that count, each predicted from the state before it.

    Args:
        hidden: (B, T, H). weight: (V, H), frozen. labels: (B, T), `IGNORED` where nothing is learnt.
    """
    wanted = labels[:, 1:] != IGNORED
    loss: Tensor = cast(Any, _FrozenHeadLoss).apply(hidden[:, :-1][wanted], weight, labels[:, 1:][wanted])
    return loss


def answer_with_loss(model: PreTrainedModel) -> None:
    """Let `model(labels=…)` return the summed loss alone; a call without labels stays what it was."""
    plain = model.forward

    def forward(self: PreTrainedModel, labels: Tensor | None = None, **inputs: Any) -> Any:
        if labels is None:
            return plain(**inputs)
        hidden = self.base_model(**inputs, use_cache=False).last_hidden_state
        return head_loss(hidden, cast(Any, self).get_output_embeddings().weight, labels)

    model.forward = types.MethodType(forward, model)
