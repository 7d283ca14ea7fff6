"""What `mimo-rt bench` computes from its samples, compares and draws."""

import json
import math
import os
import re
import signal
import statistics
import sys
import time
from types import SimpleNamespace

import pytest

from mimo_rt import _C
from mimo_rt.bench import cases, roofline
from mimo_rt.bench.cases import Bench
from mimo_rt.bench.compare import Case, compare, judge, missing, read_records, warnings
from mimo_rt.bench.contention import Competitors, fair_slowdown
from mimo_rt.bench.measurement import Measurement, Roofs, repeat, take_turns
from mimo_rt.bench.sessions import ConcurrentSessions
from mimo_rt.bench.synthetic import synthetic_config, synthetic_draft_config, synthetic_engine
from mimo_rt.bench.work import active_experts, spread_prompt, step_flops
from mimo_rt.checkpoints.layout import tensor_specs
from mimo_rt.cli import bench as bench_command
from mimo_rt.cli import main as cli_main

# -- what a step needs


def flops_of_specs(config, num_rows, num_logit_rows, *, with_router=True):
    """Operations counted from the tensors of the checkpoint instead of from the core's config."""
    weights = 0.0
    for name, spec in tensor_specs(config).items():
        if len(spec.shape) != 2 or "scale" in name or "embed_tokens" in name or name == "lm_head.weight":
            continue
        if name.endswith(".mlp.gate.weight") and not with_router:
            continue
        size = math.prod(spec.shape) * (2 if spec.dtype == "U8" else 1)
        share = config["num_experts_per_tok"] / config["n_routed_experts"] if ".experts." in name else 1.0
        weights += size * share
    return 2 * (num_rows * weights + num_logit_rows * config["vocab_size"] * config["hidden_size"])


@pytest.mark.parametrize(("rows", "logit_rows"), [(1, 1), (8, 8), (512, 1)])
def test_operations_are_those_of_the_tensors(rows, logit_rows):
    config = synthetic_config(7)
    core = _C.ModelConfig.from_json(json.dumps(config), "synthetic")
    assert step_flops(core, rows, logit_rows) == pytest.approx(flops_of_specs(config, rows, logit_rows))
    # Control: the count sees a router less.
    assert step_flops(core, rows, logit_rows) != flops_of_specs(config, rows, logit_rows, with_router=False)


def test_active_experts_of_uniform_routing():
    core = _C.ModelConfig.from_json(json.dumps(synthetic_config(2)), "synthetic")
    assert active_experts(core, 1) == pytest.approx(core.experts_per_token)
    assert core.experts_per_token < active_experts(core, 2) < 2 * core.experts_per_token
    assert active_experts(core, 10_000) == pytest.approx(core.num_experts)


def test_synthetic_draft_fits_its_target():
    for num_layers in (1, 2, 5, 16):
        config = synthetic_config(num_layers)
        target = _C.ModelConfig.from_json(json.dumps(config), "synthetic")
        draft = _C.DraftConfig.from_json(json.dumps(synthetic_draft_config(config)), "draft")
        draft.check_target(target)
        assert draft.block_size == 8 and max(draft.target_layer_ids) < num_layers
    other = _C.ModelConfig.from_json(json.dumps(synthetic_config(3) | {"hidden_size": 1024}), "other")
    with pytest.raises(_C.ShapeMismatchError):
        draft.check_target(other)


def test_prompts_spread_and_differ():
    core = _C.ModelConfig.from_json(json.dumps(synthetic_config(2)), "synthetic")
    prompts = {tuple(spread_prompt(core, 32, salt)) for salt in range(20)}
    assert len(prompts) == 20
    assert all(0 <= i < core.vocab_size and len(set(ids)) == 32 for ids in prompts for i in ids)


# -- records


def test_a_record_names_the_bound_that_is_nearer():
    times = (0.010, 0.012, 0.011)
    m = Measurement("verify/ctx0/8", times, 8, num_bytes=110e6, num_flops=2.2e9)
    line = m.record(Roofs(bandwidth_gbs=20.0, peak_gflops=1000.0))
    assert line["median_us"] == 11_000 and line["gbs"] == 10.0 and line["bandwidth_fraction"] == 0.5
    assert line["bound_by"] == "bytes" and line["bound_fraction"] == 0.5
    line = m.record(Roofs(bandwidth_gbs=20.0, peak_gflops=250.0))  # 8.8 ms of 11
    assert line["bound_by"] == "vector" and line["bound_fraction"] == pytest.approx(0.8)
    assert "bound_by" not in m.record(Roofs(20.0))


