"""``mimo-rt kbench``: its shapes are those of the models, its records can be compared and repeated."""

import json
import math
import shlex
import sys
import weakref

import pytest

from mimo_rt import _C
from mimo_rt.bench import kernel_run
from mimo_rt.bench.kernel_baseline import make_baseline
from mimo_rt.bench.kernel_shapes import MODELS, SHAPES, choose
from mimo_rt.cli import main as cli_main
from mimo_rt.errors import DeviceLostError, OutOfMemoryError, UnavailableError

SAMPLERS = ("sample_best", "sample", "sample_filtered", "sample_verify")
REPLICATED = ("router", "select_experts", "route", "rms_norm", *SAMPLERS)
SMALL = ["kbench", "bf16", "mxfp4", "--shape", "64x128", "--seconds", "0.01", "--no-baseline"]


def lines_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def shape_of(name):
    (shape,) = [s for s in SHAPES if s.name == name]
    return shape


# -- shapes


def test_shapes_of_the_pro_model_follow_from_its_config(root):
    text = (root / "tests" / "golden" / "mimo_v2_5_pro_fp4_config.json").read_text()
    config = _C.ModelConfig.from_json(text, "pro")
    layer, dense = config.layers[1], config.layers[0]
    experts = {"num_experts": config.num_experts, "experts_per_token": config.experts_per_token,
               "hidden_size": config.hidden_size, "width": config.expert_intermediate_size}
    assert shape_of("pro/expert_gate_up").cuda == {"kernel": "expert_gate_up", **experts}
    down = {"kernel": "expert_down", **experts, "num_segments": 8}
    assert shape_of("pro/expert_down").cuda == down
    qkv = (layer.num_q_heads + layer.num_kv_heads) * layer.qk_head_dim
    qkv += layer.num_kv_heads * layer.v_head_dim
    assert shape_of("pro/qkv").fields == {"rows": qkv, "k": config.hidden_size}
    o_proj = {"rows": config.hidden_size, "k": layer.num_q_heads * layer.v_head_dim}
    assert shape_of("pro/o_proj").fields == o_proj
    assert shape_of("pro/lm_head").fields == {"rows": config.vocab_size, "k": config.hidden_size}
    assert shape_of("pro/router").fields == {"rows": config.num_experts, "k": config.hidden_size}
    for name, of in (("qkv_normed", "qkv"), ("o_proj_residual", "o_proj"), ("lm_head_best", "lm_head"),
                     ("dense_act", "dense_gate_up")):
        fused = shape_of(f"pro/{name}").cuda
        assert {"rows": fused["rows"], "k": fused["k"]} == shape_of(f"pro/{of}").fields
    stored, window = shape_of("pro/qkv_stored").cuda, shape_of("pro/attention_window").fields
    assert stored["k"] == config.hidden_size and all(
        stored[name] == window[name] for name in ("num_kv_heads", "num_q_per_kv", "qk_head_dim", "v_head_dim"))
    router = shape_of("pro/router").cuda
    assert (router["num_experts"], router["hidden_size"]) == (config.num_experts, config.hidden_size)
    assert shape_of("pro/sample").cuda["vocab_size"] == config.vocab_size
    assert shape_of("pro/select_experts").cuda["experts_per_token"] == config.experts_per_token
    assert shape_of("pro/attention_window").cuda["window_tokens"] == layer.window_tokens
    width = {"rows": 2 * config.intermediate_size, "k": config.hidden_size}
    assert shape_of("pro/dense_gate_up").fields == width
    for name, which in (("pro/attention_window", layer), ("pro/attention_full", dense)):
        fields = shape_of(name).fields
        assert fields["num_kv_heads"] == which.num_kv_heads
        assert fields["num_q_per_kv"] * which.num_kv_heads == which.num_q_heads
        assert (fields["qk_head_dim"], fields["v_head_dim"]) == (which.qk_head_dim, which.v_head_dim)


