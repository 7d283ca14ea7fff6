"""The GPU gate without a GPU: it says so, its steps are kept, cut off and counted."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest


@pytest.fixture
def gate(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "bench"))
    spec = importlib.util.spec_from_file_location("gpu_gate", root / "bench" / "gpu_gate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_gate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def log(gate, tmp_path):
    return gate.Log(tmp_path / "result.jsonl", time.monotonic() + 60)


def kept(log):
    return [json.loads(line) for line in log.path.read_text().splitlines()]


def python(code):
    return [sys.executable, "-c", code]


def test_without_a_gpu_it_says_so_and_leaves_nothing(gate, root, tmp_path):
    if not gate.find_gpu():
        pytest.skip("there is a GPU")
    command = [sys.executable, root / "bench" / "gpu_gate.py", "--results", tmp_path / "r", "--build", tmp_path / "b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == gate.NO_GPU == 3
    assert done.stdout == "" and done.stderr.startswith("gpu_gate: nothing was built or run:")
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_what_a_machine_lacks_is_told_before_anything_is_built(gate, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gate, "find_gpu", lambda: "")
    monkeypatch.setattr(gate, "missing", lambda wheels: ["the package nlohmann-json==3.12.0", "a C++ compiler"])
    code = gate.main(["--results", str(tmp_path / "r"), "--build", str(tmp_path / "b")])
    assert code == gate.LACKING == 2 and not list(tmp_path.iterdir())
    said = capsys.readouterr().err
    assert "lacks the package nlohmann-json==3.12.0, a C++ compiler." in said and "--collect DIR" in said


def test_a_second_run_of_a_day_has_a_file_of_its_own(gate, tmp_path):
    names = []
    for _ in range(3):
        path = gate.result_path(tmp_path, "NVIDIA H200 NVL")
        path.write_text("")
        names.append(path.name.split("-gpu-")[1])
    assert names == ["h200-nvl.jsonl", "h200-nvl-2.jsonl", "h200-nvl-3.jsonl"]


def test_every_native_test_is_run(gate, root):
    assert len(gate.NATIVE_TESTS) >= 3
    built = (root / "tests" / "cpp" / "CMakeLists.txt").read_text()
    assert all(name in built for name in gate.NATIVE_TESTS)


def test_steps_are_kept_as_they_end(gate, log):
    stage = gate.Stage("tests", log)
    assert stage.run("good", python("print('fine')"))
    assert not stage.run("bad", python("print('what went wrong'); raise SystemExit(4)"))
    assert not stage.run("missing", ["/no/such/program"])
    good, bad, missing = kept(log)
    assert good["status"] == "passed" and "output" not in good
    assert bad["status"] == "failed" and bad["exit_code"] == 4 and "what went wrong" in bad["output"]
    assert missing["exit_code"] == 127 and missing["stage"] == "tests"


def test_a_step_beyond_its_limit_is_cut_off_with_its_children(gate, log, monkeypatch):
    monkeypatch.setitem(gate.LIMITS_S, "kbench", 2)
    stage = gate.Stage("kbench", log)
    seen = []
    begin = time.monotonic()
    hang = "import subprocess, sys, time; print('first', flush=True); subprocess.run(['sleep', '50'])"
    assert not stage.run("hang", python(hang), on_line=seen.append, may_be_cut=True)
    assert not stage.run("late", python("pass"))
    assert time.monotonic() - begin < 40 and seen == ["first\n"]
    hang, late = kept(log)
    assert hang["status"] == "not run" and "cut off" in hang["reason"] and "first" in hang["output"]
    assert late["status"] == "not run" and late["reason"] == "no time left"
    log.deadline = time.monotonic() + 2  # of the whole gate
    assert not gate.Stage("tests", log).run("test", python("import time; time.sleep(50)"))
    assert kept(log)[-1]["status"] == "not run"
    log.deadline = time.monotonic() + 60
    assert not gate.Stage("tests", log, limit_s=2).run("test", python("import time; time.sleep(50)"))
    assert kept(log)[-1]["status"] == "failed"  # what hangs in its own time


def test_a_step_that_hangs_leaves_the_time_of_its_stage(gate, log):
    """Silence is what tells it from one that takes long; what it printed last is kept, by Python without a flush too."""
    stage = gate.Stage("kbench", log)
    slow = "import time\nfor i in range(5): print(i); time.sleep(1.2)"
    assert stage.run("slow", python(slow), silence_s=5)
    hang = "import time; print('case 7'); time.sleep(50)"
    begin = time.monotonic()
    assert not stage.run("hang", python(hang), may_be_cut=True, silence_s=5)
    assert not stage.run("long", python(hang), step_s=1.5)
    assert not stage.run("part", python(hang), may_be_cut=True, step_s=1.5)
    assert stage.run("next", python("pass")) and time.monotonic() - begin < 30
    slow, hang, long, part, _ = kept(log)
    assert slow["status"] == "passed" and slow["seconds"] > 5
    assert hang["status"] == "failed" and hang["reason"].startswith("hangs") and hang["output"] == "case 7\n"
    assert long["status"] == "failed" and part["status"] == "not run"
    assert long["reason"] == part["reason"] == "cut off after 2 s"


def test_cases_before_one_that_hangs_are_known(gate, log, root, tmp_path):
    source, program = tmp_path / "hang.cpp", tmp_path / "hang"
    source.write_text('#include "check.h"\n#include <unistd.h>\nTEST_CASE("first") { CHECK(true); }\n'
                      'TEST_CASE("second") { pause(); }\nCHECK_MAIN()\n')
    subprocess.run(["c++", "-std=c++20", f"-I{root / 'tests' / 'cpp'}", f"-I{root / 'include'}", source, "-o", program],
                   check=True)
    assert not gate.Stage("tests", log).run("hang", [str(program)], silence_s=1)
    assert kept(log)[-1]["output"] == "ok   first\n"


def test_a_process_that_cannot_be_killed_is_left_behind(gate, log, monkeypatch):
    import gate_steps

    monkeypatch.setattr(gate_steps.os, "killpg", lambda pid, signal: None)
    monkeypatch.setattr(gate_steps, "KILL_S", 0.5)
    assert not gate.Stage("tests", log).run("stuck", ["sleep", "4"], step_s=1)
    assert gate.Stage("tests", log).run("next", python("pass"))
    # Silent: it hangs, though to wait for its end took longer than it had.
    assert not gate.Stage("tests", log).run("silent", ["sleep", "4"], step_s=1.4, silence_s=1, may_be_cut=True)
    assert [line["status"] for line in kept(log)] == ["failed", "passed", "failed"]
    assert kept(log)[-1]["reason"].startswith("hangs")


ENDED_GATE = """
import sys
import gpu_gate as gate
gate.find_gpu, gate.missing = lambda: "", lambda wheels: []
gate.device_facts = lambda: {"name": "H200"}
command = ["sh", "-c", "echo $$; exec sleep 50"]
gate.build = lambda log, args: gate.Stage("build", log).run("stuck", command, on_line=lambda line: print(line, flush=True))
sys.exit(gate.main(["--results", sys.argv[1], "--build", sys.argv[1]]))
"""


def test_a_gate_that_is_ended_ends_its_step_and_sums_up(gate, root, tmp_path):
    with subprocess.Popen([sys.executable, "-c", ENDED_GATE, tmp_path], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": str(root / "bench")}) as process:
        step_pid = int(process.stdout.readline())
        os.kill(step_pid, 0)
        process.terminate()
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 1 and "written:" in out
    with pytest.raises(ProcessLookupError):
        os.kill(step_pid, 0)
    (path,) = tmp_path.glob("*.jsonl")
    step = json.loads(path.read_text().splitlines()[-1])
    assert step["step"] == "stuck" and step["status"] == "not run" and step["reason"] == "the gate was ended"


KERNELS = ("a", "b", "c", "d")
PLAYED_KBENCH = f"""#!{sys.executable}
import json, sys, time
kernels, bad = {KERNELS}, json.loads(open(__file__ + ".bad").read())
if "--after" in sys.argv: kernels = kernels[kernels.index(sys.argv[sys.argv.index("--after") + 1]) + 1:]
code = 0
for i, kernel in enumerate(kernels):
    print(f"{{i + 1}} of {{len(kernels)}}: pro/{{kernel}}, 1 tokens", file=sys.stderr, flush=True)
    fate = bad.get(kernel, "")
    if fate == "hangs": time.sleep(50)
    print(json.dumps({{"case": f"pro/{{kernel}}", **({{"error": fate}} if fate else {{"median_us": 1.0}})}}), flush=True)
    code = code or bool(fate)
    if fate == "lost": break