def test_a_record_of_few_bytes_can_be_read_again(tmp_path):
    line = Measurement("flash/select_experts/f32/t1", (8e-6,) * 5, 1, num_bytes=1536).record(Roofs(4300.0))
    assert line["bandwidth_fraction"] == pytest.approx(1536 / 8e-6 / 4300e9, rel=1e-3)
    (tmp_path / "a").write_text(json.dumps(line) + "\n")
    assert read_records(tmp_path / "a") == [line]


def test_a_bandwidth_read_between_the_samples_counts_before_the_best_of_all():
    m = Measurement("decode/ctx16/1", (0.010, 0.011, 0.012), 1, num_bytes=110e6, in_situ_fraction=0.8)
    line = m.record(Roofs(bandwidth_gbs=20.0))
    assert line["gbs"] == 10.0 and line["bandwidth_fraction"] == 0.8 and line["bound_us"] == 8_800
    assert m.row(Roofs(bandwidth_gbs=20.0))[6] == "80.0"


def test_decoding_is_compared_with_the_reads_before_and_after_it(monkeypatch):
    reads, windows = iter([10.0, 30.0, 20.0, 99.0]), iter([(0.1,) * 3, (0.2,) * 5, (9.0,)])
    bench = object.__new__(Bench)
    config = _C.ModelConfig.from_json(json.dumps(synthetic_config(2)), "synthetic")
    bench.engine = SimpleNamespace(config=config, measure_bandwidth_gbs=lambda _s: next(reads))
    bench.bandwidths, bench._seconds, bench._num_context = [], 0.0, 16
    monkeypatch.setattr(bench, "_window_times", lambda _s: (next(windows), 1_000_000_000))
    m = bench.decode()
    # 10 GB/s of 20, then 5 of 25; five samples are enough.
    assert m.in_situ_fraction == pytest.approx((0.5 + 0.2) / 2) and len(m.times_s) == 8
    assert bench.bandwidths == [10.0, 30.0, 20.0]
    assert m.record(Roofs(99.0))["in_situ_gbs"] == pytest.approx(m.gbs / 0.35, abs=1e-3)


def test_turns_are_taken_and_reversed():
    seen = []
    times = take_turns([lambda: seen.append("a"), lambda: seen.append("b")], 0.0, min_samples=4)
    assert [len(samples) for samples in times] == [4, 4]
    assert "".join(seen) == "ab" + "abba" * 2  # warm-up, then A B B A
    assert len(repeat(lambda: None, 0.0, min_samples=3)) == 3


def test_ctrl_c_ends_a_bench_that_makes_its_model(monkeypatch):
    """At once, by the system: the extension module makes weights for up to minutes."""
    handlers = []
    monkeypatch.setattr(_C.Engine, "synthetic", lambda *_: handlers.append(signal.getsignal(signal.SIGINT)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        synthetic_engine(synthetic_config(2), {})
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as shells do for what runs in the background: it stays so
        synthetic_engine(synthetic_config(2), {})
    finally:
        signal.signal(signal.SIGINT, before)
    assert handlers == [signal.SIG_DFL, signal.SIG_IGN]


# -- compare


def case(median, low, high, n=20):
    return Case(median, low, high, n, None)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (case(100, 99, 101), case(90, 89, 91), "FASTER"),
        (case(100, 99, 101), case(110, 109, 111), "SLOWER"),
        (case(100, 99, 101), case(101, 100, 102), "SAME"),
        (case(100, 90, 120), case(110, 100, 130), "UNDECIDED"),  # ranges touch
        (case(100, 99, 101, n=2), case(200, 199, 201, n=2), "UNDECIDED"),  # too few
        (case(100, 60, 140, n=5), case(101, 60, 140, n=5), "UNDECIDED"),  # too noisy to be the same
    ],
)
def test_verdicts(before, after, expected):
    assert judge(before, after) == expected


def test_verdicts_are_antisymmetric():
    mirror = {"FASTER": "SLOWER", "SLOWER": "FASTER"}
    for a in (case(100, 99, 101), case(107, 100.5, 112), case(95, 94, 96)):
        for b in (case(103, 101, 104), case(110, 109, 111), case(96, 95, 97)):
            there, back = judge(a, b, 0.05), judge(b, a, 0.05)
            if "SAME" not in (there, back):  # relative changes differ by direction
                assert back == mirror.get(there, there)


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def line(name, median, **more):
    return {"case": name, "median_us": median, "p10_us": 0.99 * median, "p90_us": 1.01 * median, "n": 50,
            "machine": "M", "bandwidth_gbs": 30.0, "bandwidth_fraction": 0.5, **more}