def test_a_rank_has_an_eighth_of_every_sharded_matrix():
    for slice_ in choose([], "pro-r8"):
        whole = shape_of(f"pro/{slice_.op}")
        is_replicated = slice_.op in REPLICATED
        size = math.prod(whole.fields.values()) / math.prod(slice_.fields.values())
        assert size == (1 if is_replicated or not slice_.fields else 8), slice_.name
        assert whole.cuda.get("width", 0) == 8 * slice_.cuda.get("width", 0)
        assert slice_.cuda == whole.cuda or not is_replicated
        assert slice_.cuda != whole.cuda or is_replicated or not slice_.cuda


def test_names_are_unique_and_every_case_is_accepted_by_the_core():
    assert len({s.name for s in SHAPES}) == len(SHAPES) and len(MODELS) == 5
    for shape in SHAPES:
        assert shape.is_on("cuda") or shape.format == "f32"
        assert shape.is_edge == (shape.format == "u32") == (shape.model == "edges")
        for backend in filter(shape.is_on, ("cpu-generic", "cuda")):
            case = _C.KernelCase(**shape.kernel_case(backend, shape.tokens(backend)[0]))
            assert case.format == shape.format
            suffix = shape.op[shape.op.rfind("_"):]
            usual = {"_gemm": 128, "_mxfp8": 128, "_fp8": 8, "_draft": 8, "_verify": 8}.get(suffix, 1)
            assert case.num_tokens == usual
            assert case.kernel != "gemm_best" or max(shape.tokens(backend)) <= 16  # what lm_head scores at once


def test_choosing_shapes():
    assert {s.op for s in choose(["mxfp4"], "flash") if s.fields} == {"expert_gate_up", "expert_down"}
    assert [s.name for s in choose([], "pro/qkv")] == ["pro/qkv"]
    assert [s.name for s in choose(["edges"], "pro-r8")] == [
        "edges/same_worker", "edges/tag", "edges/counter", "edges/gather"]
    assert {s.name for s in choose(["edges", "qkv"], "pro")} > {"edges/tag", "pro/qkv"}
    assert [s.op for s in choose([], "edges/tag")] == ["tag"]
    assert choose(["bf16"], "48x96")[0].kernel_case("cpu-avx2", 3) == {
        "kernel": "gemm", "format": "bf16", "num_tokens": 3, "rows": 48, "k": 96}
    for kernels, shape, needle in (([], "64x64", "name the formats"), (["qkv"], "64x64", "formats"),
                                   (["fp4"], "pro", "got 'fp4'"), ([], "mimo", "got 'mimo'"),
                                   (["qkv"], "gpt-oss-120b", "has no qkv")):
        with pytest.raises(ValueError, match=needle):
            choose(kernels, shape)


# -- running


def test_records_say_what_was_measured_and_can_be_repeated(capsys):
    assert cli_main([*SMALL, "--tokens", "1,3", "--json"]) == 0
    lines = lines_of(capsys)
    assert [line["case"] for line in lines] == [
        "custom/64x128/bf16/t1", "custom/64x128/bf16/t3",
        "custom/64x128/mxfp4/t1", "custom/64x128/mxfp4/t3"]
    for line in lines:
        assert line["correct"] and 0 < line["error_over_bound"] <= 1
        assert line["p10_us"] <= line["median_us"] <= line["p90_us"] and line["n"] >= 5
        assert line["flops"] == 2 * 64 * 128 * line["tokens"]
        assert line["measured"]["rows"] == 64 and line["cache"] == "cold" and line["clock"] == "wall"
        assert line["read_gbs"] > 0 and line["bandwidth_fraction"] > 0 and line["machine"]
        assert "baseline" not in line and "floor_us" not in line
        compute_us = line["flops"] / line["peak_gflops"] / 1e3
        bound_us = max(line["bound_us"], compute_us)
        assert line["peak_source"] and line["compute_bound_us"] == pytest.approx(compute_us, abs=0.01)
        assert line["bound_fraction"] == pytest.approx(bound_us / line["median_us"], rel=0.05, abs=0.01)
    assert lines[0]["bytes"] == 64 * 128 * 2
    assert cli_main(shlex.split(lines[3]["repeat"])[1:] + ["--no-baseline"]) == 0
    (again,) = lines_of(capsys)
    assert again["case"] == lines[3]["case"] and again["bytes"] == lines[3]["bytes"]


