"""One answer (DESIGN: column ownership, fixed order): bit-equal logits however a token is computed."""

import numpy as np
import pytest

import mimo_rt._C as core
from mimo_rt.checkpoints import presets
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_of_different_formats_share_no_prepared_inputs(tmp_path, monkeypatch, backend):
    """Every other expert is stored as BF16. Bound: as for one format, which rounds the same activations; BF16 inputs
    read as MXFP4 digits, or the reverse, are off by their whole size."""
    original = presets.quantization_fields

    def with_plain_experts(config, linear_format, expert_format):
        fields = original(config, linear_format, expert_format)
        fields["quantization_config"]["ignored_layers"] += [
            f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj" for layer in range(config["num_hidden_layers"])
            for expert in range(1, config["n_routed_experts"], 2) for name in ("gate", "up", "down")]
        return fields

    monkeypatch.setattr(presets, "quantization_fields", with_plain_experts)
    model = write_tiny_checkpoint(tmp_path / "mixed", seed=7)
    expected = logits(model, "ref", workers=1, step_tokens=8)
    for workers, step_tokens in ((1, 1), (3, 1), (2, 8)):
        got = logits(model, backend, workers=workers, step_tokens=step_tokens)
        assert np.linalg.norm(got - expected) < 0.02 * np.linalg.norm(expected)
