"""Times of PyTorch's work on a GPU without those of the host's launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def capture(torch: Any, call: Callable[[], Any]) -> Any:
    """What ``call`` launches, as a CUDA graph. It runs once before that: to choose algorithms, to allocate workspaces.

    Raises:
        RuntimeError: the call waits for the GPU, or does something else that a graph cannot hold.
    """
    cuda = torch.cuda
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    graph = cuda.CUDAGraph()
    with cuda.stream(stream):  # torch.cuda.graph would collect garbage first, which takes longer than what is measured
        call()
        graph.capture_begin()
        try:
            call()
        finally:
            graph.capture_end()
    cuda.current_stream().wait_stream(stream)
    return graph


def time_on_gpu(torch: Any, fill: Callable[[], Any], launch: Callable[[], Any]) -> float:
    """Seconds of what ``launch`` launches.

    ``fill`` keeps the GPU busy meanwhile. An idle GPU would note the begin at once, and then wait for the host.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    fill()
    begin.record()
    launch()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
