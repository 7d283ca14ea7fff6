"""The type in which training multiplies matrices: BF16 where the device is faster with it.

Then operands and results of products are BF16 (sums inside are float32). Master weights, norms,
softmaxes, losses and sums over steps stay float32.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager

import torch

# What torch.cpu.get_capabilities calls instructions that multiply BF16. CPUs without them take several
# times as long over it as over float32. With them a Zen 4 core takes half, an Emerald Rapids core without
# AMX half as long again.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
_WORTH_IT = 1.25  # times as fast; a run that is resumed shall not choose otherwise by noise


def matmul_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What ``precision`` means on ``device``; "auto" is BF16 on GPUs and on CPUs that are faster with it."""
    if precision == "auto":
        is_fast = device.type != "cpu" or (_cpu_has_bf16() and _cpu_is_faster_with_bf16())
        precision = "bf16" if is_fast else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def _cpu_has_bf16() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older releases do not tell
    return any(capabilities.get(name, False) for name in _BF16_INSTRUCTIONS)


def _cpu_is_faster_with_bf16() -> bool:
    """By the best of a few products of each type, taking turns, about 0.9 GFLOP each."""
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for _ in range(6):
        for dtype in seconds:
            seconds[dtype] = min(seconds[dtype], _product_seconds(dtype))
    return seconds[torch.float32] > _WORTH_IT * seconds[torch.bfloat16]


def _product_seconds(dtype: torch.dtype) -> float:
    x, weight = torch.ones(512, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
    begin = time.perf_counter()
    x @ weight.T
    return time.perf_counter() - begin


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Inside, operands and results of products are of ``dtype``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