sys.exit(code)
"""


@pytest.mark.parametrize(("bad", "processes", "measured"), [
    ({}, ["passed"], "abcd"), ({"a": "lost"}, ["failed", "passed"], "bcd"), ({"b": "hangs"}, ["failed", "passed"], "acd"),
    ({"a": "lost", "c": "hangs"}, ["failed", "failed", "passed"], "bd"), ({"b": "no room"}, ["failed"], "acd"),
    ({"d": "hangs"}, ["failed"], "abc"), ({"a": "lost", "d": "lost"}, ["failed", "failed"], "bc")])
def test_a_kernel_that_fails_or_hangs_takes_no_others_along(gate, log, tmp_path, capsys, bad, processes, measured):
    program = tmp_path / "python"
    program.write_text(PLAYED_KBENCH)
    program.chmod(0o755)
    (tmp_path / "python.bad").write_text(json.dumps(bad))
    gate.measure(gate.Stage("kbench", log), str(program), "pro", "--shape", "pro", may_be_cut=True, silence_s=5)
    steps = [line for line in kept(log) if "status" in line]
    assert [step["status"] for step in steps] == processes
    times = [line["case"].split("/")[1] for line in kept(log) if "median_us" in line]
    assert "".join(times) == measured
    failed = {line["case"].split("/")[1] for line in kept(log) if "error" in line}
    assert failed == {kernel for kernel, fate in bad.items() if fate != "hangs"}
    capsys.readouterr()
    gate.print_summary(log)
    assert capsys.readouterr().out.count(" FAILED ") == len(failed)


def test_a_kbench_that_does_not_begin_is_not_tried_again(gate, log):
    gate.measure(gate.Stage("kbench", log), "/bin/false", "pro", "--shape", "pro")
    assert len(kept(log)) == 1


def test_progress_of_kbench_is_understood(gate, capsys):
    import gate_kbench
    from mimo_rt.cli import main

    main(["kbench", "router", "--tokens", "2", "--seconds", "0.001", "--no-baseline", "--json"])
    (line,) = capsys.readouterr().err.splitlines()
    assert gate_kbench._PROGRESS.match(line).groups() == ("1", "1", "router")


def run_gate(gate, monkeypatch, tmp_path, record, test_code="pass", cmake_code=None):
    """The gate with a build that makes Python programs instead; its exit code and lines."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in gate.NATIVE_TESTS:
        path = programs / name
        path.write_text(f"#!{sys.executable}\nimport sys\nif '--list' in sys.argv: print('a case')\nelse:\n {test_code}\n")
        path.chmod(0o755)
    sanitizer = programs / "sanitizer"
    sanitizer.write_text("#!/bin/sh\ntest \"$1\" = --tool\n")
    sanitizer.chmod(0o755)
    fake_python = programs / "python"
    fake_python.write_text(f"#!/bin/sh\necho note\necho '{json.dumps(record)}'\n")
    fake_python.chmod(0o755)
    if cmake_code is not None:  # found before the real one
        (programs / "cmake").write_text(f"#!/bin/sh\nexit {cmake_code}\n")
        (programs / "cmake").chmod(0o755)
        monkeypatch.setattr(gate, "has_cutlass", lambda log, args, facts: True)
    monkeypatch.setattr(gate, "find_gpu", lambda: "")
    monkeypatch.setattr(gate, "missing", lambda wheels: [])
    monkeypatch.setattr(gate, "device_facts", lambda: {"name": "NVIDIA H200 NVL"})
    monkeypatch.setattr(gate, "build", lambda log, args: {"tests": str(programs), "python": str(fake_python)})
    monkeypatch.setattr(gate, "find_sanitizer", lambda python: str(sanitizer))
    monkeypatch.setattr(sys.modules["gate_slice"], "lacks_room", lambda: "")
    monkeypatch.setattr(gate, "run_resources", lambda log, python: None)  # test_gate_counters.py has them
    monkeypatch.setattr(gate, "run_counters", lambda log, python: None)
    code = gate.main(["--results", str(tmp_path), "--build", str(tmp_path / "b")])
    (path,) = pathlib.Path(tmp_path).glob("*.jsonl")
    assert path.name.endswith("-gpu-h200-nvl.jsonl")
    return code, [json.loads(line) for line in path.read_text().splitlines()]


