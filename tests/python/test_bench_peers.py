"""bench/peers: checkpoints as GGUF hold the same weights, and engines take turns."""

import argparse
import json
import math
import os
import pathlib
import stat
import subprocess
import sys

import numpy as np
import pytest
from reference_model import ReferenceModel

from mimo_rt.checkpoints import write_tiny_checkpoint
from mimo_rt.checkpoints.formats import MXFP4_BLOCK, decode_mxfp4, encode_bf16

gguf = pytest.importorskip("gguf")
BENCH = pathlib.Path(__file__).resolve().parents[2] / "bench"
sys.path[:0] = [str(BENCH / "peers"), str(BENCH)]
import arena  # noqa: E402
import convert  # noqa: E402
import demo_loss  # noqa: E402
import gguf_blocks  # noqa: E402
import gguf_models  # noqa: E402
import peers  # noqa: E402
import steppers  # noqa: E402
import synthetic  # noqa: E402
import worker  # noqa: E402
from stored import Linear, StoredCheckpoint  # noqa: E402

del sys.path[:2]
TYPES = gguf.GGMLQuantizationType


def read_gguf(path):
    """Tensor name -> (type name, float32 values), dequantised by the gguf package."""
    return {
        tensor.name: (tensor.tensor_type.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        for tensor in gguf.GGUFReader(str(path)).tensors
    }


# -- tensor types


def test_every_mxfp4_code_and_scale_survives():
    rng = np.random.default_rng(1)
    scale = np.arange(255, dtype=np.uint8).reshape(-1, 1).repeat(2, axis=1)
    packed = rng.integers(0, 256, (255, MXFP4_BLOCK), dtype=np.uint8)
    packed[:, :16] = np.arange(0, 256, 16) + np.arange(16)[::-1]  # all codes in every row
    blocks = gguf_blocks.mxfp4_blocks(packed, scale)
    with np.errstate(over="ignore"):
        expected = decode_mxfp4(packed, scale)
        assert np.array_equal(gguf.quants.dequantize(blocks, TYPES.MXFP4), expected)
        # Control: codes in the order of the checkpoint are other weights.
        wrong = np.concatenate([scale[..., None], packed.reshape(255, 2, 16)], axis=-1).reshape(255, -1)
        assert not np.array_equal(gguf.quants.dequantize(wrong, TYPES.MXFP4), expected)


def test_q8_0_rounds_to_the_nearest_step():
    values = np.random.default_rng(2).standard_normal((7, 96)).astype(np.float32)
    values[3, 32:64] = 0
    back = gguf.quants.dequantize(gguf_blocks.q8_0_blocks(values), TYPES.Q8_0)
    largest = np.abs(values.reshape(7, 3, 32)).max(axis=2).repeat(32, axis=1)
    # Half a step of largest/127, and the scale's rounding to 11 bits.
    bound = largest * (0.5 / 127 + 2.0**-11) + 1e-12
    assert (np.abs(back - values) <= bound).all()
    assert np.abs(back - values).max() > 0.3 * (largest / 127).min()  # control: it does round
    theirs = gguf.quants.dequantize(gguf.quants.quantize(values, TYPES.Q8_0), TYPES.Q8_0)
    assert (np.abs(theirs - values) <= bound).all()


# -- whole checkpoints


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("peers") / "tiny", seed=3, partial_rotary_factor=0.5)


def reference_qkv(reference, layer_idx):
    """q, k and v weights [rows, hidden], from the reference's own reading of the fused tensor."""
    outputs = reference.qkv(np.eye(reference.config["hidden_size"], dtype=np.float32), layer_idx)
    return [output.reshape(len(output), -1).T for output in outputs]