def test_calls_on_a_gpu_have_the_time_of_an_empty_kernel_beside_them(capsys, monkeypatch):
    shape = shape_of("pro-r8/route")
    monkeypatch.setattr(kernel_run, "MIN_SAMPLES", 3)
    monkeypatch.setattr(kernel_run._C, "KernelBench", GpuBench)
    result = kernel_run.measure_kernel(shape, 1, _C.KernelBenchOptions(backend="cuda"), 0.001, with_baseline=False)
    assert set(result.floor_s) == set(GpuBench.empty) and result.record()["floor_us"] == 3.0
    assert result.peak is None and "peak_gflops" not in result.record()
    monkeypatch.setattr("mimo_rt.cli.kbench.measure_kernel", lambda *_, **__: result)
    assert cli_main(["kbench", "route", "--device", "cuda", "--tokens", "1"]) == 0
    assert ", an empty kernel 3.00 us" in capsys.readouterr().out


def test_table_and_hot_runs(capsys):
    assert cli_main([*SMALL, "--tokens", "2", "--hot"]) == 0
    shown = capsys.readouterr()
    assert "custom/64x128/bf16/t2/hot" in shown.out and "error/bound" in shown.out
    assert "repeat: mimo-rt kbench bf16 mxfp4 --shape 64x128" in shown.out
    assert "1 of 2" in shown.err and "%peak" in shown.out
    assert cli_main([*SMALL, "--tokens", "2", "--hot", "--json"]) == 0
    for line in lines_of(capsys):  # of the vector units alone, however fast memory is
        assert line["bound_by"] == "vector"
        expected = line["flops"] / line["peak_gflops"] / 1e3 / line["median_us"]
        assert line["bound_fraction"] == pytest.approx(expected, rel=0.05, abs=0.01)


def test_int8_activations_are_those_of_mxfp4_matrices(capsys):
    assert cli_main([*SMALL, "--tokens", "8", "--activations", "int8", "--json"]) == 0
    (line,) = lines_of(capsys)  # bf16 matrices know no INT8 activations
    assert line["case"] == "custom/64x128/mxfp4/t8/int8" and line["activations"] == "int8"
    assert line["correct"] and "--activations int8" in line["repeat"]
    arguments = ["kbench", "bf16", "--shape", "64x128", "--activations", "int8"]
    assert cli_main(arguments) == 1
    assert "no int8 kernel for custom/64x128" in capsys.readouterr().err


def test_list_shows_shapes_without_running(capsys):
    assert cli_main(["kbench", "--shape", "gpt-oss-120b", "--list"]) == 0
    out = capsys.readouterr().out
    assert "gpt-oss-120b/expert_down" in out and "num_experts 128" in out and "2880" in out


def test_every_kind_of_kernel_runs_at_a_real_shape(capsys):
    arguments = ["kbench", "expert_down", "router", "attention_window", "--tokens", "1",
                 "--seconds", "0.01", "--no-baseline", "--json"]
    assert cli_main(arguments) == 0
    assert [line["kernel_name"] for line in lines_of(capsys)] == ["gemm", "gemm", "attention"]


def test_edges_are_timed_by_their_hops(capsys):
    if _C.num_usable_cores() < 2:
        pytest.skip("one core")
    arguments = ["kbench", "edges", "--workers", "2", "--seconds", "0.01"]
    assert cli_main([*arguments, "--json"]) == 0
    lines = lines_of(capsys)  # a CPU has these two
    assert [line["case"] for line in lines] == ["edges/counter/u32/t1", "edges/gather/u32/t1"]
    for line in lines:
        assert line["correct"] and line["num_workers"] == 2 and line["measured"]["num_hops"] == 4096
        assert line["num_hops"] == 4096 - 3 and line["n"] >= 5
        assert line["ns_per_hop"] == pytest.approx(1e3 * line["median_us"] / line["num_hops"], rel=0.01)
        assert "gbs" not in line and "bandwidth_fraction" not in line and "tokens_per_s" not in line
    assert cli_main(shlex.split(lines[1]["repeat"])[1:]) == 0
    assert lines_of(capsys)[0]["case"] == lines[1]["case"]
    assert cli_main(arguments) == 0
    out = capsys.readouterr().out
    assert "ns per hop" in out and "right" in out and "GB/s" not in out.replace("GB/s measured", "")


