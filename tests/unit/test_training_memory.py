"""Which errors of a training mean that the memory is full."""

import pytest
import torch

from services.worker_train.memory import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes."),
    ],
)
def test_a_full_memory_is_known_by_what_each_library_says(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_other_errors_of_the_device_are_not_taken_for_one() -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
