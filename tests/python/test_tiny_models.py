"""Tiny random models: complete, repeatable, well conditioned, and sensitive to every feature."""

import json

import numpy as np
import pytest
from mimo_rt.checkpoints import PRESETS, formats, layout, write_tiny_checkpoint
from reference_model import ReferenceModel, read_tensors, reference_forward

TOKENS = np.random.default_rng(3).integers(0, 101, size=48)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """preset -> directory, written on first use."""
    root = tmp_path_factory.mktemp("tiny")

    def model(preset, **overrides):
        key = "-".join([preset, *(f"{k}={v}" for k, v in sorted(overrides.items()))])
        directory = root / key.replace("/", "_")
        if not directory.exists():
            write_tiny_checkpoint(directory, preset=preset, seed=3, **overrides)
        return directory

    return model


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


def smallest_margin(model):
    """Least distance between the last chosen and the first refused router score."""
    k, margins = model.config["num_experts_per_tok"], [np.inf]
    for route in model.routing:
        scores = np.sort(route["scores"], axis=1)[:, ::-1]
        if scores.shape[1] > k:
            margins.append((scores[:, k - 1] - scores[:, k]).min())
    return min(margins)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_is_complete_and_well_conditioned(models, preset):
    directory = models(preset)
    config = config_of(directory)
    num_mtp = PRESETS[preset].get("num_mtp_layers", 0)
    specs = layout.tensor_specs(config, num_mtp_layers=num_mtp)
    stored = {n: (d, v.shape) for n, (d, v) in read_tensors(directory).items()}
    assert stored == {name: (spec.dtype, spec.shape) for name, spec in specs.items()}
    model = ReferenceModel(directory)
    logits = model.forward(TOKENS)
    assert logits.shape == (len(TOKENS), config["vocab_size"])
    assert 1 < logits.std() < 3
    assert len(set(logits.argmax(axis=1))) > 8
    # Rounding activations to BF16 moves a score by about 2^-8.
    assert smallest_margin(model) > 0.01
    for route in model.routing:
        assert -0.3 < route["scores"].min() and route["scores"].max() < 1.3
        if route["scores"].shape[1] > config["num_experts_per_tok"]:
            assert len(np.unique(route["chosen"])) == config["n_routed_experts"]


def test_random_routing_has_near_ties(models):
    """Control for the margin: without `clear_routing` some scores nearly tie."""
    model = ReferenceModel(models("pro_fp4", clear_routing=False))
    model.forward(TOKENS)
    assert smallest_margin(model) < 0.01


def test_equal_seeds_give_equal_files(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_tiny_checkpoint(tmp_path / name, preset="odd_sizes", seed=seed)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )
    weights = "model.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() != (tmp_path / "c" / weights).read_bytes()


@pytest.mark.parametrize("preset", ["pro_fp4", "four_chunks", "flash_fp8"])
def test_decoders_agree_with_the_reference(models, preset):
    directory = models(preset)
    reference, tensors = ReferenceModel(directory), read_tensors(directory)
    runs = {}
    for layer_idx in range(reference.config["num_hidden_layers"]):
        attn = f"model.layers.{layer_idx}.self_attn"
        shape = layout.layer_shape(reference.config, layer_idx)
        runs |= {m: n for m, _, n in layout.qkv_modules(reference.config, attn, shape)}
    num_seen = 0
    for name, (dtype, data) in tensors.items():
        if name.startswith("model.mtp."):
            continue
        module = name.removesuffix(".weight")
        chunks = runs.get(module, 1)
        if dtype == "F8_E4M3":
            scale = tensors[f"{module}.weight_scale_inv"][1]
            got = formats.decode_fp8_blocks(data, scale, chunks)
            assert np.allclose(got, reference.linear(module, chunks), rtol=2**-23, atol=0)
        elif name.endswith("_proj.weight") and dtype == "U8":
            got = formats.decode_mxfp4(data, tensors[f"{module}.weight_scale"][1])
            assert np.array_equal(got, reference.linear(module))
        else:
            continue
        num_seen += 1
    assert num_seen > 10


def test_fused_and_split_hold_the_same_model(models):
    """One random stream, two layouts; a wrong order of the fused rows gives another model."""
    split = reference_forward(models("flash_bf16"), TOKENS)
    directory = models("flash_bf16", attention_projection_layout="fused_qkv")
    fused = reference_forward(directory, TOKENS)
    assert np.abs(split - fused).max() < 1e-9
    wrong = ReferenceModel(directory)
    for layer_idx in range(wrong.config["num_hidden_layers"]):
        module = f"model.layers.{layer_idx}.self_attn.qkv_proj"
        rows = wrong.linear(module, 2).reshape(2, -1, wrong.config["hidden_size"])
        wrong._cache[module] = rows[::-1].reshape(-1, wrong.config["hidden_size"])
    assert np.abs(wrong.forward(TOKENS) - split).max() > 0.1


