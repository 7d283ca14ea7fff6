"""bench/gpu_slice.py without a GPU: the slice's bytes, the projection, and a shrunk slice on the CPU."""

import _thread
import importlib.util
import json
import signal
import threading
from types import SimpleNamespace

import pytest
from fake_cuda import fake_torch
from mimo_rt import _C, errors
from mimo_rt.bench import torch_round
from mimo_rt.bench.rank_slice import (
    ACCEPTED,
    SliceRounds,
    count_allreduces,
    measure_rounds,
    project,
    round_bytes,
)
from mimo_rt.bench.synthetic import slice_config, slice_draft_config
from mimo_rt.bench.torch_round import Product, TorchResult, TorchRound, round_products
from mimo_rt.bench.work import active_experts

SMALL = {"hidden_size": 256, "vocab_size": 512, "intermediate_size": 256, "moe_intermediate_size": 64}


def configs(num_layers=70, num_experts=384, **changes):
    config = slice_config(num_layers, num_experts) | changes
    draft = _C.DraftConfig.from_json(json.dumps(slice_draft_config(config)), "draft")
    target = _C.ModelConfig.from_json(json.dumps(config), "slice")
    draft.check_target(target)
    return target, draft


@pytest.fixture
def script(root, monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_slice", root / "bench" / "gpu_slice.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "slice_config", lambda layers, experts: slice_config(layers, experts) | SMALL)
    return module


def run(script, capsys, *arguments):
    code = script.main(["--device", "cpu", "--layers", "3", "--experts", "24", "--context", "8", "--seconds", "0.01",
                        *arguments])
    return code, capsys.readouterr()


def test_a_round_reads_an_eighth_of_the_model_but_for_router_and_fc():
    target, draft = configs()
    active = active_experts(target, 8)
    assert active == pytest.approx(59.52, abs=0.01)
    plain = sum(p.num_bytes for p in round_products(target, None, 8, 60) if p.format != "mxfp4")
    qkv, o_proj, dense, lm_head = 27136 * 6144, 6144 * 16384 * 2, 3 * 16384 * 6144, 152576 * 6144 * 2
    assert plain == 70 * (qkv + o_proj) / 8 + (dense + lm_head) / 8 + 69 * 384 * 6144 * 4
    experts = sum(p.num_bytes for p in round_products(target, None, 8, 60) if p.format == "mxfp4")
    assert experts == 69 * 60 * 20_054_016 / 8
    whole_draft = 2_768_316_288 * 2  # of eight ranks together, and what it reads again
    fc, context_kv = 6144 * 30720 * 2, 5 * 2 * 1024 * 6144 * 2
    drafted = sum(p.num_bytes for p in round_products(target, draft, 8, 60)) - plain - experts - lm_head / 8
    assert drafted == pytest.approx((whole_draft - fc + context_kv) / 8 + fc, rel=1e-3)
    wide, _ = configs(moe_intermediate_size=2048)  # control
    assert sum(p.num_bytes for p in round_products(wide, None, 8, 60)) > 5 * (plain + experts)


def test_the_projection_is_that_of_the_bandwidth_bound_and_adds_all_reduces():
    assert count_allreduces(70, 5) == 150
    without = project(3.083e-3, 0.0)  # the bound of 4.8 TB/s
    assert [p.tokens_per_s for p in without] == pytest.approx([2044, 1804, 1392, 1031], rel=1e-3)
    assert [p.accepted for p in without] == list(ACCEPTED) == [6.30, 5.56, 4.29, 3.18]
    with_them = project(3.083e-3, 150 * 5e-6)
    assert [p.without_allreduce for p in with_them] == [p.tokens_per_s for p in without]
    assert with_them[0].tokens_per_s == pytest.approx(6.30 / 3.833e-3)
    assert with_them[0].tokens_per_s < without[0].tokens_per_s


def test_medians_of_rounds_and_the_spread_of_their_experts():
    rounds = SliceRounds((2e-3, 1e-3, 4e-3), (6e9, 4e9, 8e9), (50.0, 60.0, 70.0), 59.5, 8, 4)
    measured = rounds.measurement("slice")
    assert measured.median_s == 2e-3 and measured.gbs == pytest.approx(3000)
    assert measured.facts["active_experts"] == 60 and measured.facts["active_experts_p10"] == 52
    assert measured.facts["mean_us"] == pytest.approx(2333.33)