NUM_SHAPES = 8  # that kbench measures: four, each first with what counts most
NUM_SCRIPTS = 8  # that leave a record, too: gpu_engine, gpu_bits, gpu_kill and gpu_slice.py, two of `costs` and of `soak`
RECORD = {"case": "pro-r8/qkv/fp8_e4m3/t1", "kernel_name": "qkv", "median_us": 5.5, "gbs": 3900.0, "bandwidth_fraction": 0.9,
          "times_baseline": 2.0}


def test_a_whole_gate_leaves_device_steps_and_records(gate, monkeypatch, tmp_path, capsys):
    code, lines = run_gate(gate, monkeypatch, tmp_path, RECORD)
    assert code == 0 and lines[0]["name"] == "NVIDIA H200 NVL" and lines[0]["date"]
    num_tests, num_sessions, num_costs = len(gate.NATIVE_TESTS), 8, 2
    steps = [line for line in lines if "status" in line]
    assert len(steps) == num_tests + 2 * num_tests + num_sessions + num_costs + NUM_SHAPES
    assert {s["status"] for s in steps} == {"passed"}
    order = list(dict.fromkeys(s["stage"] for s in steps))
    assert order == ["tests", "costs", "engine", "python", "bits", "kill", "soak", "slice", "kbench", "sanitizer"]
    assert sum("case" in line for line in lines) == NUM_SHAPES + NUM_SCRIPTS
    out = capsys.readouterr().out
    assert "sanitizer" in out and "5.5" in out and "90.0" in out and "written:" in out