def test_a_kernel_that_is_not_there_is_skipped_unless_it_was_asked_for(capsys, monkeypatch):
    def measure(shape, *args, **more):
        if shape.op == "expert_down":
            raise UnavailableError("no such device")
        return kernel_run.measure_kernel(shape, *args, **more)

    monkeypatch.setattr("mimo_rt.cli.kbench.measure_kernel", measure)
    arguments = ["--shape", "gpt-oss-120b", "--tokens", "1", "--seconds", "0.01", "--no-baseline", "--json"]
    assert cli_main(["kbench", *arguments]) == 0
    shown = capsys.readouterr()
    assert "skipped gpt-oss-120b/expert_down, 1 tokens: no such device" in shown.err
    assert len(shown.out.splitlines()) == 1
    assert cli_main(["kbench", "mxfp4", *arguments]) == 0  # a format asks for no kernel
    assert len(lines_of(capsys)) == 1
    named = ["kbench", "expert_gate_up", "expert_down", *arguments]
    assert cli_main(named) == 1
    shown = capsys.readouterr()
    assert "mimo-rt: error: no such device" in shown.err and len(shown.out.splitlines()) == 1
    assert cli_main(named[:-1]) == 1  # as a table, the same
    assert "gpt-oss-120b/expert_gate_up/mxfp4/t1" in capsys.readouterr().out


def play_failures(monkeypatch, failures):
    """Kernels by name that fail, with their errors."""
    def measure(shape, *args, **more):
        if shape.op in failures:
            raise failures[shape.op]
        return kernel_run.measure_kernel(shape, *args, **more)

    monkeypatch.setattr("mimo_rt.cli.kbench.measure_kernel", measure)


QUICK = ["--tokens", "1", "--seconds", "0.001", "--no-baseline"]


@pytest.mark.parametrize("failing", ["expert_gate_up", "expert_down", "router"])
def test_a_case_that_fails_leaves_the_others(capsys, monkeypatch, failing):
    play_failures(monkeypatch, {failing: OutOfMemoryError("[x] no room")})
    names = ["expert_gate_up", "expert_down", "router"]
    assert cli_main(["kbench", *names, *QUICK, "--json"]) == 1
    shown = capsys.readouterr()
    lines = {line["case"].split("/")[1]: line for line in map(json.loads, shown.out.splitlines())}
    assert list(lines) == names and lines[failing]["error"] == "[x] no room" and "median_us" not in lines[failing]
    assert lines[failing]["repeat"].startswith(f"mimo-rt kbench --shape pro-r8/{failing} --tokens 1 ")
    assert all("median_us" in line for name, line in lines.items() if name != failing)
    assert f"failed, not timed: pro-r8/{failing}/" in shown.err
    assert cli_main(["kbench", *names, *QUICK]) == 1
    assert "failed, not timed" in capsys.readouterr().err


def test_a_lost_gpu_ends_the_process_and_another_goes_on(capsys, monkeypatch):
    play_failures(monkeypatch, {"expert_gate_up": DeviceLostError("[x] illegal address")})
    arguments = ["kbench", "--shape", "gpt-oss-120b", *QUICK, "--json"]
    assert cli_main(arguments) == 1
    shown = capsys.readouterr()
    assert [json.loads(line)["error"] for line in shown.out.splitlines()] == ["[x] illegal address"]
    assert "To measure it: --after expert_gate_up" in shown.err
    assert cli_main([*arguments, "--after", "expert_gate_up"]) == 0
    assert [line["case"] for line in lines_of(capsys)] == ["gpt-oss-120b/expert_down/mxfp4/t1"]
    assert cli_main([*arguments, "--after", "router"]) == 1
    assert "--after: expected one of expert_gate_up, expert_down, got 'router'" in capsys.readouterr().err


