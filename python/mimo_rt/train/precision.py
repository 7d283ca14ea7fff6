"""The type in which training multiplies matrices: BF16 where the device is faster with it.

Then operands and results of products are BF16 (sums inside are float32). Master weights, norms,
softmaxes, losses and sums over steps stay float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

# What torch.cpu.get_capabilities calls instructions that multiply BF16. CPUs without them take several
# times as long over it as over float32, those with them less than half.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def matmul_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What ``precision`` means on ``device``; "auto" is BF16 on GPUs and on CPUs that multiply it."""
    if precision == "auto":
        is_fast = device.type != "cpu" or _cpu_multiplies_bf16()
        precision = "bf16" if is_fast else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def _cpu_multiplies_bf16() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older releases do not tell
    return any(capabilities.get(name, False) for name in _BF16_INSTRUCTIONS)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Inside, operands and results of products are of ``dtype``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
