"""One answer (DESIGN: column ownership, fixed order): bit-equal logits however a token is computed."""

import numpy as np
import pytest

import mimo_rt._C as core
from mimo_rt.checkpoints.tiny import write_tiny_checkpoint

BACKENDS = [b.name for b in core.list_backends() if b.available and b.name != "cuda"]
TOKENS = np.random.default_rng(1).integers(0, 250, size=150).astype(np.int32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """All features of the family: window layers, sinks, fused qkv, FP8, MXFP4 experts, sparse routing."""
    directory = tmp_path_factory.mktemp("tiny") / "model"
    write_tiny_checkpoint(directory, seed=7)
    return directory


def logits(model, backend, *, workers, step_tokens, chunk=64):
    engine = core.Engine.open(model, core.EngineOptions(device=backend, num_threads=workers, prefill_chunk_tokens=chunk))
    return core.Session(engine, max_context=256).logits(TOKENS, step_tokens)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_do_not_depend_on_batch_workers_or_run(model, backend):
    expected = logits(model, backend, workers=1, step_tokens=1)
    assert np.isfinite(expected).all() and expected.std() > 0.1
    for workers in (1, 2, 3):
        for step_tokens in (1, 8, 64):
            for _ in range(2):
                got = logits(model, backend, workers=workers, step_tokens=step_tokens)
                assert np.array_equal(got.view(np.uint32), expected.view(np.uint32)), (workers, step_tokens)


def test_the_comparison_sees_another_window(model):
    """Negative control: one key less in the window layers changes bits."""
    options = core.EngineOptions(device="cpu", num_threads=1, window_tokens=7)
    engine = core.Engine.open(model, options)
    other = core.Session(engine, max_context=256).logits(TOKENS, 8)
    expected = logits(model, "cpu", workers=1, step_tokens=8)
    assert not np.array_equal(other, expected)