def test_a_longer_soak_takes_its_time_from_nobody(gate, log, monkeypatch):
    assert gate.parse([]).seconds == 540 and gate.parse([]).soak_seconds == gate.SOAK_S
    assert gate.LIMITS_S["soak"] - gate.SOAK_S >= 2 * 12  # two processes: CUDA's start and the quiet runs come on top
    args = gate.parse(["--soak-seconds", "600"])
    assert args.seconds == 540 + 600 - gate.SOAK_S and gate.parse(["--soak-seconds", "10"]).seconds == 540
    assert gate.parse(["--soak-seconds", "600", "--seconds", "50"]).seconds == 50
    log.deadline = time.monotonic() + args.seconds
    left = []
    monkeypatch.setattr(gate.Stage, "run", lambda stage, *_, **__: left.append(stage.until - time.monotonic()))
    gate.run_soak(log, "python", args.soak_seconds)
    gate.run_bits(log, "python")
    assert 620 < left[0] <= 625 and left[2] <= gate.LIMITS_S["bits"]


def test_a_slow_build_takes_its_time_from_the_last_stages(gate, log):
    for left_s, expected in ((gate.SECONDS, 300), (200, 200)):
        log.deadline = time.monotonic() + left_s
        assert gate.Stage("build", log).until - time.monotonic() == pytest.approx(expected, abs=5)