def test_gguf_holds_the_weights_exactly(tiny, tmp_path):
    report = convert.convert(tiny, tmp_path / "m.gguf", dense="f32")
    assert report["architecture"] == "mimo2" and not list(tmp_path.glob(".m.gguf*"))
    tensors = read_gguf(tmp_path / "m.gguf")
    reference = ReferenceModel(tiny, dtype=np.float32)
    config = reference.config

    def check(name, kind, expected):
        found_kind, found = tensors.pop(name)
        assert found_kind == kind and np.array_equal(found, expected), name

    check("token_embd.weight", "BF16", reference.plain("model.embed_tokens.weight"))
    check("output.weight", "BF16", reference.plain("lm_head.weight"))
    check("output_norm.weight", "F32", reference.plain("model.norm.weight"))
    for i in range(config["num_hidden_layers"]):
        ours, theirs = f"model.layers.{i}", f"blk.{i}"
        check(f"{theirs}.attn_norm.weight", "F32", reference.plain(f"{ours}.input_layernorm.weight"))
        check(f"{theirs}.ffn_norm.weight", "F32", reference.plain(f"{ours}.post_attention_layernorm.weight"))
        for name, expected in zip("qkv", reference_qkv(reference, i), strict=True):
            check(f"{theirs}.attn_{name}.weight", "F32", expected)
        check(f"{theirs}.attn_output.weight", "BF16", reference.linear(f"{ours}.self_attn.o_proj"))
        if config["hybrid_layer_pattern"][i]:
            sinks = reference.plain(f"{ours}.self_attn.attention_sink_bias")
            check(f"{theirs}.attn_sinks.weight", "F32", sinks)
        projections = ("gate", "up", "down")
        if not config["moe_layer_freq"][i]:
            for name in projections:
                check(f"{theirs}.ffn_{name}.weight", "F32", reference.linear(f"{ours}.mlp.{name}_proj"))
            continue
        check(f"{theirs}.ffn_gate_inp.weight", "F32", reference.plain(f"{ours}.mlp.gate.weight"))
        bias = reference.plain(f"{ours}.mlp.gate.e_score_correction_bias")
        check(f"{theirs}.exp_probs_b.bias", "F32", bias)
        for name in projections:
            modules = [f"{ours}.mlp.experts.{e}.{name}_proj" for e in range(config["n_routed_experts"])]
            check(f"{theirs}.ffn_{name}_exps.weight", "MXFP4", np.stack([reference.linear(m) for m in modules]))
    assert not tensors


def test_gguf_metadata(tiny, tmp_path):
    convert.convert(tiny, tmp_path / "m.gguf")
    fields = gguf.GGUFReader(str(tmp_path / "m.gguf")).fields

    def field(name):
        return fields[f"mimo2.{name}"].contents()

    assert fields["general.architecture"].contents() == "mimo2"
    assert field("attention.sliding_window_pattern") == [False, True, True, False, True]
    assert field("attention.head_count_kv") == [2] * 5 and field("attention.head_count") == 4
    assert field("rope.dimension_count") == 24 and field("rope.freq_base_swa") == 10000.0
    assert field("attention.value_scale") == pytest.approx(0.612)
    assert field("expert_count") == 8 and field("expert_used_count") == 2
    assert fields["tokenizer.ggml.model"].contents() == "gpt2"
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 515
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(str(tmp_path / "m.gguf")).tensors}
    assert kinds == {"BF16", "F32", "MXFP4", "Q8_0"}


def test_fp8_as_bf16_is_rounded_once(tiny, tmp_path):
    convert.convert(tiny, tmp_path / "m.gguf", dense="bf16", plain="q8_0")
    tensors = read_gguf(tmp_path / "m.gguf")
    reference = ReferenceModel(tiny, dtype=np.float32)
    exact = reference.linear("model.layers.0.mlp.gate_proj")
    kind, found = tensors["blk.0.ffn_gate.weight"]
    expected = (encode_bf16(exact).astype(np.uint32) << 16).view(np.float32)
    assert kind == "BF16" and np.array_equal(found, expected)
    assert not np.array_equal(found, exact)  # control: rounding is visible
    assert tensors["blk.0.attn_output.weight"][0] == "Q8_0"


