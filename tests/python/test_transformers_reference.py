"""An independent check: transformers' own mimo_v2_flash port against mimo_rt on the same saved checkpoint.

The float64 evaluation of the port still rounds to float32 in its norms, its router and its rotary tables, so the exact
ref executor may differ from it by a few float32 roundings per layer (u = 2^-24): the bound below is
`16 * u * num_layers * max|logit|`, and the measured difference is about a tenth of it. The CPU engine rounds activations
to bfloat16 (u = 2^-8) at about eight places per layer; independent roundings add up in quadrature.
"""

import json
import shutil

import numpy as np
import pytest

import mimo_rt._C as core

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NUM_LAYERS = 4
TOKENS = np.random.default_rng(5).integers(0, 320, size=48).astype(np.int32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny random model saved by transformers (BF16 weights), and its float64 logits for TOKENS."""
    torch.manual_seed(11)
    config = transformers.MiMoV2FlashConfig(
        vocab_size=320, hidden_size=96, intermediate_size=160, num_hidden_layers=NUM_LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=48, v_head_dim=32, moe_intermediate_size=64, num_experts_per_tok=2,
        n_routed_experts=8, sliding_window=9, max_position_embeddings=512, initializer_range=0.08,
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        attention_value_scale=0.707, eos_token_id=2)
    model = transformers.MiMoV2FlashForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sinks" in name:
                parameter.normal_(0, 1.5)
            elif "norm" in name:
                parameter.normal_(1, 0.2)
            parameter.copy_(parameter.to(torch.bfloat16).float())
        for name, buffer in model.named_buffers():
            if "e_score_correction_bias" in name:
                buffer.normal_(0, 0.1)
    directory = tmp_path_factory.mktemp("transformers")
    model.to(torch.bfloat16).save_pretrained(directory)
    model = transformers.MiMoV2FlashForCausalLM.from_pretrained(
        directory, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager")
    with torch.no_grad():
        logits = model.double()(torch.tensor(TOKENS[None].astype(np.int64))).logits[0].numpy()
    return directory, logits


def engine_logits(directory, **options):
    """Logits of mimo_rt for TOKENS."""
    engine = core.Engine.open(directory, core.EngineOptions(num_threads=2, **options))
    return core.Session(engine, max_context=128).logits(TOKENS, 16).astype(np.float64)


def worst(logits, expected):
    """Largest difference relative to the largest logit."""
    return np.abs(logits - expected).max() / np.abs(expected).max()


def test_exact_ref_equals_transformers(saved):
    directory, expected = saved
    assert expected.std() > 0.1
    bound = 16 * 2.0**-24 * NUM_LAYERS
    assert worst(engine_logits(directory, device="ref", exact=True), expected) < bound


@pytest.mark.parametrize("window_tokens", [8, 10])
def test_one_key_more_or_less_is_seen(saved, window_tokens):
    directory, expected = saved
    bound = 16 * 2.0**-24 * NUM_LAYERS
    got = engine_logits(directory, device="ref", exact=True, window_tokens=window_tokens)
    assert worst(got, expected) > 100 * bound


CPU_BOUND = 4 * 2.0**-8 * np.sqrt(8 * NUM_LAYERS) / np.sqrt(3)
CPU_BACKENDS = [b.name for b in core.list_backends() if b.available and b.name.startswith("cpu")]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_every_cpu_backend_is_within_its_rounding(saved, backend):
    directory, expected = saved
    assert worst(engine_logits(directory, device=backend), expected) < CPU_BOUND


def changed_copy(directory, target, **fields):
    """The same weights under a config.json with other values."""
    shutil.copytree(directory, target)
    config = json.loads((target / "config.json").read_text())
    assert all(name in config and config[name] != value for name, value in fields.items())
    (target / "config.json").write_text(json.dumps(config | fields))
    return target


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_the_cpu_bound_sees_a_wrong_model(saved, tmp_path, backend):
    """Controls: values not scaled, and windows half as wide, are beyond what rounding explains."""
    directory, expected = saved
    unscaled = changed_copy(directory, tmp_path / "unscaled", attention_value_scale=1.0)
    assert worst(engine_logits(unscaled, device=backend), expected) > CPU_BOUND
    assert worst(engine_logits(directory, device=backend, window_tokens=4), expected) > CPU_BOUND


def test_window_of_the_saved_config(saved):
    directory, _ = saved
    config = core.ModelConfig.from_directory(directory)
    assert [layer.window_tokens for layer in config.layers] == [0, 9, 9, 0]
    assert json.loads((directory / "config.json").read_text())["sliding_window"] == 9