def test_a_slice_that_does_not_fit_is_not_run(gate, log, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    gate.run_slice(log, "/no/such/python")
    tool = tmp_path / "nvidia-smi"
    for free_mib in (40_000, 90_000):
        tool.write_text(f"#!/bin/sh\necho {free_mib}\n")
        tool.chmod(0o755)
        gate.run_slice(log, "/no/such/python")
    unknown, small, large = kept(log)
    assert unknown["status"] == small["status"] == "not run" and "nvidia-smi" in unknown["reason"]
    assert small["reason"] == "80000 MiB needed, 40000 are free" and large["exit_code"] == 127


def test_a_slice_that_is_cut_off_keeps_its_rounds_and_fails_nothing(gate, log, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys.modules["gate_slice"], "lacks_room", lambda: "")
    monkeypatch.setitem(gate.LIMITS_S, "slice", 2)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho '{\"case\": \"slice\", \"median_us\": 7.25, \"bandwidth_fraction\": 0.5}'\n"
                       "echo '{\"case\": \"slice/torch\", \"baseline_failed\": true}'\nsleep 50\n")
    program.chmod(0o755)
    gate.run_slice(log, str(program))
    rounds, baseline, step = kept(log)
    assert rounds["median_us"] == 7.25 and step["status"] == "not run" and "cut off" in step["reason"]
    gate.print_summary(log)
    shown = {words[0]: words[1:] for words in map(str.split, capsys.readouterr().out.splitlines()) if words}
    assert shown["slice"][-4:] == ["7.25", "-", "50.0", "-"] and shown["slice/torch"][-1] == "FAILED"
    assert shown["slice/torch"][-2] == "-" and baseline["gate"]


def test_a_slice_that_is_cut_off_before_its_first_round_fails_the_gate(gate, log, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys.modules["gate_slice"], "lacks_room", lambda: "")
    monkeypatch.setitem(gate.LIMITS_S, "slice", 2)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nsleep 50\n")
    program.chmod(0o755)
    gate.run_slice(log, str(program))
    assert [step["status"] for step in kept(log)] == ["not run", "failed"]
    assert "failed (0.0 s): no round was measured" in capsys.readouterr().out


def test_a_failed_test_fails_the_gate_but_not_the_rest(gate, monkeypatch, tmp_path):
    code, lines = run_gate(gate, monkeypatch, tmp_path, RECORD, "sys.exit('worst error 3')")
    assert code == 1 and sum("case" in line for line in lines) == NUM_SHAPES + NUM_SCRIPTS
    failed = [line for line in lines if line.get("status") == "failed"]
    assert [line["step"] for line in failed] == list(gate.NATIVE_TESTS)
    assert "worst error 3" in failed[0]["output"]


def test_a_gate_without_a_measured_kernel_fails(gate, monkeypatch, tmp_path):
    code, lines = run_gate(gate, monkeypatch, tmp_path, {"case": "edges", "kernel_name": "edge_tag", "ns_per_hop": 900.0})
    assert code == 1 and {line["status"] for line in lines if "status" in line} == {"passed"}


def test_cutlass_is_built_where_it_runs_and_its_headers_are(gate, log, root, tmp_path):
    args = gate.parse(["--wheels", str(tmp_path)])
    assert not gate.has_cutlass(log, args, {"compute_cap": "9.0"}) and not log.steps
    assert not gate.has_cutlass(log, args, {"compute_cap": "10.0"})
    assert kept(log)[-1]["status"] == "not run" and "nvidia-cutlass==4.2.0.0" in kept(log)[-1]["reason"]
    (tmp_path / "nvidia_cutlass-4.2.1.0-py3-none-any.whl").write_text("")
    assert not gate.has_cutlass(log, args, {"compute_cap": "10.0"})
    (tmp_path / "nvidia_cutlass-4.2.0.0-py3-none-any.whl").write_text("")
    assert gate.has_cutlass(log, args, {"compute_cap": "10.0"})
    pins = (root / "third_party" / "cmake" / "Cutlass.cmake").read_text()
    assert f"MIMO_RT_CUTLASS_VERSION {gate.CUTLASS.split('==')[1]})" in pins