def test_equal_experts_are_the_dense_mlp(models):
    """All experts active with weight 1: the sum of the experts is one wide MLP."""
    directory = models("plain_attention")
    moe = ReferenceModel(directory)
    dense = ReferenceModel(directory, moe_layer_freq=[0] * 5)
    for layer_idx in range(5):
        mlp = f"model.layers.{layer_idx}.mlp"
        for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            parts = [moe.linear(f"{mlp}.experts.{expert}.{name}") for expert in range(4)]
            dense._cache[f"{mlp}.{name}"] = np.concatenate(parts, axis=axis)
    expected = dense.forward(TOKENS)
    assert np.abs(moe.forward(TOKENS) - expected).max() < 1e-9
    other = ReferenceModel(directory, routed_scaling_factor=3.9)
    assert np.abs(other.forward(TOKENS) - expected).max() > 1e-3


@pytest.mark.parametrize(
    "change",
    [
        {"window_tokens": 7},
        {"window_tokens": 9},
        {"attention_value_scale": 0.6},
        {"partial_rotary_factor": 1.0},
        {"rope_theta": 5000000},
        {"swa_rope_theta": 20000},
        {"num_experts_per_tok": 1},
        {"norm_topk_prob": False},
        {"routed_scaling_factor": 1.1},
        {"layernorm_epsilon": 0.1},
    ],
)
def test_every_field_matters(models, change):
    """An engine that ignores one of these fields is further off than any rounding."""
    expected = reference_forward(models("pro_fp4"), TOKENS)
    got = reference_forward(models("pro_fp4"), TOKENS, **change)
    assert np.abs(got - expected).max() > 0.01 * expected.std()


@pytest.mark.parametrize("suffix", ["attention_sink_bias", "e_score_correction_bias"])
def test_small_vectors_matter(models, suffix):
    directory = models("pro_fp4")
    model = ReferenceModel(directory)
    changed = [name for name in model.tensors if name.endswith(suffix)]
    assert len(changed) == (3 if "sink" in suffix else 4)
    for name in changed:
        dtype, data = model.tensors[name]
        model.tensors[name] = (dtype, data[::-1].copy())
    if "sink" not in suffix:  # clear routing must not depend on the bias: make it large
        for name in changed:
            model.tensors[name] = ("F32", model.tensors[name][1] * 20)
    expected = reference_forward(directory, TOKENS)
    assert np.abs(model.forward(TOKENS) - expected).max() > 0.01 * expected.std()


def test_one_change_at_a_time(models):
    """`sliding_window` also sets the two other names that checkpoints give it."""
    config = config_of(models("pro_fp4", sliding_window=5))
    assert config["sliding_window_size"] == config["attention_chunk_size"] == 5


def test_wrong_requests_name_themselves(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(ValueError, match="expected one of .*'wide'.*got 'wyde'"):
        write_tiny_checkpoint(path, preset="wyde")
    with pytest.raises(ValueError, match=r"unknown fields \['hidden_sise'\]"):
        write_tiny_checkpoint(path, hidden_sise=3)
    with pytest.raises(ValueError, match="hybrid_layer_pattern: expected 4 entries, got 5"):
        write_tiny_checkpoint(path, num_hidden_layers=4)
    with pytest.raises(ValueError, match="multiples of 32, got 48"):
        write_tiny_checkpoint(path, moe_intermediate_size=48)
    with pytest.raises(ValueError, match="do not divide into 3 chunks"):
        write_tiny_checkpoint(path, num_key_value_heads=3)
    with pytest.raises(ValueError, match=r"got \(bf16, mxfp4\)"):
        write_tiny_checkpoint(path, linear_format="bf16")
    assert list(tmp_path.iterdir()) == []


def test_byte_tokenizer(models):
    tokenizers = pytest.importorskip("tokenizers")
    jinja2 = pytest.importorskip("jinja2")
    directory = models("pro_fp4")
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    text = "Grüße, 世界 🙂\n\t\x00 12<|im_end|>"
    ids = tokenizer.encode(text).ids
    assert ids == [*text.removesuffix("<|im_end|>").encode(), 258]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    config = json.loads((directory / "tokenizer_config.json").read_text())
    template = jinja2.Template(config["chat_template"], keep_trailing_newline=True)
    messages = [{"role": "user", "content": "hi"}]
    prompt = template.render(messages=messages, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert config_of(directory)["eos_token_id"] == tokenizer.token_to_id("<|im_end|>")
