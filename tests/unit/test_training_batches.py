"""The order of rows and how they lie together: even passes, the same step however dealt, isolated samples."""

from collections.abc import Callable

import pytest
import torch

from services.worker_train.attention import attend_by_kernel, attend_in_blocks, packed_attention
from services.worker_train.base import pack
from services.worker_train.batches import IGNORED, PackedCollator, PaddedCollator, StepSampler, as_dataset
from services.worker_train.loss import answer_with_loss, head_loss
from tests.tiny_model import WINDOW, tiny_model
from tests.tiny_training import encoder, row

Attend = Callable[..., torch.Tensor]

LENGTHS = [5, 90, 14, 33, 60, 7, 21, 48, 3, 77, 11, 29, 42, 9, 65, 18]


def sampler(
    batch_size: int = 2, passes: int = 4, *, packed: bool = True, lengths: list[int] = LENGTHS
) -> StepSampler:
    return StepSampler(lengths, batch_size=batch_size, passes=passes, seed=1, packed=packed)


def test_an_epoch_has_every_row_once() -> None:
    assert sorted(sampler(lengths=LENGTHS[:13])) == list(range(13))


def test_epochs_differ_and_repeat_by_number() -> None:
    order = sampler()
    first = list(order)
    order.set_epoch(1)
    assert list(order) != first
    order.set_epoch(0)
    assert list(order) == first


def test_the_rows_of_a_step_stay_when_the_batch_is_halved() -> None:
    whole, halved = list(sampler(2, 4)), list(sampler(1, 8))
    assert [set(step) for step in (whole[:8], whole[8:])] == [set(step) for step in (halved[:8], halved[8:])]


def test_packed_passes_are_of_like_size() -> None:
    order = list(sampler(batch_size=4, passes=2))
    sizes = [sum(LENGTHS[index] for index in order[start : start + 4]) for start in range(0, 16, 4)]
    for one, other in (sizes[:2], sizes[2:]):
        assert abs(one - other) < 25


def test_padded_passes_hold_rows_of_like_length() -> None:
    order = list(sampler(packed=False))
    for start in range(0, 16, 8):
        step = [LENGTHS[index] for index in order[start : start + 8]]
        assert step == sorted(step, reverse=True)


@pytest.mark.parametrize(("batch_size", "passes"), [(4, 1), (2, 2)])
def test_padding_is_little_however_few_passes_a_step_has(batch_size: int, passes: int) -> None:
    lengths = [10 + number * 37 % 400 for number in range(34)]
    order = list(sampler(batch_size, passes, packed=False, lengths=lengths))
    assert sorted(order) == list(range(34))
    steps = [[lengths[index] for index in order[start : start + 4]] for start in range(0, 34, 4)]
    padded = sum(max(step) * len(step) for step in steps[:8])
    assert padded < 1.2 * sum(map(sum, steps[:8]))
    longest = [max(step) for step in steps[:8]]
    assert longest not in (sorted(longest), sorted(longest, reverse=True)), "steps are in random order"


def test_the_order_of_padded_rows_depends_on_nothing_but_seed_and_epoch() -> None:
    order, halved = (sampler(*shape, packed=False, lengths=LENGTHS * 3) for shape in ((2, 2), (1, 4)))
    first = list(order)
    order.set_epoch(1)
    assert list(order) != first
    order.set_epoch(0)
    assert list(order) == list(halved) == first


def test_the_largest_pass_is_known_beforehand() -> None:
    order = sampler()
    sizes = [sum(LENGTHS[index] for index in list(order)[start : start + 2]) for start in range(0, 16, 2)]
    assert order.largest_pass() == max(sizes)


def test_the_steps_of_an_epoch_count_a_short_last_one() -> None:
    assert (sampler(lengths=LENGTHS[:8]).steps(), sampler(lengths=LENGTHS[:9]).steps()) == (1, 2)


def samples() -> list[dict]:
    return list(as_dataset([encoder().encode(row(number)) for number in (0, 5, 9)]))


def summed_loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    return model(**batch)


@pytest.fixture
def packed_model() -> torch.nn.Module:
    model = tiny_model()
    pack(model)
    answer_with_loss(model)
    return model


def test_packed_samples_have_the_loss_that_they_have_alone(packed_model: torch.nn.Module) -> None:
    rows = samples()
    assert max(len(sample["input_ids"]) for sample in rows) > WINDOW
    alone = [float(summed_loss(packed_model, PackedCollator()([sample]))) for sample in rows]
    assert float(summed_loss(packed_model, PackedCollator()(rows))) == pytest.approx(sum(alone), rel=1e-5)