def test_the_value_scale_can_be_folded_into_v(tiny, tmp_path):
    convert.convert(tiny, tmp_path / "m.gguf", dense="f32", folds_value_scale=True)
    reader = gguf.GGUFReader(str(tmp_path / "m.gguf"))
    assert reader.fields["mimo2.attention.value_scale"].contents() == 1.0
    tensors = read_gguf(tmp_path / "m.gguf")
    _, k, v = reference_qkv(ReferenceModel(tiny, dtype=np.float32), 1)
    scale = np.float32(json.loads((tiny / "config.json").read_text())["attention_value_scale"])
    assert np.array_equal(tensors["blk.1.attn_v.weight"][1], v * scale) and scale != 1
    assert np.array_equal(tensors["blk.1.attn_k.weight"][1], k)


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory):
    """Full attention, all experts active with weight one: a llama with its MLP in four parts."""
    path = tmp_path_factory.mktemp("peers") / "plain"
    heads = {"head_dim": 48, "v_head_dim": 48, "swa_head_dim": 48, "swa_v_head_dim": 48}
    return write_tiny_checkpoint(path, preset="plain_attention", seed=4, hidden_size=192,
                                 intermediate_size=384, moe_intermediate_size=96, **heads)


IDS = [5, 1, 300, 77, 4, 4, 250, 9]


def worst(logits, expected):
    return np.abs(logits - expected).max() / np.abs(expected).max()


def test_a_plain_transformer_becomes_a_llama_that_computes_the_same(plain_model, tmp_path, monkeypatch):
    from mimo_rt.checkpoints import gguf_llama

    assert convert.convert(plain_model, tmp_path / "m.gguf", dense="f32")["architecture"] == "llama"
    expected = ReferenceModel(plain_model).forward(IDS)
    # float32 against float64 over five layers: roundings of 2^-24, some hundred of them in a row.
    bound = 1e-4
    assert worst(demo_loss.Llama(gguf_llama.LlamaGguf(tmp_path / "m.gguf")).logits(IDS), expected) < bound
    monkeypatch.setattr(gguf_llama, "half_split_rotary", lambda weight, _: weight)  # control
    assert worst(demo_loss.Llama(gguf_llama.LlamaGguf(tmp_path / "m.gguf")).logits(IDS), expected) > 100 * bound


def test_transformers_runs_the_same_weights(plain_model, tiny):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    sys.path.insert(0, str(BENCH / "peers"))
    from hf_llama import load_llama

    sys.path.pop(0)
    expected = ReferenceModel(plain_model).forward(IDS)
    with torch.inference_mode():
        logits = load_llama(plain_model, torch.float32)(torch.tensor([IDS])).logits[0].numpy()
    assert worst(logits, expected) < 1e-4
    with pytest.raises(NotImplementedError, match="no plain transformer"):
        load_llama(tiny)


def test_what_is_no_plain_transformer(plain_model, tiny):
    for path, expected in ((plain_model, True), (tiny, False)):
        checkpoint = StoredCheckpoint(path)
        shapes = [gguf_models.layer_shape(checkpoint.config, i) for i in range(5)]
        assert gguf_models.is_plain_transformer(checkpoint, shapes) is expected
    checkpoint = StoredCheckpoint(plain_model)
    checkpoint.config["routed_scaling_factor"] = 2.0
    assert not gguf_models.is_plain_transformer(checkpoint, shapes)
    with pytest.raises(ValueError, match="no scaling"):
        gguf_models.gguf_model(checkpoint)


def test_adjacent_rotary_undoes_half_split():
    from mimo_rt.checkpoints.gguf_llama import half_split_rotary

    weight = np.arange(24 * 3, dtype=np.float32).reshape(24, 3)
    there = gguf_models.adjacent_rotary(Linear("fp8", weight), 3)
    assert np.array_equal(half_split_rotary(there.data, 3), weight)
    assert not np.array_equal(there.data, weight)


