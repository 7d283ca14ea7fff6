"""The GPU gate's stage `python`: it runs the tests of sessions on the GPU, and their models are some that it takes."""

import importlib
import json
import re
import subprocess
import sys
import time

import pytest
from mimo_rt import _C, errors
from mimo_rt.checkpoints import write_tiny_checkpoint


@pytest.fixture
def gate_sessions(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "bench"))
    return importlib.import_module("gate_sessions")


@pytest.fixture
def run_stage(gate_sessions, tmp_path, monkeypatch):
    """Runs the stage with other arguments for pytest; its last line and what it printed."""
    log = gate_sessions.Log(tmp_path / "result.jsonl", time.monotonic() + 600)

    def run(*arguments, python=sys.executable):
        shown = []
        real = gate_sessions.command
        monkeypatch.setattr(gate_sessions, "SILENCE_S", 300)  # beside other tests
        monkeypatch.setitem(sys.modules["gate_steps"].LIMITS_S, "python", 300)
        monkeypatch.setattr(gate_sessions, "command", lambda python: [*real(python), *arguments])
        keep = gate_sessions.Stage.run
        monkeypatch.setattr(gate_sessions.Stage, "run", lambda stage, *positional, on_line, **named: keep(
            stage, *positional, on_line=lambda line: (shown.append(line), on_line(line)), **named))
        gate_sessions.run_session_tests(log, python)
        monkeypatch.undo()
        return [json.loads(line) for line in log.path.read_text().splitlines()], "".join(shown)

    return run


def test_without_a_gpu_every_session_of_the_tests_asks_for_one(run_stage):
    if _C.list_backends()[-1].available:
        pytest.skip("there is a GPU")
    (outcome, step), shown = run_stage("-k", "device_under_test or test_devices or number_of_threads")
    assert "1 passed" in outcome["outcome"] and "2 errors" in outcome["outcome"]
    assert step["step"] == "sessions" and step["status"] == "failed" and step["exit_code"] == 1
    assert "backend 'cuda': expected one that this machine can run" in shown


def test_what_is_about_cpus_alone_is_left_out_by_name(run_stage):
    (outcome, step), shown = run_stage("-m", "cpu_only")
    num_skipped = int(re.match(r"(\d+) skipped", outcome["outcome"])[1])
    assert num_skipped == shown.count(" SKIPPED ") == 6 and step["status"] == "passed"
    assert "not on a GPU: a process that has used CUDA cannot use it in a fork" in shown


def test_the_other_tests_are_many_and_include_those_of_streams_and_cancels(gate_sessions, root):
    command = [*gate_sessions.command(sys.executable), "-m", "not cpu_only", "--collect-only"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert int(re.search(r"(\d+)/\d+ tests collected", done.stdout)[1]) > 150
    for name in ("test_cancel_from_another_thread", "test_streaming_equals_generate", "test_stats_have_the_fields", "test_score",
                 "test_a_model_without_a_draft_model_looks_up", "test_unknown_arguments_are_refused"):
        assert name in done.stdout


def test_the_device_of_the_tests_is_that_of_the_environment(gate_sessions, root, monkeypatch):
    monkeypatch.setenv("MIMO_RT_TEST_DEVICE", "ref")
    command = [*gate_sessions.command(sys.executable), "-k", "device_under_test or prompt_that_does_not_fit"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert "2 passed" in done.stdout, done.stdout


def test_a_machine_without_pytest_does_not_run_them(run_stage, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    ((step,), _) = run_stage(python=str(python))
    assert step["status"] == "not run" and "no pytest" in step["reason"]


def test_the_cuda_engine_takes_the_models_of_the_tests_and_not_every_tiny_one(write_model, tmp_path):
    assert _C.cuda_weight_bytes(write_model(tmp_path / "taken", seed=3)) > 1e5
    with pytest.raises(errors.UnsupportedShapeError, match="multiple of 32, got 208"):
        _C.cuda_weight_bytes(write_tiny_checkpoint(tmp_path / "refused", seed=3))
    with pytest.raises(errors.UnsupportedShapeError, match="got 208"):
        write_model(tmp_path / "changed", intermediate_size=208)
    with pytest.raises(errors.UnsupportedShapeError, match="v_head_dim: expected a multiple of 16"):
        write_model(tmp_path / "heads", v_head_dim=24, swa_v_head_dim=24)