def test_compare_command(capsys, tmp_path):
    a = write_lines(tmp_path / "a", [line("x", 100), line("y", 100), line("only", 1), {"case": "bandwidth"}])
    b = write_lines(tmp_path / "b", [line("x", 120), line("y", 80)])
    assert cli_main(["bench", "compare", str(a), str(b)]) == 0
    shown = capsys.readouterr()
    assert "SLOWER" in shown.out and "FASTER" in shown.out and "+20.0 %" in shown.out
    (row,) = [text for text in shown.out.splitlines() if text.startswith("only ")]
    assert row.endswith("MISSING") and not shown.err
    assert cli_main(["bench", "compare", str(a), str(b), "--fail-on-slower"]) == 1
    assert cli_main(["bench", "compare", str(a), str(a), "--fail-on-slower"]) == 0
    capsys.readouterr()
    assert cli_main(["bench", "compare", str(b), str(a)]) == 0
    assert f"only in {a}: only" in capsys.readouterr().err
    assert cli_main(["bench", "compare", str(a), str(b), "--json"]) == 0
    verdicts = [json.loads(text)["verdict"] for text in capsys.readouterr().out.splitlines()]
    assert verdicts == ["SLOWER", "FASTER", "MISSING"]


def test_a_case_that_is_gone_fails_where_a_slower_one_would(tmp_path):
    a = write_lines(tmp_path / "a", [line("x", 100), line("y", 100)])
    b = write_lines(tmp_path / "b", [line("x", 100), line("new", 100)])
    for before, after, code in ((a, b, 1), (b, b, 0), (b, write_lines(tmp_path / "c", [line("x", 100)]), 1)):
        assert cli_main(["kbench", "compare", str(before), str(after)]) == code
        assert cli_main(["bench", "compare", str(before), str(after), "--fail-on-slower"]) == code
        assert cli_main(["bench", "compare", str(before), str(after)]) == 0


def test_compare_warns_of_another_machine():
    a, b = [line("x", 100)], [line("x", 100, machine="N", bandwidth_gbs=50.0, dirty=True)]
    found = " | ".join(warnings(a, b))
    assert "machine differs: M and N" in found and "30.0 and 50.0 GB/s" in found and "second file" in found
    assert warnings(a, a) == []


def test_compare_keeps_models_apart_and_pools_repeats():
    a = [line("x", 100, model="m"), line("x", 104, model="m"), line("x", 50, model="n")]
    results = compare(a, a)
    assert sorted(r.name for r in results) == ["x m", "x n"]
    pooled = next(r.before for r in results if r.name == "x m")
    assert pooled.median_us == 102 and pooled.n == 100
    assert pooled.p10_us == 99 and pooled.p90_us == pytest.approx(105.04)
    assert missing(a, a) == {} and set(missing(a, a[:1])) == {"x n"}


