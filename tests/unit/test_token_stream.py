"""The stream between an engine and the thread that drains it."""

import time

import pytest

from services.worker_infer.engines.base import FinishReason, TokenStream
from services.worker_infer.engines.errors import EngineCrashed


class Producer:
    """An engine's side: remembers how it was told to end."""

    def __init__(self, deadline: float | None = None) -> None:
        self.ended: list[FinishReason] = []
        self.stream = TokenStream(deadline, self.end)

    def end(self, reason: FinishReason) -> None:
        self.ended.append(reason)
        self.stream.finish(reason)


def test_all_tokens_that_are_ready_come_at_once() -> None:
    producer = Producer()
    for token_ids in ([1], [2, 3], [4]):
        producer.stream.push(token_ids)
    producer.stream.finish(FinishReason.STOP)
    assert list(producer.stream) == [[1, 2, 3, 4]]
    assert producer.stream.finish_reason is FinishReason.STOP


def test_the_deadline_holds_even_when_tokens_are_always_ready() -> None:
    producer = Producer(deadline=time.monotonic())
    producer.stream.push([1])
    assert list(producer.stream) == [[1]]
    assert producer.ended == [FinishReason.DEADLINE]


def test_tokens_before_a_crash_are_given_out_first() -> None:
    producer = Producer()
    producer.stream.push([1])
    producer.stream.finish(EngineCrashed("crashed"))
    assert next(producer.stream) == [1]
    with pytest.raises(EngineCrashed):
        next(producer.stream)


def test_closing_after_the_end_cancels_nothing() -> None:
    producer = Producer()
    producer.stream.finish(FinishReason.LENGTH)
    with producer.stream as stream:
        assert list(stream) == []
    assert producer.ended == []