def test_packing_gives_the_loss_of_padding(packed_model: torch.nn.Module) -> None:
    rows = samples()
    padded = tiny_model()
    answer_with_loss(padded)
    expected = float(summed_loss(padded, PaddedCollator(pad_id=0)(rows)))
    assert float(summed_loss(packed_model, PackedCollator()(rows))) == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_transformers_own(packed_model: torch.nn.Module) -> None:
    (sample, *_) = samples()
    batch = PackedCollator()([sample])
    logits = tiny_model()(input_ids=batch["input_ids"]).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(
        logits, batch["labels"][0, 1:], ignore_index=IGNORED, reduction="sum"
    )
    assert float(summed_loss(packed_model, batch)) == pytest.approx(float(expected), rel=1e-5)


def test_the_first_token_of_a_packed_sample_is_not_predicted() -> None:
    fresh = as_dataset([encoder(train_on_all=True).encode(row(number)) for number in (0, 5, 9)])
    batch = PackedCollator()(list(fresh))
    assert (batch["labels"][batch["position_ids"] == 0] == IGNORED).all()


def test_the_gradient_of_the_loss_is_autograds() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(1, 30, 8, requires_grad=True), torch.randn(50, 8)
    labels = torch.randint(0, 50, (1, 30))
    labels[0, 5:9] = IGNORED
    (ours,) = torch.autograd.grad(head_loss(hidden, weight, labels), hidden)
    plain = torch.nn.functional.cross_entropy(
        (hidden[0, :-1] @ weight.T), labels[0, 1:], ignore_index=IGNORED, reduction="sum"
    )
    (theirs,) = torch.autograd.grad(plain, hidden)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("window", [None, 4, 150])
@pytest.mark.parametrize("segments", [[7, 5], [300, 1, 129]])
def test_attention_sees_its_own_segment_only(window: int | None, segments: list[int]) -> None:
    torch.manual_seed(0)
    total = sum(segments)
    shapes = ((1, 4, total, 8), (1, 2, total, 8), (1, 2, total, 8))
    query, key, value = states = [torch.randn(shape, requires_grad=True) for shape in shapes]
    found, _ = packed_attention(
        torch.nn.Module(), *states, None, scaling=0.3, segments=segments, sliding_window=window
    )
    ago = torch.arange(total)[:, None] - torch.arange(total)[None]
    owner = torch.repeat_interleave(torch.arange(len(segments)), torch.tensor(segments))
    seen = (ago >= 0) & (owner[:, None] == owner[None])
    if window is not None:
        seen &= ago < window
    scores = (query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.3).masked_fill(~seen, -torch.inf)
    expected = (scores.softmax(-1) @ value.repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    for ours, theirs in zip(
        *(torch.autograd.grad(attended, states, upstream) for attended in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("window", [None, 150])
def test_a_kernel_of_torch_sees_what_blocks_of_queries_see(window: int | None) -> None:
    torch.manual_seed(0)
    states = [torch.randn(1, heads, 300, 8) for heads in (4, 2, 2)]
    in_blocks, by_kernel = (attend(*states, 0.3, window) for attend in (attend_in_blocks, attend_by_kernel))
    torch.testing.assert_close(by_kernel, in_blocks)


@pytest.mark.parametrize("attend", [attend_in_blocks, attend_by_kernel])
@pytest.mark.parametrize("window", [None, 150])
def test_attention_in_bfloat16_is_near_that_in_float32(attend: Attend, window: int | None) -> None:
    """By norm: 0.002 to 0.005 were measured."""
    torch.manual_seed(0)
    states = [torch.randn(1, heads, 300, 64).bfloat16() for heads in (4, 2, 2)]
    upstream = torch.randn(1, 4, 300, 64).bfloat16()

    def attended(attend: Attend, dtype: torch.dtype) -> list[torch.Tensor]:
        own = [state.to(dtype, copy=True).requires_grad_() for state in states]
        found = attend(*own, 0.125, window)
        return [found, *torch.autograd.grad(found, own, upstream.to(dtype))]

    pairs = zip(attended(attend, torch.bfloat16), attended(attend_in_blocks, torch.float32), strict=True)
    for rounded, exact in pairs:
        assert (rounded.float() - exact).norm() < 0.006 * exact.norm()
