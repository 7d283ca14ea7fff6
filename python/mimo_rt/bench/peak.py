"""The vector peak, as a matrix product that stays in the caches reaches it."""

from __future__ import annotations

import os
import subprocess
import sys

SOURCE = "FP32 matrix product of numpy"
_SIZE = 512
# In a process of its own: thread counts of BLAS libraries are fixed when numpy is imported.
_SCRIPT = f"""
import time, numpy
a = numpy.ones(({_SIZE}, {_SIZE}), numpy.float32)
b, out = a.copy(), a.copy()
best = float("inf")
end = time.monotonic() + 0.4
while time.monotonic() < end:
    begin = time.perf_counter()
    numpy.matmul(a, b, out=out)
    best = min(best, time.perf_counter() - begin)
print(2 * {_SIZE}**3 / best / 1e9)
"""


def measure_peak_gflops(num_threads: int) -> float | None:
    """FP32 GFLOP/s of ``num_threads`` threads; None when numpy cannot say.

    The best of many products: a roof, not a typical value. Units that multiply narrower types
    (BF16, INT8) may go beyond it.
    """
    variables = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "BLIS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(variables, str(num_threads))}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            env=environment, capture_output=True, text=True, timeout=60, check=True,
        )
        return float(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
