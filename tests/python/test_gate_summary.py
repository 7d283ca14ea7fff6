"""What the GPU gate says of what it measured, and of what it had no time for."""

import json
import sys
import time

import pytest


@pytest.fixture
def log(root, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(root / "bench"))
    import gate_steps

    return gate_steps.Log(tmp_path / "result.jsonl", time.monotonic() + 60)


SLICE = {"case": "slice/L70/E384/t8", "median_us": 4000.0,
         "projection": [{"accepted": 3.18, "tokens_per_s": 561.4}, {"accepted": 6.3, "tokens_per_s": 1112.2}]}
TORCH = {"case": "slice/L70/E384/t8/torch", "round_us": 4000.0, "baseline": "graph", "times_baseline": 2.126}
DEMO = {"model": "demo", "tokens_per_s": 801.2, "prefill_tokens_per_s": 12345.6,
        "drafts": {"dflash": {"tokens_per_s": {"fixed": 900.4, "adaptive": 1000.6}}}}


def test_the_last_lines_say_what_the_gate_was_run_for(log, capsys):
    import gate_summary

    log.records += [SLICE, TORCH, DEMO, {"model": "demo", "not_run": "no model"}, {"case": "pro/qkv", "times_baseline": 2}]
    gate_summary.print_summary(log)
    assert capsys.readouterr().out.splitlines()[-6:-2] == [
        "slice, projected for a node: 561 tok/s at 3.18 tokens accepted",
        "slice, projected for a node: 1112 tok/s at 6.30 tokens accepted",
        "slice: graph takes 2.13 x as long for its products alone",
        "demo: 801 tok/s, prompts 12346, dflash 1001"]


@pytest.mark.parametrize("num_left", [0, 37])
def test_runs_of_the_same_bits_that_are_missing_are_a_step(log, tmp_path, num_left):
    import gpu_gate

    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nprint({json.dumps({'num_runs': [100, 63], 'num_left': num_left})!r})\n")
    program.chmod(0o755)
    gpu_gate.run_bits(log, str(program))
    ran, *others = log.steps
    assert ran["status"] == "passed"
    assert [(step["status"], step["reason"]) for step in others] == ([("not run", "37 of 200")] if num_left else [])