def test_nothing_follows_the_last_kernel(capsys, monkeypatch):
    play_failures(monkeypatch, {"expert_down": DeviceLostError("[x] illegal address")})
    arguments = ["kbench", "--shape", "gpt-oss-120b", *QUICK, "--json"]
    assert cli_main(arguments) == 1
    shown = capsys.readouterr()
    assert "error: gpt-oss-120b/expert_down/" in shown.err and "--after" not in shown.err
    assert cli_main([*arguments, "--after", "expert_down"]) == 0  # whoever goes on behind each that failed
    shown = capsys.readouterr()
    assert not shown.out and "no kernel follows expert_down" in shown.err


class WrongBench:
    """Stands in for `_C.KernelBench`: a kernel whose result is off."""

    error = 2.5

    @classmethod
    def open(cls, kernel_case, options):
        bench = cls()
        bench.measured, bench.backend, bench.device = kernel_case, options.backend, ""
        bench.work = type("Work", (), {"num_active_experts": 0, "num_hops": 0})
        bench.relative_error = 0.0
        return bench

    def worst_error(self):
        return self.error

    def run(self, num_calls):
        raise AssertionError("a wrong kernel is not timed")


class GpuBench(WrongBench):
    """A kernel on a GPU that takes 5 us; an empty one takes 2, 3 or 9."""

    error, empty = 0.5, (2e-6, 3e-6, 9e-6)

    @classmethod
    def open(cls, kernel_case, options):
        bench = super().open(kernel_case, options)
        bench.device = "H200"
        bench.work.bytes, bench.work.flops, bench.work.read_bytes = 1e6, 1e6, 1e9
        return bench

    def measure_peak(self):
        return None

    def run(self, num_calls):
        times = {"call_s": [5e-6] * 3, "read_s": [3e-4] * 3, "floor_s": list(self.empty)}
        return type("Times", (), times)