def test_the_first_build_is_one_without_cutlass(gate, log, monkeypatch, tmp_path):
    package, configure, tests = commands_of_build(gate, log, monkeypatch, tmp_path)
    objects = tmp_path / "b" / "package" / "CMakeFiles"  # of the package
    assert f"build-dir={objects.parent} " in package and f"-DMIMO_RT_BUILT_OBJECTS={objects} " in configure
    assert f"-DMIMO_RT_CUDA_OBJECTS={objects / 'mimo_rt_cuda.dir'}" in configure
    assert configure.startswith("cmake OFF ") and "-DMIMO_RT_CUTLASS=OFF" in configure
    assert gate.CUTLASS_TEST in tests and package.startswith("python OFF ") and "-m pip install" in package
    assert "ARCHITECTURES" not in configure + package


def commands_of_build(gate, log, monkeypatch, tmp_path, **options):
    """Programs that the build would run, with their environment."""
    said = tmp_path / "said"
    for name in ("cmake", "python"):
        code = f'#!/bin/sh\necho "{name} $MIMO_RT_CUTLASS $SKBUILD_CMAKE_DEFINE $*" >> "{said}"\n'
        (tmp_path / name).write_text(code)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(gate, "make_environment", lambda stage, directory, wheels: str(tmp_path / "python"))
    monkeypatch.setattr(gate, "find_baselines", lambda python: {"torch": "2.9", "triton": None})
    args = gate.parse(["--build", str(tmp_path / "b")])
    vars(args).update(options)
    built = gate.build(log, args)
    assert built == {"tests": str(tmp_path / "b" / "tests" / "tests" / "cpp"), "python": str(tmp_path / "python")}
    *commands, check = said.read_text().splitlines()
    assert "import mimo_rt" in check
    return commands


def test_only_the_kernels_of_the_device_are_compiled(gate, log, monkeypatch, tmp_path, capsys):
    package, configure, _ = commands_of_build(gate, log, monkeypatch, tmp_path, architecture=gate.ARCHITECTURES["9.0"])
    assert configure.endswith("-DMIMO_RT_CUDA_ARCHITECTURES=90a-real")
    assert package.startswith("python OFF MIMO_RT_CUDA_ARCHITECTURES=90a-real -m pip install")
    assert kept(log)[0] == {"stage": "baselines", "torch": "2.9", "triton": None}
    assert "torch 2.9, triton is not there" in capsys.readouterr().out


def test_a_build_with_cutlass_comes_last_and_takes_nothing_from_the_rest(gate, monkeypatch, tmp_path):
    code, lines = run_gate(gate, monkeypatch, tmp_path, RECORD, cmake_code=1)
    steps = [line for line in lines if "status" in line]
    optional = [step for step in steps if step["stage"] == "cutlass"]
    assert code == 1 and steps[-3:] == optional and {s["status"] for s in steps[:-3]} == {"passed"}
    assert [(s["step"], s["status"]) for s in optional] == [("package", "passed"), ("configure tests", "failed"),
                                                            ("tests", "failed")]
    assert sum("case" in line for line in lines) == NUM_SHAPES + NUM_SCRIPTS


def test_kernels_of_cutlass_are_tested_and_measured(gate, monkeypatch, tmp_path):
    program = tmp_path / "b" / "tests" / "tests" / "cpp" / gate.CUTLASS_TEST
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    code, lines = run_gate(gate, monkeypatch, tmp_path, RECORD, cmake_code=0)
    steps = [line["step"] for line in lines if line.get("stage") == "cutlass"]
    assert code == 0 and steps == ["package", "configure tests", "tests", gate.CUTLASS_TEST, "kbench"]
    assert sum("case" in line for line in lines) == NUM_SHAPES + NUM_SCRIPTS + 1


def test_a_build_that_fails_is_told(gate, monkeypatch, tmp_path):
    monkeypatch.setattr(gate, "find_gpu", lambda: "")
    monkeypatch.setattr(gate, "device_facts", lambda: {"name": "unknown"})
    monkeypatch.setattr(gate, "missing", lambda wheels: [])
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    code = gate.main(["--results", str(tmp_path), "--build", str(tmp_path / "b")])
    assert code == 1
    (path,) = tmp_path.glob("*.jsonl")
    (step,) = [json.loads(line) for line in path.read_text().splitlines()][1:]
    assert step["step"] == "venv" and step["status"] == "failed" and "/no/such/python" in step["output"]


