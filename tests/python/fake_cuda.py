"""PyTorch's streams, events and graphs without a GPU, to see what would be timed."""

import contextlib
import types


def fake_torch(seconds=None, can_capture=True):
    """A module `torch` whose `log` says what reached the GPU, in order.

    Between two events lie the `seconds` of the entry between them; 1 where it has none.
    """
    log = []
    stream = types.SimpleNamespace(wait_stream=lambda other: None)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.position = len(log)
            log.append("event")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, end):
            (between,) = log[self.position + 1:end.position]
            return (seconds or {}).get(between, 1.0) * 1e3

    class CUDAGraph:
        def capture_begin(self):
            self.begin = len(log)

        def capture_end(self):
            del log[self.begin:]  # nothing has run
            if not can_capture:
                raise RuntimeError("operation failed due to a previous error during capture\nmore")

        def replay(self):
            log.append("replay")

    cuda = types.SimpleNamespace(Event=Event, CUDAGraph=CUDAGraph, Stream=lambda: stream,
                                 current_stream=lambda: stream, stream=contextlib.nullcontext)
    flush = types.SimpleNamespace(sum=lambda: log.append("flush"))
    return types.SimpleNamespace(cuda=cuda, log=log, float32="float32", ones=lambda *_, **__: flush)
