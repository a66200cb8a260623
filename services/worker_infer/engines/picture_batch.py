"""Answers to several prompts with pictures, computed together: one pass over all prompts, then token by
token.

Knows tensors, the cache and attention; nothing of who waits, cancels or reads. The rows are padded on the
left, so that all of them write at the same place. transformers' continuous batching cannot do it: it takes
token ids only, and is causal where Gemma 3 lets the tokens of one picture see each other.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from services.worker_infer.engines.base import GenerationRequest
from services.worker_infer.engines.sampling import next_tokens

#: The vision tower takes tens of megabytes for each picture that it reads at a time.
_PICTURES_AT_ONCE = 4
#: What the padding is; nothing sees it, and it is no picture.
_PADDING_ID = 0


class PictureBatch:
    """Rows that are computed together, on one model; each is a request with pictures. Used by one thread."""

    def __init__(self, model: PreTrainedModel, requests: Sequence[GenerationRequest]) -> None:
        """Nothing is computed yet. The prompts hold the soft tokens of their pictures, and no others."""
        self._model = cast(Any, model)
        self._requests = list(requests)
        self._width = max(len(request.prompt_token_ids) for request in requests)
        #: New tokens so far, the same for every row.
        self._given = 0
        self._cache: DynamicCache | None = None
        #: [rows, tokens in the cache], 0 at padding.
        self._mask: torch.Tensor
        #: [rows, 1], the newest tokens, which are not in the cache yet.
        self._last: torch.Tensor

    @property
    def cache_tokens(self) -> int:
        """Tokens of KV cache that it may come to hold, padding included."""
        return padded_tokens(self._requests, self._width)

    @torch.inference_mode()
    def advance(self) -> list[int]:
        """The next token of each row, whether or not it ends the row."""
        output = self._read_prompts() if self._cache is None else self._go_on()
        wanted = [
            (request.sampling, len(request.prompt_token_ids) + self._given) for request in self._requests
        ]
        self._given += 1
        tokens = next_tokens(output.logits[:, -1].float(), wanted)
        self._last = torch.tensor(tokens, device=self._model.device).unsqueeze(1)
        return tokens

    @torch.inference_mode()
    def keep(self, places: Sequence[int]) -> None:
        """Only the rows at these places go on; the others take no more memory and no more time."""
        self._requests = [self._requests[place] for place in places]
        if self._cache is not None:
            rows = torch.tensor(places, device=self._model.device)
            self._cache.batch_select_indices(rows)
            self._mask, self._last = self._mask[rows], self._last[rows]

    def _read_prompts(self) -> Any:
        device, config = self._model.device, self._model.config
        self._width = max(len(request.prompt_token_ids) for request in self._requests)
        ids = torch.full((len(self._requests), self._width), _PADDING_ID)
        self._mask = torch.zeros_like(ids)
        for row, request in enumerate(self._requests):
            start = self._width - len(request.prompt_token_ids)
            ids[row, start:] = torch.tensor(request.prompt_token_ids)
            self._mask[row, start:] = 1
        ids, self._mask = ids.to(device), self._mask.to(device)
        self._cache = DynamicCache(config=config)
        return self._model(
            input_ids=ids,
            # whose ones make the tokens of a picture see each other
            token_type_ids=ids.eq(config.image_token_id).long(),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=self._seen())},
            attention_mask=self._mask,
            position_ids=(self._mask.cumsum(dim=-1) - 1).clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def _seen(self) -> torch.Tensor:
        """[pictures, soft tokens, hidden size], what stands in the place of the soft tokens of all rows."""
        pixels = torch.from_numpy(np.concatenate([each.pixel_values for each in self._requests]))
        # ten megabytes each, and needed no longer
        self._requests = [replace(each, pixel_values=None) for each in self._requests]
        parts: Sequence[torch.Tensor] = torch.split(pixels, _PICTURES_AT_ONCE)
        seen = [self._model.model.get_image_features(part.to(self._model.device)) for part in parts]
        return torch.cat([each.pooler_output for each in seen])

    def _go_on(self) -> Any:
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        return self._model(
            input_ids=self._last,
            attention_mask=self._mask,
            position_ids=self._mask.sum(dim=-1, keepdim=True) - 1,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )


def padded_tokens(requests: Sequence[GenerationRequest], width: int = 0) -> int:
    """Tokens of KV cache that these take when computed together, prompts padded to `width` at least."""
    longest = max((len(request.prompt_token_ids) for request in requests), default=0)
    most = max((request.max_new_tokens for request in requests), default=0)
    return len(requests) * (max(width, longest) + most)