def test_a_case_is_called_the_same_whether_common_or_missing(capsys, tmp_path):
    """Its share of the bandwidth is its own, too, not that of another with the same short name."""
    both = [line("x", 100, model="m", num_workers=1), line("x", 50, model="m", num_workers=2, bandwidth_fraction=0.7)]
    for before, after in ((both, both[:1]), (both[:1], both)):
        assert [r.name for r in compare(before, after)] == ["x m 1"]
    assert list(missing(both, both[:1])) == ["x m 2"]
    a, b = write_lines(tmp_path / "a", both), write_lines(tmp_path / "b", both[:1])
    assert cli_main(["bench", "compare", str(a), str(b)]) == 0
    assert "50 > 50" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[1]\n", "nothing\n", "{\n"])
def test_records_that_are_none(tmp_path, text):
    path = tmp_path / "a"
    path.write_text(json.dumps(line("x", 1)) + "\n\n" + text)
    with pytest.raises(_C.BadFormatError, match=":3"):
        read_records(path)
    with pytest.raises(_C.IoError):
        read_records(tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"median_us": float("nan")}, "median_us: expected a number above 0, got nan"),
        ({"median_us": -1}, "median_us: expected a number above 0, got -1"),
        ({"median_us": "1"}, "median_us: expected a number above 0, got '1'"),
        ({"median_us": True}, "median_us: expected a number above 0, got True"),
        ({"p10_us": 2.0}, "p10_us: expected no more than median_us, got 2.0"),
        ({"p90_us": 0.5}, "p90_us: expected no less than median_us, got 0.5"),
        ({"n": 0}, "n: expected a number above 0, got 0"),
        ({"bandwidth_gbs": float("inf")}, "bandwidth_gbs: expected"),
        ({"bandwidth_fraction": []}, "bandwidth_fraction: expected"),
        ({"case": None}, "case: expected a name beside median_us, got None"),
        ({"case": ["x"]}, "case: expected a string or a number"),
        ({"model": {}}, "model: expected a string or a number"),
    ],
)
def test_records_that_nobody_measured(capsys, tmp_path, change, needle):
    good = write_lines(tmp_path / "a", [line("x", 1.0)])
    bad = write_lines(tmp_path / "b", [line("x", 1.0), {**line("x", 1.0), **change}])
    assert cli_main(["bench", "compare", str(good), str(bad)]) == 1
    told = capsys.readouterr().err
    assert needle in told and "b:2]" in told and told.count("\n") == 1
    sparse = write_lines(tmp_path / "c", [{"case": "x", "median_us": 1.0}, {"n": None}])
    assert cli_main(["bench", "compare", str(good), str(sparse)]) == 0  # control: fields may be missing


def test_records_with_other_activations_are_other_cases():
    exact, old = line("a", 100, activations="bf16"), line("a", 100)
    rounded = line("a", 50, activations="int8")
    assert len(compare([old], [exact])) == 1  # records from before the option: bf16
    assert not compare([exact], [rounded])
    assert len(missing([exact], [rounded])) == len(missing([rounded], [exact])) == 1
    roof = roofline.step_roof([STEP])
    points = roofline.step_points([STEP, {**STEP, "activations": "int8"}], roof)
    assert [point.label for point in points] == ["verify/ctx0/8", "verify/ctx0/8 int8"]


# -- roofline

STEP = {"case": "verify/ctx0/8", "flops": 2e9, "bytes": 1e8, "median_us": 1e4, "bandwidth_gbs": 20.0,
        "peak_gflops": 300.0, "num_workers": 2, "model": "synthetic-16", "machine": "M", "commit": "abc"}
KERNEL = {"case": "gemm/mxfp4/m1", "gflops": 40.0, "gbs": 10.0, "read_gbs": 12.0, "cache": "cold"}


def test_points_below_the_roof():
    roof = roofline.step_roof([STEP, {"case": "bandwidth", "bandwidth_gbs": 99.0}])
    assert roof.at(20) == 300 and roof.at(10) == 200  # the ridge is at 15
    (point,) = roofline.step_points([{**STEP, "median_us": 1.0}, STEP], roof)  # repeats: the last
    assert point.intensity == 20 and point.gflops == 200 and point.bound_fraction == pytest.approx(2 / 3)
    assert roofline.step_roof([{"case": "startup", "median_us": 1.0}]) is None


def test_kernels_have_the_roof_of_their_instruction():
    """Not the best kernel that was measured: it may be far below what its instruction allows."""
    fma = {**KERNEL, "peak_gflops": 100.0, "peak_source": "FP32 FMA"}
    many = {**fma, "gflops": 80.0, "gbs": 1.0, "read_gbs": 11.0, "peak_gflops": 99.0}
    integers = {**many, "peak_gflops": 160.0, "peak_source": "vpmaddubsw"}
    lines = [fma, many, integers, {**many, "cache": "hot", "gflops": 95.0}, KERNEL]
    roofs = roofline.kernel_roofs(lines)
    assert {source: roof.peak_gflops for source, roof in roofs.items()} == {
        "FP32 FMA": 100, "vpmaddubsw": 160, None: None}
    assert {roof.bandwidth_gbs for roof in roofs.values()} == {12}
    points = {source: roofline.kernel_points(lines, source, roof) for source, roof in roofs.items()}
    assert [point.intensity for point in points["FP32 FMA"]] == [4, 80]
    assert [point.bound_fraction for point in points["FP32 FMA"]] == pytest.approx([40 / 48, 0.8])
    assert [point.bound_fraction for point in points["vpmaddubsw"]] == [0.5]
    (unknown,) = points[None]  # nothing is said of a compute bound that is not known
    assert unknown.bound == "the bandwidth" and unknown.bound_fraction == pytest.approx(40 / 48)
    assert roofline.kernel_roofs([STEP]) == {}


