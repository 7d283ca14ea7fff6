"""What PyTorch needs for the same job, and Triton for MXFP4 experts.

Products are of weights that were dequantised before; where the device multiplies FP8, of FP8
weights, too.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from . import kernel_torch, kernel_torch_fused
from .cuda_timing import capture, time_on_gpu
from .measurement import time_call

# On a CPU calls walk through at least this much memory, as those of the kernel do.
_ROTATION_BYTES = 128 << 20
_FP8_SCALES = {"one scale": False, "a scale per row": True}  # whether it is by row
_ATTENTION = ("attention", "attention_draft")
_CHOICES = {"select_experts": "sigmoid topk sort", "route": "linear sigmoid topk sort",
            "sample_best": "argmax",
            "sample": "softmax exponential argmax",
            "sample_filtered": "topk softmax exponential argmax",
            "sample_verify": "softmax rand cumprod exponential argmax"}


class Baseline:
    """Times of one product on one device, each with weights from outside the caches.

    On a GPU the faster of plain calls and of a CUDA graph, for which the host launches all kernels
    of a call at once.

    Attributes:
        name: library, version, function and type of the weights; whether it is a graph.
        note: why it cannot be a graph; empty where it can.
    """

    def __init__(self, torch: Any, device: str, name: str, call: Callable[[int], Any]) -> None:
        self.name, self.note = name, ""
        self._call, self._index = call, itertools.count()
        self._graph: Any = None
        self._time: Callable[[Callable[[], Any]], float] = time_call
        if device == "cuda":
            flush = torch.ones(1 << 28, dtype=torch.float32, device=device)  # empties the L2 cache
            self._time = partial(time_on_gpu, torch, flush.sum)
            self._try_graph(torch)

    def run(self, num_calls: int) -> list[float]:
        """Seconds of each of ``num_calls`` calls."""
        launch = self._graph.replay if self._graph else self._call_next
        return [self._time(launch) for _ in range(num_calls)]

    def _call_next(self) -> None:
        self._call(next(self._index))

    def _try_graph(self, torch: Any) -> None:
        try:
            graph = capture(torch, self._call_next)
        except Exception as error:
            self.note = f"not as a CUDA graph: {_reason(error)}"
            return
        plain_s, graph_s = (min(self._time(launch) for _ in range(3))
                            for launch in (self._call_next, graph.replay))
        if graph_s < plain_s:
            self.name, self._graph = f"{self.name}, CUDA graph", graph


Way = Callable[[int], Baseline]  # of the bytes to walk through


def make_baseline(kernel_case: Any, work: Any, backend: str) -> tuple[Baseline | None, str]:
    """The fastest way of PyTorch and Triton, and which others were left out, and why.

    None without PyTorch, without such a kernel, and where no way works. Versions lack functions,
    devices memory; Triton compiles with the host's compiler and Python's headers, and writes a
    cache: whatever of that fails is no reason to measure nothing.
    """
    try:
        import torch
    except ImportError:
        return None, ""
    device = "cuda" if backend == "cuda" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        return None, ""
    if device == "cpu":
        torch.set_num_threads(1)  # as the kernel
    best: Baseline | None = None
    best_s, notes = math.inf, []
    for what, way in _ways(torch, device, kernel_case, work).items():
        try:
            baseline = way(0 if device == "cuda" else _ROTATION_BYTES)
            fastest_s = min(baseline.run(3)[1:])
        except Exception as error:
            notes.append(f"without {what}: {_reason(error)}")
            continue
        if fastest_s < best_s:
            best, best_s = baseline, fastest_s
    if best is not None and best.note:
        notes.append(best.note)
    return best, "; ".join(notes)


def _ways(torch: Any, device: str, kernel_case: Any, work: Any) -> dict[str, Way]:
    """By what is missing without them; none for a kernel that PyTorch does not have."""
    kernel = kernel_case.kernel
    dtypes = _dtypes(torch, device)
    if kernel in _ATTENTION:
        return {f"{how} {_name(dtype)}":
                partial(_make_attention, torch, device, dtype, how, kernel_case)
                for how in ("bmm", "sdpa") for dtype in dtypes}
    if kernel in _CHOICES:
        return {_CHOICES[kernel]: partial(_make_choice, torch, device, kernel_case)}
    if kernel == "rms_norm":
        return {f"rms_norm {_name(dtype)}": partial(_make_norm, torch, device, dtype, kernel_case)
                for dtype in dtypes}
    if kernel in kernel_torch_fused.FUSED:
        plain = {f"linear {_name(dtype)}":
                 partial(_make_fused, torch, device, dtype, None, kernel_case) for dtype in dtypes}
        make_fp8 = partial(_make_fused, torch, device, torch.bfloat16)
        return plain | _fp8_ways(make_fp8, device, kernel_case)
    if kernel == "router_logits":
        dtypes = (torch.float32,)  # the choice of experts is not to change
    elif kernel != "gemm" and not kernel.startswith("expert_"):
        return {}
    plain = {f"products in {_name(dtype)}": partial(_make, torch, device, dtype, kernel_case, work)
             for dtype in dtypes}
    if kernel == "gemm":
        return plain | _fp8_ways(partial(_make_fp8, torch, device), device, kernel_case)
    if device == "cuda" and kernel.startswith("expert_"):
        plain["Triton"] = partial(_make_triton, torch, device, kernel_case, work)
    return plain


def _fp8_ways(make: Callable[..., Baseline], device: str, kernel_case: Any) -> dict[str, Way]:
    """With weights as the checkpoint has them, on GPUs alone."""
    if device != "cuda" or kernel_case.format != "fp8_e4m3":
        return {}
    return {f"FP8 products, {label}": partial(make, label, kernel_case) for label in _FP8_SCALES}


def _dtypes(torch: Any, device: str) -> tuple[Any, ...]:
    return (torch.bfloat16,) if device == "cuda" else (torch.float32, torch.bfloat16)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def _is_triton_right(torch: Any, device: str) -> bool:
    from . import kernel_triton

    return kernel_triton.is_right(torch, device)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


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

    if not _is_triton_right(torch, device):
        raise ArithmeticError("wrong results of a small case")
    batch, rows, k, columns = _expert_shape(kernel_case, work)
    first = kernel_triton.random_experts(torch, (batch, rows, k), device)
    copies = rotation_bytes // sum(part.numel() for part in first)
    experts = [first, *(tuple(part.clone() for part in first) for _ in range(copies))]
    x = torch.randn((batch, columns, k), dtype=torch.bfloat16, device=device)
    y = torch.empty((batch, columns, rows), dtype=torch.bfloat16, device=device)

    def call(index: int) -> None:
        kernel_triton.multiply_experts(*experts[index % len(experts)], x, y)

    return Baseline(torch, device, kernel_triton.NAME, call)


def _make_attention(
    torch: Any, device: str, dtype: Any, how: str, kernel_case: Any, rotation_bytes: int
) -> Baseline:
    attend = kernel_torch.attend_sdpa if how == "sdpa" else kernel_torch.attend_bmm
    is_ring = device == "cpu" or bool(kernel_case.window_tokens)
    call = kernel_torch.make_attention(
        torch, device, dtype, attend, kernel_case, is_ring, rotation_bytes
    )
    name = f"torch {torch.__version__} {how} attention {_name(dtype)}"
    return Baseline(torch, device, name, call)


def _make_fp8(
    torch: Any, device: str, label: str, kernel_case: Any, rotation_bytes: int
) -> Baseline:
    call = kernel_torch.make_fp8(torch, device, _FP8_SCALES[label], kernel_case, rotation_bytes)
    name = f"torch {torch.__version__} _scaled_mm fp8_e4m3 x fp8_e4m3, {label}"
    return Baseline(torch, device, name, call)


def _make_fused(
    torch: Any, device: str, dtype: Any, label: str | None, kernel_case: Any, rotation_bytes: int
) -> Baseline:
    """``label``: of FP8 scales; None without FP8."""
    is_by_row = None if label is None else _FP8_SCALES[label]
    call = kernel_torch_fused.make_fused(
        torch, device, dtype, is_by_row, kernel_case, rotation_bytes
    )
    product = f"linear {_name(dtype)}"
    if label is not None:
        product = f"_scaled_mm fp8_e4m3 x fp8_e4m3, {label}, activations rounded in the call"
    name = f"torch {torch.__version__} {kernel_torch_fused.FUSED[kernel_case.kernel]} and {product}"
    return Baseline(torch, device, name, call)


def _make_norm(
    torch: Any, device: str, dtype: Any, kernel_case: Any, rotation_bytes: int
) -> Baseline:
    call = kernel_torch_fused.make_norm(torch, device, dtype, kernel_case, rotation_bytes)
    return Baseline(torch, device, f"torch {torch.__version__} rms_norm {_name(dtype)}", call)


def _make_choice(torch: Any, device: str, kernel_case: Any, rotation_bytes: int) -> Baseline:
    call = kernel_torch.make_choice(torch, device, kernel_case, rotation_bytes)
    name = f"torch {torch.__version__} {_CHOICES[kernel_case.kernel]} float32"
    return Baseline(torch, device, name, call)


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
    weights = kernel_torch.copies_of(torch.randn(shape, dtype=dtype, device=device), rotation_bytes)
    if product == "bmm":
        x = torch.randn((shape[0], shape[2], columns), dtype=dtype, device=device)

        def call(index: int) -> Any:
            return torch.bmm(weights[index % len(weights)], x)
    else:
        x = torch.randn((columns, shape[1]), dtype=dtype, device=device)

        def call(index: int) -> Any:
            return torch.nn.functional.linear(x, weights[index % len(weights)])

    name = f"torch {torch.__version__} {product} {_name(dtype)}"
    return Baseline(torch, device, name, call)