def test_the_synthetic_checkpoint_runs(tmp_path, monkeypatch):
    small = synthetic.synthetic_config(2) | {"hidden_size": 256, "vocab_size": 512, "intermediate_size": 256,
                                             "moe_intermediate_size": 64, "n_routed_experts": 8}
    monkeypatch.setattr(synthetic, "synthetic_config", lambda _: small)
    synthetic.write_synthetic(tmp_path / "m", 2)
    logits = ReferenceModel(tmp_path / "m", dtype=np.float32).forward(IDS)
    assert np.isfinite(logits).all() and 0.1 < logits.std() < 10
    from mimo_rt import _C

    engine = _C.Engine.open(str(tmp_path / "m"), _C.EngineOptions(num_threads=1))
    assert worst(_C.Session(engine).logits(np.array(IDS, np.int32)), logits) < 0.1  # BF16 activations


# -- the arena


class FakePeer:
    def __init__(self, name, seconds, log):
        self.name, self.seconds, self.log, self.facts = name, seconds, log, {"engine_version": "1"}

    def run(self, case):
        self.log.append(self.name + str(case.prompt_ids[0] if case.prompt_ids else ""))
        return self.seconds

    def close(self):
        self.log.append("close")


def test_rounds_alternate_and_ratios_are_paired():
    log = []
    case = peers.Case("rows", 8)
    times = arena.take_rounds([FakePeer("mimo_rt", 0.02, log), FakePeer("b", 0.03, log)], [case], 2)
    assert log == ["mimo_rt", "b", "b", "mimo_rt"]
    ours, theirs = arena.case_records(case, ["mimo_rt", "b"], times)
    assert theirs["over_mimo_rt"] == 1.5 and ours["over_mimo_rt"] == 1.0 and theirs["n"] == 2
    assert theirs["tokens_per_s"] == pytest.approx(8 / 0.03, rel=1e-4)
    assert "over_mimo_rt" not in arena.case_records(case, ["b"], times[1:])[0]


def test_prompts_take_turns_in_either_order_and_count_single_tokens():
    log = []
    cases = [peers.Case("text", 2, (i,)) for i in (5, 6)]
    times = arena.take_rounds([FakePeer("a", 0.02, log), FakePeer("b", 0.01, log)], cases, 3)
    assert log == ["a5", "b5", "a6", "b6", "b5", "a5", "b6", "a6"]  # whole passes: four rounds for three
    assert [len(samples) for samples in times] == [4, 4]
    (record, _) = arena.case_records(cases[0], ["a", "b"], times)
    assert record["case"] == "peers/text2/a" and record["tokens"] == 1 and record["tokens_per_s"] == 50.0


def test_agreement_counts_tokens_and_compares_logits():
    def output(token_ids, *logits):
        return peers.Output(token_ids, np.array(logits, np.float32))

    ours = {(1,): output([1, 2, 3], 3.0, 4.0), (2,): output([4, 5, 6], 0.0, 2.0)}
    theirs = {(1,): output([1, 2, 9], 3.0, 4.0), (2,): output([9, 5, 6], 0.0, 2.5), (3,): output([0], 9.0, 9.0)}
    assert arena.agreement(ours, theirs) == {"equal_tokens": 2, "compared_tokens": 6, "logits_difference": 0.25}
    assert arena.agreement(ours, ours)["logits_difference"] == 0.0
    theirs[1,] = peers.Output([1, 2, 3], None)  # a server that does not say them
    assert arena.agreement(ours, theirs) == {"equal_tokens": 3, "compared_tokens": 6}
    assert arena.agreement({}, theirs) == {}
    with pytest.raises(RuntimeError, match="logits of 2 tokens as ours, got 3"):
        arena.agreement(ours, {(1,): output([1], 1.0, 1.0, 1.0)})


