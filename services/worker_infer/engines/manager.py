"""Make the library's continuous-batching manager the way an engine needs it, round its traps.

Knows the library's insides; nothing of who asks, waits or cancels.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchProcessor,
    OutputRouter,
)
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens
from transformers.generation.continuous_batching.requests import GenerationOutput

from services.worker_infer.engines.attention import PAGED_CPU_ATTENTION
from services.worker_infer.engines.sampling import PerRequestSampling
from shared import model_shapes

# The library logs the first and last token ids of a prompt that it drops: those are a person's words.
logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)


@dataclass(frozen=True, kw_only=True)
class PagedLimits:
    """How much one engine may hold."""

    #: Longest prompt plus answer, in tokens.
    context_tokens: int
    #: Tokens in the KV cache over all requests; the library's own default would take most of the memory.
    cache_tokens: int
    #: Requests decoded at a time; more wait in the engine.
    max_running: int = 32
    #: Tokens per page of the cache.
    page_tokens: int = 32
    #: Most tokens in one forward pass: longer prompts are prefilled in several.
    batch_tokens: int = 256


class _Router(OutputRouter):
    """Hands each output on from the manager's thread, with no event loop between."""

    def __init__(self, receive: Callable[[GenerationOutput], None]) -> None:
        super().__init__()
        self._receive = receive

    def deliver(self, output: GenerationOutput) -> None:
        self._receive(output)

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        for output in outputs:
            self._receive(output)


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """What one token takes in the KV cache, over all layers; see `shared.model_shapes`."""
    return model_shapes.cache_bytes_per_token(model.config.get_text_config(), model.dtype.itemsize)


def make_manager(
    model: PreTrainedModel,
    stop_token_ids: Iterable[int],
    limits: PagedLimits,
    receive: Callable[[GenerationOutput], None],
) -> tuple[ContinuousBatchingManager, int]:
    """A manager that is not started, its cache made, and the tokens that its largest request may have.

    `receive` is called on the manager's thread with each output of a streaming request, and must be quick.

    Raises:
        MemoryError: the cache does not fit the memory.
    """
    # The manager insists on an attention it knows; the cache is then made for the one that is used.
    model.set_attn_implementation("sdpa")
    greedy: GenerationConfig = cast(Any, GenerationConfig)(
        do_sample=False, eos_token_id=sorted(stop_token_ids), max_new_tokens=1
    )
    manager: ContinuousBatchingManager = cast(Any, model).init_continuous_batching(
        generation_config=greedy,
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=limits.page_tokens,
            num_blocks=-(-limits.cache_tokens // limits.page_tokens),
            max_batch_tokens=limits.batch_tokens,
            max_requests_per_batch=limits.max_running,
            allow_block_sharing=False,
            auto_switch_to_flash=False,
        ),
    )
    manager.logit_processor = PerRequestSampling()
    manager.output_router = _Router(receive)
    if model.device.type == "cpu":
        text_only = "text_config" not in model.config.sub_configs
        model.set_attn_implementation(
            PAGED_CPU_ATTENTION if text_only else {"text_config": PAGED_CPU_ATTENTION}
        )
    manager.warmup()
    processor = cast(ContinuousBatchProcessor, manager.batch_processor)
    return manager, infer_max_single_request_tokens(processor.cache)
