"""An independent check: transformers' own mimo_v2_flash port against mimo_rt on the same saved checkpoint.

The float64 evaluation of the port still rounds to float32 in its norms, its router and its rotary tables, so the exact
ref executor may differ from it by a few float32 roundings per layer (u = 2^-24): the bound below is
`16 * u * num_layers * max|logit|`, and the measured difference is about a tenth of it. The CPU engine rounds activations
to bfloat16 (u = 2^-8) at about eight places per layer; independent roundings add up in quadrature. A router score
moves by a quarter of that (the steepest slope of a sigmoid), so where the last chosen and the first rejected expert lie
closer, either choice is right: those tokens are not judged. Attention carries little of it to the others.
"""

import json
import shutil

import numpy as np
import pytest

import mimo_rt._C as core

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

NUM_LAYERS = 4
TOKENS = np.random.default_rng(5).integers(0, 320, size=48).astype(np.int32)
CPU_BOUND = 4 * 2.0**-8 * np.sqrt(8 * NUM_LAYERS) / np.sqrt(3)
MIN_SCORE_GAP = 2.0**-8 * np.sqrt(8 * NUM_LAYERS) / 4
CPU_BACKENDS = [b.name for b in core.list_backends() if b.available and b.name.startswith("cpu")]


@pytest.fixture(scope="module", params=["bfloat16", "float32", "float16"])
def saved(request, tmp_path_factory):
    """A tiny random model saved by transformers in each type: its directory, its float64 logits
    for TOKENS, and the tokens whose experts are clear."""
    dtype = getattr(torch, request.param)
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
        for name, buffer in model.named_buffers():
            if "e_score_correction_bias" in name:
                buffer.normal_(0, 0.1)
    directory = tmp_path_factory.mktemp("transformers")
    model.to(dtype).save_pretrained(directory)
    model = transformers.MiMoV2FlashForCausalLM.from_pretrained(
        directory, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager")
    gaps = watch_score_gaps(model.double())
    with torch.no_grad():
        logits = model(torch.tensor(TOKENS[None].astype(np.int64))).logits[0].numpy()
    is_clear = np.min(gaps, axis=0) > MIN_SCORE_GAP
    assert len(gaps) == NUM_LAYERS - 1 and is_clear.mean() > 0.75
    return directory, logits, is_clear


def watch_score_gaps(model):
    """Fills the list with an array per router: how far the second best expert is ahead of the third."""
    gaps = []

    def watch(gate, inputs, _):
        h = inputs[0].reshape(len(TOKENS), -1)
        scores = torch.sigmoid(h @ gate.weight.T) + gate.e_score_correction_bias
        best = scores.sort(dim=1, descending=True).values
        gaps.append((best[:, 1] - best[:, 2]).numpy())

    for name, module in model.named_modules():
        if name.endswith("mlp.gate"):
            module.register_forward_hook(watch)
    return gaps


def engine_logits(directory, **options):
    """Logits of mimo_rt for TOKENS."""
    engine = core.Engine.open(directory, core.EngineOptions(num_threads=2, **options))
    return core.Session(engine, max_context=128).logits(TOKENS, 16).astype(np.float64)


def worst(logits, expected):
    """Largest difference relative to the largest logit."""
    return np.abs(logits - expected).max() / np.abs(expected).max()


def test_exact_ref_equals_transformers(saved):
    directory, expected, _ = saved
    assert expected.std() > 0.1
    bound = 16 * 2.0**-24 * NUM_LAYERS
    assert worst(engine_logits(directory, device="ref", exact=True), expected) < bound


@pytest.mark.parametrize("table", ["model.embed_tokens.weight", "lm_head.weight"])
def test_tables_rounded_to_bf16_are_seen(saved, tmp_path, table):
    """Control: the exact engine keeps F32 and F16 tables to the last bit, so losing bits is seen."""
    directory, expected, _ = saved
    tensors = safetensors_torch.load_file(directory / "model.safetensors")
    loses_bits = tensors[table].dtype != torch.bfloat16
    shutil.copytree(directory, tmp_path / "rounded")
    tensors[table] = tensors[table].to(torch.bfloat16)
    safetensors_torch.save_file(tensors, tmp_path / "rounded" / "model.safetensors")
    got = engine_logits(tmp_path / "rounded", device="ref", exact=True)
    assert (worst(got, expected) > 100 * 16 * 2.0**-24 * NUM_LAYERS) == loses_bits


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_logits_do_not_depend_on_the_chunk(saved, backend):
    directory, *_ = saved
    engine = core.Engine.open(directory, core.EngineOptions(num_threads=2, device=backend))
    chunked, single = (core.Session(engine, max_context=128).logits(TOKENS, n) for n in (16, 1))
    assert chunked.tobytes() == single.tobytes()
    other = TOKENS.copy()
    other[0] += 1
    assert core.Session(engine, max_context=128).logits(other, 16).tobytes() != single.tobytes()


@pytest.mark.parametrize("window_tokens", [8, 10])
def test_one_key_more_or_less_is_seen(saved, window_tokens):
    directory, expected, _ = saved
    bound = 16 * 2.0**-24 * NUM_LAYERS
    got = engine_logits(directory, device="ref", exact=True, window_tokens=window_tokens)
    assert worst(got, expected) > 100 * bound



@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_every_cpu_backend_is_within_its_rounding(saved, backend):
    directory, expected, is_clear = saved
    got = engine_logits(directory, device=backend)
    assert worst(got[is_clear], expected[is_clear]) < CPU_BOUND


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
    directory, expected, is_clear = saved
    unscaled = changed_copy(directory, tmp_path / "unscaled", attention_value_scale=1.0)
    for model, options in ((unscaled, {}), (directory, {"window_tokens": 4})):
        got = engine_logits(model, device=backend, **options)
        assert worst(got[is_clear], expected[is_clear]) > CPU_BOUND


def test_window_of_the_saved_config(saved):
    directory, *_ = saved
    config = core.ModelConfig.from_directory(directory)
    assert [layer.window_tokens for layer in config.layers] == [0, 9, 9, 0]
    assert json.loads((directory / "config.json").read_text())["sliding_window"] == 9