def test_doubts_are_measured_by_our_own_int8():
    records = [{"engine": name, "logits_difference": difference}
               for name, difference in (("mimo_rt", 0.0), ("mimo_rt_int8", 0.014), ("b", 0.056), ("c", 0.75))]
    records.append({"engine": "d"})
    shown = [arena._logits_text(r.get("logits_difference"), r.get("int8_difference", math.inf))
             for r in arena.with_int8_difference(records)]
    assert shown == ["0.00 %", "1.40 %", "5.60 %", "75.00 %: another model?", "-"]
    without = records[:1] + records[2:]
    assert arena.with_int8_difference(without) == without
    assert arena._logits_text(0.75, math.inf) == "75.00 %"  # nothing to judge by
    assert arena._logits_text(0.785, 0.35) == "78.50 %"  # roundings alone move so deep a model by a third


def test_ik_llama_refuses_a_file_whose_value_scale_it_would_ignore(tiny, plain_model, tmp_path):
    for model, folds in ((tiny, False), (tiny, True), (plain_model, False)):
        convert.convert(model, tmp_path / "m.gguf", folds_value_scale=folds)
        scale = steppers._value_scale(tmp_path / "m.gguf")
        assert scale == pytest.approx(0.612 if (model, folds) == (tiny, False) else 1.0)
        if scale != 1.0:
            with pytest.raises(RuntimeError, match="value scale 0.612: .*--fold-value-scale"):
                steppers.IkLlama(tmp_path / "m.gguf", 1, False)


def test_logits_tell_the_same_weights_from_others(plain_model, tmp_path):
    """transformers in float32 against ours: BF16 roundings of activations, or another model."""
    pytest.importorskip("transformers")
    config = json.loads((plain_model / "config.json").read_text())
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for path in plain_model.iterdir():
        os.symlink(path, wrong / path.name)
    (wrong / "config.json").unlink()
    (wrong / "config.json").write_text(json.dumps(config | {"rope_theta": 100.0, "swa_rope_theta": 100.0}))
    sys.path.insert(0, str(BENCH / "peers"))
    found = {}
    for name, model in (("mimo_rt", plain_model), ("transformers_f32", plain_model), ("wrong", wrong)):
        _, run = worker.OPENERS["transformers_f32" if name == "wrong" else name](model, "text", 1, 1)
        outcome = run(IDS, True)
        assert len(outcome.token_ids) == peers.TEXT_TOKENS and outcome.seconds > 0
        found[name] = {(): peers.Output(outcome.token_ids, outcome.logits)}
    sys.path.pop(0)
    assert arena.agreement(found["mimo_rt"], found["transformers_f32"])["logits_difference"] < 0.05
    assert arena.agreement(found["mimo_rt"], found["wrong"])["logits_difference"] > 0.2


def test_prompts_are_read_and_checked(tiny, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("ab", "cde", "x" * 2000)))
    cases = arena.with_prompts(peers.Case("text", 2), tiny, path)
    assert [case.label for case in cases] == ["text2"] * 2 and len({case.prompt_ids for case in cases}) == 2
    for count, needle in ((3, "p-3': expected at most 896"), (4, "p-3': expected at most 896")):
        with pytest.raises(arena.MimoRtError, match=needle):
            arena.with_prompts(peers.Case("text", count), tiny, path)
    path.write_text(json.dumps({"text": "ab"}) + "\n")
    with pytest.raises(arena.MimoRtError, match="expected 2 prompts, got 1"):
        arena.with_prompts(peers.Case("text", 2), tiny, path)
    assert arena.with_prompts(peers.Case("rows", 8), tiny, path) == [peers.Case("rows", 8)]


def test_cases_are_parsed():
    assert [c.label for c in arena.parse_cases("decode,rows4,rows,prefill64,text,text3")] == [
        "decode", "rows4", "rows8", "prefill64", "text8", "text3"]
    for bad in ("rows0", "walk", "4"):
        with pytest.raises(argparse.ArgumentTypeError):
            arena.parse_cases(bad)


def run_arena(*arguments, **environment):
    command = [sys.executable, str(BENCH / "peers" / "arena.py"), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})
    return run.returncode, run.stdout, run.stderr