def test_the_demo_model_comes_along(gate, monkeypatch, tmp_path):
    """Collected from a cache, found by the package on the other machine; not with --small."""
    from mimo_rt.checkpoints import demo

    kept_model = tmp_path / "cache" / demo.MODEL_NAME
    kept_model.mkdir(parents=True)
    (kept_model / "config.json").write_text("{}")
    monkeypatch.setenv("MIMO_RT_CACHE", str(kept_model.parent))
    real_run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **options: real_run(
        [sys.executable, "-c", ""] if "download" in command else command, **options))
    wheels, small = tmp_path / "wheels", tmp_path / "small"
    assert gate.collect(wheels, False) == 0 and gate.collect(small, True) == 0
    assert not small.exists() and gate.model_environment(small) == {} == gate.model_environment(None)
    monkeypatch.setenv("MIMO_RT_CACHE", gate.model_environment(wheels)["MIMO_RT_CACHE"])
    found = demo.cache_directory() / demo.MODEL_NAME
    assert found == wheels / "models" / demo.MODEL_NAME and (found / "config.json").read_text() == "{}"


def play_engine(program, line):
    program.write_text(f"#!/bin/sh\necho \"$@\" >> {program}.called\necho '{json.dumps(line)}'\n")
    program.chmod(0o755)


def test_a_demo_model_that_is_not_there_is_a_step_that_was_not_run(gate, log, tmp_path):
    play_engine(tmp_path / "python", {"model": "demo", "not_run": "no model in x"})
    gate.run_engine(log, str(tmp_path / "python"), None)
    step = kept(log)[-1]
    assert (step["step"], step["status"], step["reason"]) == ("sessions of demo", "not run", "no model in x")
    assert "--demo" not in (tmp_path / "python.called").read_text()


def test_the_demo_model_comes_in_pieces(gate, monkeypatch, tmp_path, capsys):
    """As many folders as it takes; one that is missing is told before anything is built."""
    monkeypatch.setattr(gate, "find_gpu", lambda: "")
    monkeypatch.setattr(gate, "missing", lambda wheels: [])
    monkeypatch.setattr(gate, "device_facts", lambda: {"name": "H200"})
    monkeypatch.setattr(gate.pieces, "RAW_BYTES", 1000)
    gate.pieces.cut({"config.json": b"{}" * 400, "model.safetensors": bytes(range(256)) * 8}, tmp_path / "p", 1)
    play_engine(tmp_path / "python", {"model": "demo", "passed": True})
    monkeypatch.setattr(gate, "build", lambda log, args: {"tests": "", "python": str(tmp_path / "python")})
    for name in vars(gate).keys() - {"run_engine"}:
        if name.startswith("run_"):
            monkeypatch.setattr(gate, name, lambda *_: None)
    arguments = ["--results", str(tmp_path / "r"), "--build", str(tmp_path / "b"), "--model-pieces", str(tmp_path / "p")]
    (tmp_path / "p" / "part-2").rename(tmp_path / "kept")
    assert gate.main(arguments) == gate.LACKING and not (tmp_path / "r").exists()
    assert "pieces are missing: part-2/piece-02.xz" in capsys.readouterr().err
    (tmp_path / "kept").rename(tmp_path / "p" / "part-2")
    assert gate.main(arguments) == 1  # without a measured kernel
    assert sorted(path.name for path in (tmp_path / "b" / "demo").iterdir()) == ["config.json", "model.safetensors"]
    assert f"--demo {tmp_path / 'b' / 'demo'}" in (tmp_path / "python.called").read_text()
    assert "not run" not in next((tmp_path / "r").iterdir()).read_text()


def test_a_demo_model_that_cannot_be_collected_is_told(gate, monkeypatch, tmp_path, capsys):
    import gate_needs

    monkeypatch.setattr(gate_needs.sys, "executable", "/bin/false")
    assert gate.collect(tmp_path / "wheels", False) == 1
    assert "the demo model was not collected" in capsys.readouterr().err
