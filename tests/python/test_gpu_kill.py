"""bench/gpu_kill.py without a GPU: a killed process harms no other, and what goes wrong is told."""

import json
import sys

import pytest


@pytest.fixture
def script(load_bench_script):
    return load_bench_script("gpu_kill")


def run(script, capsys, *arguments):
    code = script.main(["--device", "cpu", "--times", "1", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_a_killed_process_harms_no_other(script, capsys):
    code, record = run(script, capsys)
    assert code == 0 and record["passed"] and record["num_killed"] == 1 and not record["error"]


def test_a_process_that_ends_before_it_is_killed_is_told(script, capsys, monkeypatch):
    monkeypatch.setattr(script, "LONG_TOKENS", 1)
    monkeypatch.setattr(script, "FIRST_PAUSE_S", 1.0)
    monkeypatch.setattr(script, "run_whole", lambda args, model_dir: [1])
    code, record = run(script, capsys)
    assert code == 1 and record["num_killed"] == 0
    assert "killed while it generates 1 tokens: it had ended by itself" in record["error"]
    monkeypatch.setattr(script, "command", lambda *_: [sys.executable, "-c", "pass"])
    code, record = run(script, capsys)
    assert code == 1 and "it never began" in record["error"]


def test_other_tokens_after_a_kill_are_told(script, capsys, monkeypatch):
    answers = iter(([1, 2], [1, 3]))
    monkeypatch.setattr(script, "run_whole", lambda args, model_dir: next(answers))
    monkeypatch.setattr(script, "kill_one", lambda *_: None)
    code, record = run(script, capsys)
    assert code == 1 and record["error"] == "other tokens after 1 kills"


def test_a_process_that_fails_or_hangs_afterwards_is_told(script, capsys, monkeypatch):
    for child, limit_s, told in (("raise SystemExit('no device')", 60, "code 1: no device"),
                                 ("import time; time.sleep(60)", 0.5, "timed out after 0.5 seconds")):
        monkeypatch.setattr(script, "command", lambda *_, child=child: [sys.executable, "-c", child])
        monkeypatch.setattr(script, "LIMIT_S", limit_s)
        code, record = run(script, capsys)
        assert code == 1 and told in record["error"]
