"""What PyTorch needs for the same product, on weights that were dequantised before, and Triton for MXFP4 experts."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from .measurement import time_call

# Calls walk through at least this much memory, as those of the kernel do.
_ROTATION_BYTES = 128 << 20


class Baseline:
    """Times of one product on one device, each with weights from outside the caches.

    Attributes:
        name: library, version, function and type of the weights.
        note: what was left out, and why; empty when nothing was.
    """

    def __init__(self, torch: Any, device: str, name: str, call: Callable[[int], Any]) -> None:
        self.name, self.note = name, ""
        self._torch, self._call = torch, call
        self._time = self._time_on_gpu if device == "cuda" else self._time_on_cpu
        self._index = itertools.count()
        self._flush = (
            torch.ones(1 << 28, dtype=torch.float32, device=device) if device == "cuda" else None
        )

    def run(self, num_calls: int) -> list[float]:
        """Seconds of each of ``num_calls`` calls."""
        return [self._time() for _ in range(num_calls)]

    def _time_on_cpu(self) -> float:
        index = next(self._index)
        return time_call(lambda: self._call(index))

    def _time_on_gpu(self) -> float:
        begin, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.sum()  # empties the L2 cache, and gives the host time for the launch
        begin.record()
        self._call(next(self._index))
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def make_baseline(kernel_case: Any, work: Any, backend: str) -> Baseline | None:
    """The fastest way of PyTorch and Triton; None without PyTorch or for a kernel that it does not have."""
    is_expert = kernel_case.kernel.startswith("expert_")
    if not is_expert and kernel_case.kernel not in ("gemm", "router_logits"):
        return None  # no attention with sinks, no choices
    try:
        import torch
    except ImportError:
        return None
    device = "cuda" if backend == "cuda" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        return None
    if device == "cpu":
        torch.set_num_threads(1)  # as the kernel
    dtypes = (torch.bfloat16,) if device == "cuda" else (torch.float32, torch.bfloat16)
    if kernel_case.kernel == "router_logits":
        dtypes = (torch.float32,)  # the choice of experts is not to change

    ways = [partial(_make, torch, device, dtype, kernel_case, work) for dtype in dtypes]
    note = ""
    if device == "cuda" and is_expert:
        make_triton = partial(_make_triton, torch, device, kernel_case, work)
        note = _why_no_triton(torch, device) or _why_not(lambda: make_triton(0).run(3))
        ways += [] if note else [make_triton]
    best = min(ways, key=lambda way: min(way(0).run(3)[1:])) if len(ways) > 1 else ways[0]
    baseline = best(_ROTATION_BYTES)
    baseline.note = note
    return baseline


@functools.cache
def _why_no_triton(torch: Any, device: str) -> str:
    """Why Triton is not measured on this device; empty when it is."""

    def try_it() -> None:
        from . import kernel_triton

        if not kernel_triton.is_right(torch, device):
            raise ArithmeticError("wrong results of a small case")

    return _why_not(try_it)


def _why_not(trial: Callable[[], Any]) -> str:
    """Why Triton is left out; empty when ``trial`` of it works.

    It compiles for the device, with the host's compiler and Python's headers, and writes a cache:
    whatever of that fails is no reason to measure nothing.
    """
    try:
        trial()
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        return f"without Triton: {type(error).__name__}: {first}"
    return ""


def _expert_shape(kernel_case: Any, work: Any) -> tuple[int, int, int, int]:
    """Active experts, rows, k and tokens per expert."""
    is_down = kernel_case.kernel.startswith("expert_down")
    rows = kernel_case.hidden_size if is_down else 2 * kernel_case.width
    k = kernel_case.width if is_down else kernel_case.hidden_size
    batch = work.num_active_experts
    return batch, rows, k, math.ceil(kernel_case.num_tokens * kernel_case.experts_per_token / batch)


def _make_triton(
    torch: Any, device: str, kernel_case: Any, work: Any, rotation_bytes: int
) -> Baseline:
    from . import kernel_triton

    batch, rows, k, columns = _expert_shape(kernel_case, work)
    first = kernel_triton.random_experts(torch, (batch, rows, k), device)
    copies = rotation_bytes // sum(part.numel() for part in first)
    experts = [first, *(tuple(part.clone() for part in first) for _ in range(copies))]
    x = torch.randn((batch, columns, k), dtype=torch.bfloat16, device=device)
    y = torch.empty((batch, columns, rows), dtype=torch.bfloat16, device=device)

    def call(index: int) -> None:
        kernel_triton.multiply_experts(*experts[index % len(experts)], x, y)

    return Baseline(torch, device, kernel_triton.NAME, call)


def _make(
    torch: Any, device: str, dtype: Any, kernel_case: Any, work: Any, rotation_bytes: int
) -> Baseline:
    if kernel_case.kernel.startswith("expert_"):
        *shape, columns = _expert_shape(kernel_case, work)
        shape, product = tuple(shape), "bmm"
    else:
        is_router = kernel_case.kernel == "router_logits"
        shape = (kernel_case.num_experts, kernel_case.hidden_size)
        shape = shape if is_router else (kernel_case.rows, kernel_case.k)
        columns, product = kernel_case.num_tokens, "linear"
    num_bytes = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    weights = [torch.randn(shape, dtype=dtype, device=device)]
    weights += [weights[0].clone() for _ in range(rotation_bytes // num_bytes)]
    if product == "bmm":
        x = torch.randn((shape[0], shape[2], columns), dtype=dtype, device=device)

        def call(index: int) -> Any:
            return torch.bmm(weights[index % len(weights)], x)
    else:
        x = torch.randn((columns, shape[1]), dtype=dtype, device=device)

        def call(index: int) -> Any:
            return torch.nn.functional.linear(x, weights[index % len(weights)])

    name = f"torch {torch.__version__} {product} {str(dtype).removeprefix('torch.')}"
    return Baseline(torch, device, name, call)
