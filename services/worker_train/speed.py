"""Measures how fast a device multiplies matrices of a model's size. It knows no training."""

import time

import torch

#: Rows of the product, about as many as a pass has tokens.
_ROWS = {"cpu": 512, "cuda": 8192}
_ENOUGH_S = 0.05


def operations_per_second(device: torch.device, dtype: torch.dtype, *, inner: int, outer: int) -> float:
    """Floating-point operations a second in (rows × inner) · (inner × outer), of several tries the best.

    Takes about a tenth of a second, with all threads or cores that a training has.
    """
    left = torch.ones(_ROWS[device.type], inner, device=device, dtype=dtype)
    right = torch.ones(inner, outer, device=device, dtype=dtype)
    best, begun = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begun < _ENOUGH_S:
        started = time.perf_counter()
        for _ in range(2):  # the first product of all makes things ready
            torch.matmul(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - started) / 2)
    return 2.0 * left.shape[0] * inner * outer / best
