"""The matrix products of a round of the rank slice in torch: what a user would have otherwise.

Products alone: attention, norms, routing, the choice of tokens and the quantisation of activations are left out, and
every expert gets as many tokens as an even split gives it. So torch is shown faster than a whole round would be.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .cuda_timing import capture, time_on_gpu

_ROTATION_BYTES = 128 << 20  # between two uses of the same weights: more than caches hold
_BYTES = {"fp8": 1.0, "bf16": 2.0, "f32": 4.0, "mxfp4": 17 / 32}


@dataclass(frozen=True)
class Product:
    """``count`` matrices of ``[rows, k]``, each times ``columns`` vectors. ``format``: fp8, bf16, f32 or mxfp4."""

    format: str
    rows: int
    k: int
    columns: int
    count: int = 1

    @property
    def num_bytes(self) -> float:
        """Of the weights."""
        return self.count * self.rows * self.k * _BYTES[self.format]


def round_products(config: Any, draft: Any, num_rows: int, num_active: int) -> list[Product]:
    """In the order of a round. ``num_active``: distinct experts of a layer; ``draft``: None without one."""
    hidden, products = config.hidden_size, []
    if draft is not None:
        q, kv = draft.num_q_heads * draft.qk_head_dim, draft.num_kv_heads * (draft.qk_head_dim + draft.v_head_dim)
        products += [Product("bf16", hidden, hidden * len(draft.target_layer_ids), num_rows),
                     Product("bf16", kv * draft.num_layers, hidden, num_rows)]  # context's keys and values
        layer = [Product("bf16", q + kv, hidden, num_rows),
                 Product("bf16", hidden, draft.num_q_heads * draft.v_head_dim, num_rows),
                 Product("bf16", 2 * draft.intermediate_size, hidden, num_rows),
                 Product("bf16", hidden, draft.intermediate_size, num_rows)]
        products += layer * draft.num_layers + [Product("bf16", config.vocab_size, hidden, num_rows - 1)]
    for c in config.layers:
        qkv = c.num_q_heads * c.qk_head_dim + c.num_kv_heads * (c.qk_head_dim + c.v_head_dim)
        products += [Product("fp8", qkv, hidden, num_rows),
                     Product("bf16", hidden, c.num_q_heads * c.v_head_dim, num_rows)]
        if c.is_moe:
            columns = math.ceil(num_rows * config.experts_per_token / num_active)
            width = config.expert_intermediate_size
            products += [Product("f32", config.num_experts, hidden, num_rows),
                         Product("mxfp4", 2 * width, hidden, columns, num_active),
                         Product("mxfp4", hidden, width, columns, num_active)]
        else:
            products += [Product("fp8", 2 * config.intermediate_size, hidden, num_rows),
                         Product("fp8", hidden, config.intermediate_size, num_rows)]
    return [*products, Product("bf16", config.vocab_size, hidden, num_rows)]


class TorchRound:
    """All products of a round, on a GPU as one CUDA graph.

    Args:
        multiply_experts: of ``kernel_triton``; None: experts are BF16 matrices, dequantised before.
    """

    def __init__(self, torch: Any, device: str, products: Sequence[Product], multiply_experts: Any = None) -> None:
        self._torch, self._device, self._experts = torch, device, multiply_experts
        self._weights: dict[tuple[str, int, int, int], list[Any]] = {}
        self._inputs: dict[Product, Any] = {}
        self._num_used: dict[tuple[str, int, int, int], int] = {}
        self._calls = [self._make(product) for product in products]
        self._graph = capture(torch, self._run_plainly) if device == "cuda" else None

    def times(self, num_rounds: int) -> list[float]:
        """Seconds of each of ``num_rounds`` rounds, after one that is not counted."""
        run = self._run_graph if self._graph else self._run_plainly
        run()
        return [run() for _ in range(num_rounds)]

    def _run_plainly(self) -> float:
        begin = time.perf_counter()
        for call in self._calls:
            call()
        return time.perf_counter() - begin

    def _run_graph(self) -> float:
        return time_on_gpu(self._torch, self._graph.replay, self._graph.replay)  # the first one is not timed

    def _next_weights(self, product: Product) -> Any:
        """Those of the same shape take turns, so that none is in a cache when its turn comes."""
        key = (product.format, product.rows, product.k, product.count)
        sets = self._weights.setdefault(key, [])
        use = self._num_used[key] = self._num_used.get(key, -1) + 1
        num_sets = 1 + _ROTATION_BYTES // math.ceil(product.num_bytes)
        if use < num_sets:
            sets.append(self._make_weights(product))
        return sets[use % len(sets)]

    def _make_weights(self, product: Product) -> Any:
        torch, shape = self._torch, (product.count, product.rows, product.k)
        if product.format == "mxfp4" and self._experts:
            codes = torch.randint(0, 256, (*shape[:2], shape[2] // 2), dtype=torch.uint8, device=self._device)
            return codes, torch.randint(120, 124, (*shape[:2], shape[2] // 32), dtype=torch.uint8, device=self._device)
        dtype = torch.float32 if product.format == "f32" else torch.bfloat16
        values = torch.randn(shape, dtype=dtype, device=self._device)
        if product.format == "mxfp4":
            return values
        return values[0].to(torch.float8_e4m3fn) if product.format == "fp8" else values[0]

    def _input(self, product: Product) -> Any:
        if product not in self._inputs:
            torch = self._torch
            dtype = torch.float32 if product.format == "f32" else torch.bfloat16
            shape = (product.columns, product.k)
            x = torch.randn((product.count, *shape) if product.format == "mxfp4" else shape, dtype=dtype,
                            device=self._device)
            self._inputs[product] = x.to(torch.float8_e4m3fn) if product.format == "fp8" else x
        return self._inputs[product]

    def _make(self, product: Product) -> Callable[[], Any]:
        torch, weights, x = self._torch, self._next_weights(product), self._input(product)
        if product.format == "fp8":
            one = torch.ones((), device=self._device)
            return lambda: torch._scaled_mm(x, weights.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
        if product.format != "mxfp4":
            return lambda: torch.nn.functional.linear(x, weights)
        if not self._experts:
            return lambda: torch.bmm(x, weights.transpose(1, 2))
        y = torch.empty((product.count, product.columns, product.rows), dtype=torch.bfloat16, device=self._device)
        return lambda: self._experts(*weights, x, y)


@dataclass(frozen=True)
class TorchResult:
    """Times of all rounds of one way; ``note``: why there are none; ``is_there``: False without torch."""

    name: str
    times_s: tuple[float, ...] = ()
    note: str = ""
    is_there: bool = True


def has_failed(results: Sequence[TorchResult]) -> bool:
    """Whether torch is there and no way of it has times: something is wrong with it, or with this file."""
    return any(r.is_there for r in results) and not any(r.times_s for r in results)


def measure_torch(device: str, products: Sequence[Product], num_rounds: int) -> list[TorchResult]:
    """BF16 experts, and MXFP4 ones with Triton where it works; whatever fails is a note."""
    try:
        import torch
    except ImportError as error:
        return [TorchResult("torch", note=str(error), is_there=False)]
    if device == "cuda" and not torch.cuda.is_available():
        return [TorchResult("torch", note=f"torch {torch.__version__} finds no GPU")]
    name = f"torch {torch.__version__}"
    results = [_measure(torch, device, products, num_rounds, f"{name} bf16 experts", lambda: None)]
    if device == "cuda":
        find = partial(_triton_experts, torch, device)
        return [*results, _measure(torch, device, products, num_rounds, f"{name}, Triton's MXFP4 experts", find)]
    return [*results, TorchResult("Triton", note="needs a GPU")]


def _triton_experts(torch: Any, device: str) -> Any:
    from . import kernel_triton

    if not kernel_triton.is_right(torch, device):
        raise ArithmeticError("wrong results of a small case")
    return kernel_triton.multiply_experts


def _measure(torch: Any, device: str, products: Sequence[Product], num_rounds: int, name: str,
             find_experts: Callable[[], Any]) -> TorchResult:
    try:
        return TorchResult(name, tuple(TorchRound(torch, device, products, find_experts()).times(num_rounds)))
    except Exception as error:
        return TorchResult(name, note=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