def test_plot_command(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    records = write_lines(tmp_path / "r", [STEP, {**STEP, "case": "decode/ctx16/1", "flops": 2e8}])
    peak = {"peak_gflops": 100.0, "peak_source": "FP32 FMA"}
    kernels = write_lines(tmp_path / "k", [KERNEL, {**KERNEL, **peak}])
    out = tmp_path / "roofline.png"
    assert cli_main(["bench", "plot", str(records), "--kernels", str(kernels), "-o", str(out)]) == 0
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and out.stat().st_size > 20_000
    empty = write_lines(tmp_path / "e", [{"case": "bandwidth", "bandwidth_gbs": 1.0}])
    assert cli_main(["bench", "plot", str(empty), "-o", str(out)]) == 1
    assert "expected records of decode" in capsys.readouterr().err


def test_plot_without_matplotlib(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    records = write_lines(tmp_path / "r", [STEP])
    assert cli_main(["bench", "plot", str(records), "-o", str(tmp_path / "x.png")]) == 1
    assert "pip install 'mimo_rt[bench]'" in capsys.readouterr().err
    assert cli_main(["bench", "decode", "--layers", "1", "--plot", str(tmp_path / "x.png")]) == 1
    assert not (tmp_path / "x.png").exists()


# -- options


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (("verify", "--rows", "0-3"), "1..64"),
        (("verify", "--rows", "a"), "1-8,16"),
        (("verify", "--rows", "-3"), "--rows"),
        (("decode", "--kernels", "k"), "--kernels needs --plot"),
        (("decode", "--draft", "d"), "--draft"),
        (("sessions", "--draft", "d"), "--model"),
        (("sessions", "--draft", "random", "--model", "m"), "random model"),
        (("bandwidth", "--plot", "x.png"), "--plot"),
        (("startup",), "--model"),
        (("acceptance",), "--model DIR or --adversarial"),
        (("acceptance", "--model", "m", "--layers", "2"), "--layers"),
        (("acceptance", "--model", "m", "--draft-mode", "off"), "use --modes"),
        (("acceptance", "--model", "m", "--modes", "wide"), "fixed"),
        (("acceptance", "--adversarial", "--prompts", "p"), "prompts of its own"),
        (("compare", "a"), "B.jsonl"),
        (("plot", "-o", "x.png"), "expected files"),
    ],
)
def test_wrong_usage(capsys, arguments, needle):
    with pytest.raises(SystemExit) as exit_:
        cli_main(["bench", *arguments])
    assert exit_.value.code == 2 and needle in capsys.readouterr().err


@pytest.fixture
def tiny_model(tmp_path):
    from mimo_rt.checkpoints import write_tiny_checkpoint

    return str(write_tiny_checkpoint(tmp_path / "tiny"))


def test_verify_measures_every_width(tiny_model, capsys):
    arguments = ["bench", "verify", "--model", tiny_model, "--rows", "1-3,16", "--seconds", "0.05", "--threads", "1"]
    assert cli_main([*arguments, "--json"]) == 0
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [line["tokens"] for line in lines] == [1, 2, 3, 16]
    assert lines[0]["cost_of_one"] == 1.0
    for record in lines:
        expected = record["median_us"] / lines[0]["median_us"]
        assert record["cost_of_one"] == pytest.approx(expected, rel=1e-3)
        assert record["n"] == lines[0]["n"] >= 5 and record["draft"] == "none"
        assert record["bound_fraction"] > 0 and record["peak_gflops"] > 0 and record["peak_source"]
    assert statistics.median(line["flops"] for line in lines) > 0
    assert cli_main(arguments) == 0
    assert "x one token" in capsys.readouterr().out


def test_verify_takes_widths_that_one_step_has_logits_of(tiny_model, capsys, monkeypatch):
    """An engine whose steps have logits of 8 rows, as on a GPU: wider steps would be timed as several."""
    real = bench_command.open_engine
    monkeypatch.setattr(bench_command, "open_engine", lambda *a: real(*a[:2], a[2] | {"max_decode_tokens": 8}))
    arguments = ["bench", "verify", "--model", tiny_model, "--seconds", "0.01", "--threads", "1", "--json"]
    assert cli_main(arguments) == 0
    assert [json.loads(text)["tokens"] for text in capsys.readouterr().out.splitlines()] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert cli_main([*arguments, "--rows", "4,9"]) == 1
    assert re.search(r"rows: expected 1\.\.8 for this model on cpu-\w+, got 9", capsys.readouterr().err)
    monkeypatch.undo()
    assert cli_main(arguments) == 0  # control: the usual widths
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["tokens"] == 16