@pytest.mark.parametrize("error", [2.5, math.inf])
def test_a_wrong_result_is_not_timed_and_fails(capsys, monkeypatch, error):
    monkeypatch.setattr(WrongBench, "error", error)
    monkeypatch.setattr(kernel_run._C, "KernelBench", WrongBench)
    assert cli_main([*SMALL, "--tokens", "1", "--json"]) == 1
    shown = capsys.readouterr()
    line = json.loads(shown.out.splitlines()[0])
    assert line["correct"] is False and "median_us" not in line
    assert line["error_over_bound"] == (2.5 if error == 2.5 else None)
    assert "wrong results, not timed: custom/64x128/bf16/t1" in shown.err
    assert cli_main([*SMALL, "--tokens", "1"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_baseline_is_the_faster_type_of_torch():
    torch = pytest.importorskip("torch")
    case = _C.KernelCase(kernel="gemm", format="mxfp4", rows=512, k=512, num_tokens=2)
    before = torch.get_num_threads()
    try:
        baseline, note = make_baseline(case, None, "cpu-generic")
    finally:
        torch.set_num_threads(before)
    assert torch.__version__ in baseline.name and "linear" in baseline.name
    assert len(baseline.run(3)) == 3 and min(baseline.run(3)) > 0 and note == ""
    assert make_baseline(_C.KernelCase(kernel="read", format="bf16"), None, "cpu-generic") == (None, "")
    router = _C.KernelCase(kernel="router_logits", format="f32", num_experts=64, hidden_size=64)
    assert "float32" in make_baseline(router, None, "cpu-generic")[0].name


def test_without_torch_there_is_no_baseline(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    case = _C.KernelCase(kernel="gemm", format="bf16", rows=32, k=32)
    assert make_baseline(case, None, "cpu-generic") == (None, "")


# -- compare


def record(median, case="pro-r8/qkv/fp8_e4m3/t1", **more):
    return {"case": case, "backend": "cuda", "median_us": median, "p10_us": 0.99 * median,
            "p90_us": 1.01 * median, "n": 100, "bandwidth_gbs": 4000.0, **more}


@pytest.mark.parametrize(("after", "verdict", "code"), [
    (record(80.0), "FASTER", 0), (record(130.0), "SLOWER", 1), (record(100.2), "SAME", 0),
    (record(104.0, n=1), "UNDECIDED", 0),
    (record(100.0, correct=False), "SAME", 1),
])
def test_compare(capsys, tmp_path, after, verdict, code):
    files = []
    for name, line in (("a", record(100.0)), ("b", after)):
        files.append(str(tmp_path / name))
        (tmp_path / name).write_text(json.dumps(line) + "\n")
    assert cli_main(["kbench", "compare", *files]) == code
    assert verdict in capsys.readouterr().out


def test_compare_names_what_failed(capsys, tmp_path):
    before, after = tmp_path / "a", tmp_path / "b"
    before.write_text(json.dumps(record(100.0)) + "\n")
    kill = {"kill": "tiny", "error": "no case of kbench"}
    failed = {"case": "pro-r8/o_proj/bf16/t1", "backend": "cuda", "error": "[x] no room"}
    after.write_text("".join(json.dumps(line) + "\n" for line in (kill, record(100.0))))
    assert cli_main(["kbench", "compare", str(before), str(after)]) == 0
    after.write_text(after.read_text() + json.dumps(failed) + "\n")
    capsys.readouterr()
    assert cli_main(["kbench", "compare", str(before), str(after)]) == 1
    assert f"failed in {after}: pro-r8/o_proj/bf16/t1" in capsys.readouterr().err
    after.write_text(json.dumps(failed) + "\n")  # all of them
    assert cli_main(["kbench", "compare", str(before), str(after)]) == 1
    error = capsys.readouterr().err
    assert f"failed in {after}: pro-r8/o_proj/bf16/t1" in error and "no case in common" in error


def test_compare_says_when_the_records_are_of_different_gpus(capsys, tmp_path):
    files = []
    for name in ("NVIDIA H100", "NVIDIA H200"):
        files.append(tmp_path / name)
        files[-1].write_text(json.dumps(record(100.0, device=name)) + "\n")
    cli_main(["kbench", "compare", *map(str, files)])
    shown = capsys.readouterr()
    assert "device differs: NVIDIA H100 and NVIDIA H200" in shown.out + shown.err
    cli_main(["kbench", "compare", str(files[0]), str(files[0])])
    shown = capsys.readouterr()
    assert "differs" not in shown.out + shown.err


# -- bad input


def test_results_do_not_keep_the_data_of_their_kernel():
    shape = choose(["mxfp4"], "64x128")[0]
    backend = _C.resolve_backend("cpu")
    case = _C.KernelCase(**shape.kernel_case(backend, 1))
    bench = _C.KernelBench.open(case, _C.KernelBenchOptions(backend=backend))
    alive = weakref.ref(bench)
    facts = bench.measured, bench.work
    assert alive() is not None
    del bench
    assert alive() is None
    assert facts[0].rows == 64


def test_a_gpu_that_is_not_there(capsys):
    cuda = next(b for b in _C.list_backends() if b.name == "cuda")
    if "sm_" in cuda.reason:
        pytest.skip("there is a GPU")
    assert cli_main(["kbench", "qkv", "--device", "cuda", "--tokens", "1", "--json"]) == 1
    progress, error = capsys.readouterr().err.splitlines()
    assert progress.startswith("1 of 1: pro-r8/qkv") and error.startswith("mimo-rt: error: [KernelBench")


@pytest.mark.parametrize(("arguments", "needle"), [
    (["--seconds", "0"], "--seconds"), (["--shape", "x"], "--shape"),
    (["nonsense"], "got 'nonsense'"), (["attention_full", "--hot"], "has no hot kernel"),
    (["sample"], "has no kernel for pro-r8/sample"),
    (["--device", "tpu"], "device"), (["edges", "--hot"], "has no hot kernel"),
    (["edges", "--workers", "1"], "num_workers: expected at least 2"), (["edges", "--workers", "0"], "--workers"),
    (["edges", "qkv", "--workers", "2"], "expected edges alone"),
    (["tag", "--shape", "edges"], "has no kernel for edges/tag"),
])
def test_wrong_values(capsys, arguments, needle):
    assert cli_main(["kbench", *arguments]) == 1
    assert needle in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--tokens", "0"], ["--tokens", "a"], ["compare", "a"]])
def test_wrong_usage(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        cli_main(["kbench", *arguments])
    assert exit_.value.code == 2