def test_arena_runs_what_is_there_and_names_what_is_not(tiny, tmp_path):
    program = tmp_path / "llama-bench"  # answers like the real one
    program.write_text(f"#!{sys.executable}\nimport os, sys, json\n"
                       "assert sys.argv[sys.argv.index('-mmp') + 1] == '0'\n"
                       "assert 'hugetlb=1' in os.environ['GLIBC_TUNABLES']\n"
                       "n = int(sys.argv[sys.argv.index('-n') + 1])\n"
                       "print('noise')\nprint(json.dumps({'avg_ns': 1e6 * max(n, 1), 'build_commit': 'abc'}))\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    code, out, err = run_arena(
        "--model", tiny, "--gguf", tmp_path / "m.gguf", "--llama-bench", program, "--rounds", 2, "--threads", 1,
        "--engines", "mimo_rt,llama_bench,llama_cpp", "--cases", "decode,rows2", "--json")
    assert code == 0, err
    lines = {line["case"]: line for line in map(json.loads, out.splitlines())}
    assert set(lines) == {f"peers/{c}/{e}" for c in ("decode", "rows2")
                          for e in ("mimo_rt", "llama_bench", "llama_cpp")}
    bench = lines["peers/decode/llama_bench"]
    assert bench["median_us"] == pytest.approx(1000) and bench["engine_version"] == "abc"
    ours = lines["peers/decode/mimo_rt"]
    assert ours["n"] == 2 and ours["bandwidth_gbs"] > 0 and "commit" in ours
    assert "one row of logits" in lines["peers/rows2/llama_bench"]["skipped"]
    assert "llama_cpp" in lines["peers/decode/llama_cpp"].get("skipped", "llama_cpp")


FAKE_LLAMA_CPP = """
import ctypes, os
print("noise on stdout")
VOCAB_SIZE = int(os.environ.get("FAKE_VOCAB_SIZE", "100"))
def llama_get_logits_ith(ctx, i):
    assert ctx == "ctx" and i == -1
    return (ctypes.c_float * VOCAB_SIZE)(*[1.0] * VOCAB_SIZE)
__version__ = os.environ["LLAMA_CPP_LIB_PATH"]
class Llama:
    def __init__(self, *, model_path, n_ctx, n_batch, n_ubatch, n_threads, n_threads_batch, logits_all,
                 use_mmap, verbose):
        assert not use_mmap and os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
        assert n_threads == n_threads_batch == 3 and os.path.isfile(model_path)
        self.tokens, self.logits_all, self.ctx = None, logits_all, "ctx"
    def n_vocab(self):
        return VOCAB_SIZE
    def reset(self):
        self.tokens = []
    def eval(self, tokens):
        self.tokens += tokens
        assert all(0 <= token < VOCAB_SIZE for token in tokens) and len(self.tokens) <= 1024
    def sample(self, temp):
        assert temp == 0.0 and self.tokens and not self.logits_all
        return 7
"""


def test_arena_runs_llama_cpp_python_with_a_given_library(tiny, tmp_path):
    """Against a stand-in with the calls of llama-cpp-python 0.3."""
    (tmp_path / "llama_cpp.py").write_text(FAKE_LLAMA_CPP)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code, out, err = run_arena(
        "--model", tiny, "--gguf", tmp_path / "m.gguf", "--llama-library", tmp_path / "libllama.so", "--rounds", 2,
        "--threads", 3, "--engines", "llama_cpp", "--cases", "decode,rows4,prefill64", "--json", PYTHONPATH=path)
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["case"] for line in lines] == [f"peers/{c}/llama_cpp" for c in ("decode", "rows4", "prefill64")]
    for line in lines:
        assert line["median_us"] > 0 and line["engine_version"] == str(tmp_path) and 0 <= line["huge_page_mb"] < line["resident_mb"]
        assert line["glibc_tunables"] == "glibc.malloc.hugetlb=1" and not line["use_mmap"]


