"""Choose each request's next token by its own temperature, top-p and seed inside one mixed batch.

Knows only logits and the numbers that came with a request, nothing of the cache or the engine's loop.

The library samples from one generator that the whole batch shares, so a seed would give another text with
every other neighbour in the batch. Here each row gets Gumbel noise from a counter-based hash of (seed,
position, token id), and the engine takes the largest: `argmax(logits / T + Gumbel)` is a sample of
`softmax(logits / T)` (Maddison, Tarlow and Minka, "A* Sampling", 2014, section 2). Greedy rows stay as they
are.
"""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.requests import FutureRequestState

from services.worker_infer.engines.base import Sampling

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF


def position_key(seed: int, position: int) -> tuple[int, int]:
    """Two 32-bit words for a token position of a request (mixed as in SplitMix64, Steele et al. 2014)."""
    state = (seed * 0x9E3779B97F4A7C15 + position * 0xD1342543DE82EF95 + 0x632BE59BD9B4E019) & _MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
    state ^= state >> 31
    return state >> 32, state & _MASK32


def gumbel_noise(keys: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Standard Gumbel noise [rows, vocab_size], float32, from `keys` [rows, 2], int64 below 2**32."""
    tokens = torch.arange(vocab_size, device=keys.device, dtype=torch.int64).unsqueeze(0)
    bits = _mix32((tokens * 0x9E3779B1 + keys[:, :1]) & _MASK32)
    bits = _mix32(bits ^ keys[:, 1:])
    uniform = (bits.to(torch.float64) + 0.5) / 2.0**32
    return torch.log(uniform).neg_().log_().neg_().to(torch.float32)


def _mix32(bits: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's 32-bit finaliser (Appleby, public domain), element by element on int64 below 2**32."""
    bits = ((bits ^ (bits >> 16)) * 0x85EBCA6B) & _MASK32
    bits = ((bits ^ (bits >> 13)) * 0xC2B2AE35) & _MASK32
    return bits ^ (bits >> 16)


def keep_top_p(scores: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """`scores` [rows, vocabulary], -inf but for the likeliest tokens of total probability `top_p` [rows]."""
    ordered, order = scores.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, before >= top_p.unsqueeze(-1))
    return scores.masked_fill(dropped, float("-inf"))


def next_tokens(logits: torch.Tensor, wanted: Sequence[tuple[Sampling, int]]) -> list[int]:
    """The next token of each row of `logits` [rows, vocabulary], float32.

    `wanted` has for each row how it is sampled, and the tokens that it has before the new one.
    """
    rows = [
        (sampling.temperature, sampling.top_p, *position_key(sampling.seed, position))
        for sampling, position in wanted
    ]
    floats = torch.tensor([row[:2] for row in rows], dtype=torch.float32, device=logits.device)
    keys = torch.tensor([row[2:] for row in rows], dtype=torch.int64, device=logits.device)
    found: list[int] = _drawn(logits, floats[:, 0], floats[:, 1], keys).argmax(dim=-1).tolist()
    return found


def _drawn(
    scores: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, keys: torch.Tensor
) -> torch.Tensor:
    """Scores [rows, vocabulary] whose largest entry is the token to take; greedy rows as they are.

    Args:
        temperature: [rows]; `top_p` likewise.
        keys: [rows, 2], as for `gumbel_noise`; read only where the temperature is above 0.
    """
    sampled = torch.nonzero(temperature > 0).squeeze(-1)
    if sampled.numel() == 0:
        return scores
    chosen = scores[sampled] / temperature[sampled].unsqueeze(-1)
    if bool((top_p[sampled] < 1.0).any()):
        chosen = keep_top_p(chosen, top_p[sampled])
    return scores.index_copy(0, sampled, chosen + gumbel_noise(keys[sampled], scores.shape[-1]))


class PerRequestSampling(ContinuousBatchingLogitsProcessorList):
    """Stands in for the library's processors in a manager that takes the largest score (`do_sample=False`).

    A request's `logit_processor_kwargs` carry `temperature`, `top_p` and `seed`; without them it is greedy.
    """

    #: int32 rows per batch: temperature and top_p as float bits, and the two words of the position key.
    ROWS = 4

    def __init__(self) -> None:
        super().__init__(LogitsProcessorList())
        self.tensors_required = self.ROWS
        self.do_processing = True

    def check_kwargs(self, kwargs: dict[str, float | int]) -> None:
        """All values were checked when the request was made."""

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Zero bits are temperature 0, that is greedy."""
        int32_tensor.zero_()

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: torch.Tensor
    ) -> torch.Tensor:
        """Write the parameters of the rows that get a new token into `arg_storage` [ROWS, columns], int32."""
        floats: list[tuple[float, float]] = []
        keys: list[tuple[int, int]] = []
        for future in requests_in_batch:
            if future.has_new_token:
                wanted = future.state.logit_processor_kwargs
                temperature = wanted.get("temperature", 0.0)
                floats.append((temperature, wanted.get("top_p", 1.0)))
                # position_offset counts the tokens up to and with this step's, so a request that is
                # prefilled again (cache pressure, resume) draws the same noise at the same place.
                position = future.state.position_offset
                keys.append(position_key(wanted["seed"], position) if temperature else (0, 0))
        count = len(keys)
        if count:
            float_bits = torch.tensor(floats, dtype=torch.float32).view(torch.int32)
            key_bits = torch.tensor(keys, dtype=torch.int64).to(torch.int32)
            arg_storage[:, :count] = torch.cat((float_bits, key_bits), dim=1).T.to(arg_storage.device)
        return arg_storage

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, logits_processor_args: torch.Tensor
    ) -> torch.Tensor:
        """Scores [rows, vocabulary] whose largest entry is the token to take; `input_ids` is not read."""
        arguments = logits_processor_args[:, : scores.shape[0]]
        floats = arguments[:2].view(torch.float32)
        return _drawn(scores, floats[0], floats[1], arguments[2:4].T.to(torch.int64) & _MASK32)