def test_a_shrunk_slice_on_the_cpu(script, capsys):
    pytest.importorskip("torch")
    code, out = run(script, capsys, "--json", "--torch-rounds", "2")
    record, baseline = map(json.loads, out.out.splitlines())
    assert code == 0 and record["case"] == "slice/L3/E24/t8" and record["backend"].startswith("cpu")
    assert 8 <= record["active_experts_min"] <= record["active_experts"] <= record["active_experts_max"] <= 24
    assert record["gbs"] == pytest.approx(record["bytes"] / record["median_us"] / 1e3, rel=1e-3)
    assert record["bandwidth_fraction"] == pytest.approx(record["gbs"] / record["bandwidth_gbs"], abs=2e-4)
    assert baseline["case"] == "slice/L3/E24/t8/torch" and "bf16 experts" in baseline["baseline"]
    torch_us = baseline["baselines_us"][baseline["baseline"]]
    assert baseline["times_baseline"] == pytest.approx(torch_us / record["median_us"], abs=1e-3)
    assert baseline["baseline_notes"] == ["without Triton: needs a GPU"] and "baseline_failed" not in baseline
    assert "projection" not in record and "commit" in record and "dirty" in record and record["machine"]
    target, draft = configs(3, 24, **SMALL)
    products = round_products(target, draft, 8, 1)
    others = sum(p.num_bytes for p in products if p.format != "mxfp4")
    expert = sum(p.num_bytes for p in products if p.format == "mxfp4") / 2
    wanted = others + 2 * record["active_experts"] * expert
    assert record["bytes"] == pytest.approx(wanted, rel=0.1)  # scales, norms, padding, and a median beside a mean


def test_bytes_of_a_round_follow_its_experts():
    class Engine:
        dense_bytes_per_step, draft_bytes_per_round, expert_bytes = 1000, 100, 10

    assert round_bytes(Engine, 5.5) == 1155 and round_bytes(Engine, 0) == 1100


def test_the_whole_slice_is_projected(script, capsys, monkeypatch):
    monkeypatch.setattr(script, "SLICE_LAYERS", 3)
    monkeypatch.setattr(script, "SLICE_EXPERTS", 24)
    code, out = run(script, capsys, "--torch-rounds", "0", "--allreduce-us", "7")
    assert code == 0 and "16 all-reduces of 7 us (assumed, not measured)" in out.out
    assert "6.30 tokens accepted" in out.out and "3.18 tokens accepted" in out.out and "of the bound of" in out.out
    assert "without the exchanges of the embeddings and the two lm_heads" in out.out
    rounds = SliceRounds((1e-3, 1e-3, 4e-3), (6e6,) * 3, (8.0,) * 3, 8.0, 8, 0)  # 2 ms on average
    monkeypatch.setattr(script, "measure_rounds", lambda *_: rounds)
    code, out = run(script, capsys, "--torch-rounds", "0", "--json")
    found = [p["without_allreduce"] for p in json.loads(out.out)["projection"]]
    assert code == 0 and found == [3150.0, 2780.0, 2145.0, 1590.0]
    code, out = run(script, capsys, "--torch-rounds", "0", "--experts", "16")
    assert code == 0 and "no projection" in out.out and "tokens accepted" not in out.out