# -- other processes


@pytest.mark.parametrize(
    ("workers", "competitors", "cores", "expected"),
    [(2, 0, 2, 1.0), (2, 1, 2, 1.5), (2, 2, 2, 2.0), (1, 1, 2, 1.0), (8, 2, 2, 2.0), (16, 1, 16, 1.0625)],
)
def test_a_fair_share_of_the_cores(workers, competitors, cores, expected):
    assert fair_slowdown(workers, competitors, cores) == expected


def test_competitors_compute_and_end():
    with Competitors(0) as nobody:
        assert nobody.cpu_seconds() == 0.0
    with Competitors(2) as others:
        deadline = time.monotonic() + 60  # they get a share of this machine sooner or later
        while others.cpu_seconds() < 0.05 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert others.cpu_seconds() >= 0.05
        pids = [process.pid for process in others._processes]
    assert len(pids) == 2 and not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_sessions_at_the_same_time(tiny_model, monkeypatch, capsys):
    arguments = ["bench", "sessions", "--model", tiny_model, "--seconds", "0.1", "--threads", "1"]
    assert cli_main([*arguments, "--json"]) == 0
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [line["case"] for line in lines] == [f"sessions/ctx16/{n}" for n in (1, 2, 4, 8, 16)]
    assert [line["tokens"] for line in lines] == [1, 2, 4, 8, 16]
    assert all(line["tokens_per_s"] > 0 for line in lines)
    monkeypatch.setattr(cases, "MIN_SAMPLES", 2)
    assert cli_main([*arguments, "--sessions", "3"]) == 0
    assert "x one session" in capsys.readouterr().out
    assert cli_main([*arguments, "--sessions", "1-2,4", "--draft", "ngram", "--json"]) == 0
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [line["case"] for line in lines] == [f"sessions/ctx16/{n}" for n in (1, 2, 4)]
    assert all(line["draft"] == "ngram" and line["drafts_over_plain"] > 0 for line in lines)


def test_sessions_with_a_draft_model_at_the_same_time(monkeypatch, capsys):
    monkeypatch.setattr(cases, "MIN_SAMPLES", 1)
    monkeypatch.setattr(cases, "NUM_DRAFTED_TOKENS", 16)
    arguments = ["bench", "sessions", "--draft", "random", "--layers", "1", "--seconds", "0.1", "--sessions", "2"]
    assert cli_main([*arguments, "--json"]) == 0
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [line["tokens"] for line in lines] == [1, 2]
    assert all(line["draft"] == "random" and line["drafts_over_plain"] > 0 for line in lines)


def test_sessions_that_differ_from_sessions_alone_are_not_timed(tiny_model, monkeypatch, capsys):
    monkeypatch.setattr(ConcurrentSessions, "together", lambda self: ([[0]] * len(self._prompts), 1.0))
    assert cli_main(["bench", "sessions", "--model", tiny_model, "--seconds", "0.1", "--threads", "1"]) == 1
    assert "of each alone differ" in capsys.readouterr().err


def test_an_error_of_one_session_ends_all(monkeypatch):
    class Session:
        def __init__(self, *_args, **_options):
            pass

        def reset(self):
            pass

        def generate(self, prompt, _params, callback):
            if prompt == [1]:
                raise ValueError("broken")
            callback([0], "")

    monkeypatch.setattr(_C, "Session", Session)
    params = _C.GenerateOptions(max_tokens=4)
    with pytest.raises(ValueError, match="broken"):
        ConcurrentSessions(None, [[0], [1], [2]], params).together()


def test_contention_compares_with_steps_alone(tiny_model, capsys):
    arguments = ["bench", "contention", "--model", tiny_model, "--seconds", "0.2", "--threads", "1"]
    assert cli_main([*arguments, "--json"]) == 0
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    cores = _C.num_usable_cores()
    assert [line["competitors"] for line in lines] == sorted({0, 1, cores})
    assert lines[0]["mean_over_alone"] == 1.0 and lines[0]["competitor_cores"] == 0.0
    assert lines[-1]["fair_over_alone"] == fair_slowdown(1, cores, cores)
    assert cli_main(arguments) == 0
    assert "x alone" in capsys.readouterr().out
