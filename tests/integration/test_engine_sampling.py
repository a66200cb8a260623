"""Sampling inside a mixed batch: the right distribution, the right tokens left out, greedy rows untouched."""

import torch
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

from services.worker_infer.engines.sampling import (
    PerRequestSampling,
    gumbel_noise,
    keep_top_p,
    position_key,
)

DRAWS = 20_000


def draw(scores: torch.Tensor, count: int, *, temperature: float, top_p: float = 1.0) -> torch.Tensor:
    """`count` tokens from the same scores, as requests of as many seeds would get them."""
    states = [RequestState(request_id=str(seed), initial_tokens=[2]) for seed in range(count)]
    for seed, state in enumerate(states):
        state.position_offset = 7
        state.logit_processor_kwargs = {"temperature": temperature, "top_p": top_p, "seed": seed}
    return scored(scores.expand(count, -1), states).argmax(dim=-1)


def scored(scores: torch.Tensor, states: list[RequestState]) -> torch.Tensor:
    sampling = PerRequestSampling()
    storage = torch.zeros((sampling.ROWS, len(states) + 3), dtype=torch.int32)
    sampling.fill_defaults(storage)
    batch = [
        FutureRequestState(state, has_new_token=True, complete_blocks={}, query_length=1) for state in states
    ]
    arguments = sampling.prepare_tensor_args(batch, storage)
    return sampling(torch.zeros(len(states), dtype=torch.int64), scores, arguments)


def test_tokens_follow_the_softmax_of_the_scores() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0]])
    drawn = torch.bincount(draw(scores, DRAWS, temperature=0.8), minlength=6) / DRAWS
    wanted = (scores[0] / 0.8).softmax(dim=-1)
    # four standard deviations of a share of that size
    assert ((drawn - wanted).abs() < 4 * (wanted * (1 - wanted) / DRAWS).sqrt()).all()


def test_noise_is_gumbel_and_not_correlated_between_positions() -> None:
    keys = torch.tensor([position_key(3, position) for position in range(200)])
    noise = gumbel_noise(keys, 1000).double()
    assert abs(noise.mean().item() - 0.5772) < 0.01
    assert abs(noise.var().item() - 1.6449) < 0.03
    neighbours = torch.corrcoef(noise)
    assert neighbours[~torch.eye(200, dtype=torch.bool)].abs().max() < 0.2


def test_top_p_leaves_out_the_tail() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = keep_top_p(scores, torch.tensor([0.7]))
    assert kept.isfinite().tolist() == [[True, True, False, False]]
    assert set(draw(scores, 500, temperature=1.0, top_p=0.7).tolist()) == {0, 1}


def test_the_likeliest_token_stays_whatever_top_p() -> None:
    assert keep_top_p(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([1e-6])).argmax().item() == 1


def test_a_greedy_row_beside_a_sampled_one_keeps_its_scores() -> None:
    greedy = RequestState(request_id="greedy", initial_tokens=[2])
    sampled = RequestState(request_id="sampled", initial_tokens=[2])
    sampled.logit_processor_kwargs = {"temperature": 1.0, "top_p": 1.0, "seed": 5}
    scores = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    result = scored(scores, [greedy, sampled])
    assert torch.equal(result[0], scores[0])
    assert not torch.equal(result[1], scores[1])