def test_the_rounds_are_there_before_the_baselines(script, capsys, monkeypatch):
    def cut_off(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "measure_baselines", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(script, capsys, "--json")
    assert json.loads(capsys.readouterr().out)["median_us"] > 0


def test_a_torch_that_only_fails_is_told_loudly(script, capsys, monkeypatch):
    failed = TorchResult("torch 2", note="AttributeError: replay")
    for results, is_told in (([failed, failed], True), ([failed, TorchResult("Triton", (1e-3,))], False),
                             ([TorchResult("torch", note="No module named 'torch'", is_there=False)], False)):
        monkeypatch.setattr(script, "measure_baselines", lambda *_, results=results: results)
        code, out = run(script, capsys, "--json")
        line = json.loads(out.out.splitlines()[1])
        assert code == 0 and ("NO BASELINE" in out.err) == is_told == line.get("baseline_failed", False)
        assert any("without torch" in note for note in line["baseline_notes"])
        code, out = run(script, capsys)
        assert code == 0 and ("without torch 2: AttributeError: replay" in out.err) == is_told
        assert ("products alone in Triton  1.000 ms" in out.out) == (len(results) == 2 and not is_told)


def test_what_does_not_fit_or_run_is_told(script, capsys, monkeypatch):
    def synthetic(*arguments):
        raise errors.OutOfMemoryError("[cuda] weights: expected 9 free bytes on GPU, got 8; 1 are missing.")

    monkeypatch.setattr(_C.Engine, "synthetic", synthetic)
    code, out = run(script, capsys)
    assert code == 1 and "1 are missing. Or lower --layers or --experts." in out.err and not out.out
    for arguments in (["--layers", "71"], ["--experts", "7"], ["--allreduce-us", "-1"]):
        with pytest.raises(SystemExit) as stop:
            script.main(arguments)
        assert stop.value.code == 2


def test_without_a_gpu_it_says_why(script, capsys):
    from mimo_rt import list_backends

    (cuda,) = [b for b in list_backends() if b.name == "cuda"]
    if cuda.available:
        pytest.skip("there is a GPU")
    assert script.main([]) == 1
    assert "backend 'cuda'" in capsys.readouterr().err


def test_torch_multiplies_every_product(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch_round, "_ROTATION_BYTES", 0)
    products = [Product("fp8", 32, 64, 3), Product("bf16", 16, 64, 3), Product("f32", 16, 64, 3),
                Product("mxfp4", 32, 64, 2, 5), Product("mxfp4", 32, 64, 2, 5)]
    seen = []

    def multiply_experts(codes, scales, x, y):
        seen.append((codes.shape, scales.shape, x.shape))

    round_ = TorchRound(torch, "cpu", products, multiply_experts)
    shapes = [call().shape for call in round_._calls[:3]]
    assert shapes == [(3, 32), (3, 16), (3, 16)]
    assert len(round_.times(2)) == 2 and len(seen) == 6  # one round before them
    assert seen[0] == ((5, 32, 32), (5, 32, 2), (5, 2, 64))
    assert TorchRound(torch, "cpu", products)._calls[3]().shape == (5, 2, 32)  # dequantised


def test_a_round_as_a_graph_is_timed_behind_another_one():
    torch = fake_torch({"replay": 0.25})
    round_ = TorchRound(torch, "cuda", [])
    assert not torch.log and round_.times(2) == [0.25] * 2
    assert torch.log == ["replay", "event", "replay", "event", "wait"] * 3  # never an event on an idle GPU


def test_weights_take_turns_unless_they_are_larger_than_caches(monkeypatch):
    torch = pytest.importorskip("torch")
    product = Product("bf16", 16, 64, 3)
    monkeypatch.setattr(torch_round, "_ROTATION_BYTES", 3 * 16 * 64 * 2)
    round_ = TorchRound(torch, "cpu", [product] * 9)
    assert len(next(iter(round_._weights.values()))) == 4


def test_a_baseline_that_fails_is_a_note(monkeypatch):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    products = [Product("bf16", 16, 64, 3)]
    (no_gpu,) = torch_round.measure_torch("cuda", products, 2)
    assert "finds no GPU" in no_gpu.note and not no_gpu.times_s
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    bf16, triton = torch_round.measure_torch("cuda", products, 2)  # there is no such device
    assert not bf16.times_s and bf16.note and not triton.times_s and "Error" in triton.note


def test_ctrl_c_ends_the_generation_at_hand(monkeypatch):
    cancelled = threading.Event()

    class LongGeneration:
        def __init__(self, engine, max_context):
            pass

        def generate(self, prompt, options):
            _thread.interrupt_main()
            assert cancelled.wait(60)
            return SimpleNamespace(rounds=[])

        def cancel(self):
            cancelled.set()

    monkeypatch.setattr(_C, "Session", LongGeneration)
    engine = SimpleNamespace(config=configs()[0], max_draft_tokens=7)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            measure_rounds(engine, 8, 0.1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert cancelled.is_set()
