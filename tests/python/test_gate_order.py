"""What the GPU gate does first, for the last stages may have no time for more."""

import importlib
import time

import pytest

from mimo_rt.bench.kernel_shapes import CUDA_TOKENS, choose


@pytest.fixture
def part(root, monkeypatch):
    """A module of the gate by name."""
    monkeypatch.syspath_prepend(str(root / "bench"))
    return importlib.import_module


def test_the_sanitizer_reaches_every_program_first_by_either_tool(part, tmp_path):
    sanitizer = part("gate_sanitizer")
    programs = []
    for name, cases in (("attention", "a b c"), ("experts", "d"), ("broken", "")):
        programs.append(tmp_path / name)
        programs[-1].write_text(f"#!/bin/sh\nfor case in {cases}; do echo $case; done\n")
        programs[-1].chmod(0o755)
    runs = [(program.name, case, tool) for program, case, tool in sanitizer.sanitizer_runs(programs)]
    memcheck, racecheck = sanitizer.TOOLS
    assert runs == [
        ("attention", "a", memcheck), ("experts", "d", racecheck), ("attention", "a", racecheck), ("experts", "d", memcheck),
        *(("attention", case, tool) for case in "bc" for tool in sanitizer.TOOLS)]


def test_kbench_measures_first_what_counts_most(part, monkeypatch, tmp_path):
    """Names and tokens that kbench has; then all shapes whole."""
    gate_kbench = part("gate_kbench")
    log = part("gate_steps").Log(tmp_path / "result.jsonl", time.monotonic() + 60)
    calls = []
    monkeypatch.setattr(gate_kbench, "measure", lambda stage, python, step, *arguments, **_: calls.append(arguments))
    gate_kbench.run_kbench(log, "python")
    first, rest = calls[:4], calls[4:]
    assert [call[call.index("--shape") + 1] for call in calls] == 2 * list(gate_kbench.SHAPES)
    assert all(call[0] == "--shape" and len(call) == 2 for call in rest)
    for *kernels, _, shape, _, tokens in first:
        expected = 2 if shape == gate_kbench.EXPERTS_ONLY else 6
        assert len({s.op for s in choose(kernels, shape)}) == len(kernels) == expected
        assert set(map(int, tokens.split(","))) <= set(CUDA_TOKENS)