def test_real_prompts_with_and_without_drafts(tiny, tmp_path):
    (tmp_path / "llama_cpp.py").write_text(FAKE_LLAMA_CPP)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "p.jsonl").write_text('{"text": "def f(x):"}\n{"text": "a b c a b c"}\n')
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code, out, err = run_arena(
        "--model", tiny, "--gguf", tmp_path / "m.gguf", "--prompts", tmp_path / "p.jsonl", "--rounds", 2, "--threads", 3,
        "--engines", "mimo_rt,mimo_rt_drafts,mimo_rt_int8,llama_cpp", "--cases", "text2,rows2", "--json", PYTHONPATH=path,
        FAKE_VOCAB_SIZE="515", LLAMA_CPP_LIB_PATH="none")
    assert code == 0, err
    lines = {line["case"]: line for line in map(json.loads, out.splitlines())}
    ours, drafts, other = (lines[f"peers/text2/{name}"] for name in ("mimo_rt", "mimo_rt_drafts", "llama_cpp"))
    assert drafts["equal_tokens"] == drafts["compared_tokens"] == ours["compared_tokens"] == 256
    assert drafts["logits_difference"] == 0.0 and drafts["tokens"] == 1 and drafts["n"] == 2
    assert other["logits_difference"] > 0.5 and other["equal_tokens"] < 256  # control: it is no model
    int8 = lines["peers/text2/mimo_rt_int8"]
    assert 0 < int8["logits_difference"] < 0.5 and other["int8_difference"] == int8["logits_difference"]
    assert "glibc_tunables" not in int8  # ours asks the kernel itself
    assert "drafts change no step" in lines["peers/rows2/mimo_rt_drafts"]["skipped"]
    assert "logits_difference" not in lines["peers/rows2/mimo_rt"]


def test_a_peer_that_fails_does_not_stop_the_others(tiny, tmp_path):
    broken = FAKE_LLAMA_CPP.replace("self.tokens += tokens", "raise OSError('illegal model')")
    (tmp_path / "llama_cpp.py").write_text(broken)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code, out, err = run_arena(
        "--model", tiny, "--gguf", tmp_path / "m.gguf", "--rounds", 1, "--threads", 3, "--engines", "llama_cpp,mimo_rt",
        "--cases", "decode", "--json", PYTHONPATH=path, LLAMA_CPP_LIB_PATH="none")
    assert code == 0, err
    lines = {line["engine"]: line for line in map(json.loads, out.splitlines())}
    assert "illegal model" in lines["llama_cpp"]["skipped"] and lines["mimo_rt"]["n"] == 1


def test_arena_reports_a_process_that_ends(tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = run_arena("--model", tmp_path / "empty", "--engines", "mimo_rt", "--cases", "decode")
    assert code == 1 and "arena: mimo_rt: the process ended" in err and "Traceback" not in err


def test_cases_before_one_that_fails_are_kept(tiny, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"text": "def f(x):"}\n')
    arguments = ("--model", tiny, "--prompts", tmp_path / "p.jsonl", "--rounds", 1, "--threads", 1, "--engines", "mimo_rt",
                 "--cases", "decode,text3")
    code, out, err = run_arena(*arguments, "--json")
    assert code == 1 and err.startswith("arena: ") and "expected 3 prompts, got 1" in err
    assert [json.loads(line)["case"] for line in out.splitlines()] == ["peers/decode/mimo_rt"]
    code, out, err = run_arena(*arguments)
    assert code == 1 and "peers/decode/mimo_rt" in out and "expected 3 prompts" in err


def test_a_process_that_ended_between_questions_is_named(tmp_path):
    with open(tmp_path / "errors", "w+") as errors:
        errors.write("killed for memory\n")
        worker = object.__new__(peers.Worker)
        worker.name, worker.outputs, worker._errors = "b", {}, errors
        worker._process = subprocess.Popen(["true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        worker._process.wait()
        with pytest.raises(RuntimeError, match="b: the process ended: killed for memory"):
            worker.run(peers.Case("decode", 1))
        worker.close()
