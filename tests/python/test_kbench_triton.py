"""Triton as a baseline of ``mimo-rt kbench``: it multiplies right, and whatever of it fails leaves PyTorch alone."""

import os
import subprocess
import sys
import types

import pytest

from mimo_rt import _C, bench
from mimo_rt.bench import kernel_baseline, kernel_run

CASE = _C.KernelCase(kernel="expert_down", format="mxfp4", num_tokens=9, experts_per_token=3, hidden_size=96, width=64)
WORK = types.SimpleNamespace(num_active_experts=11)


@pytest.fixture
def torch(monkeypatch):
    """PyTorch on this CPU, taken for a GPU."""
    torch = pytest.importorskip("torch")

    class TimedAs:
        """A Baseline with PyTorch the slower of the two."""

        def __init__(self, torch, device, name, call):
            self.name, self.note, self._call = name, "", call

        def run(self, num_calls):
            for index in range(num_calls):
                self._call(index)
            return [2.0 if "torch" in self.name else 1.0] * num_calls

    monkeypatch.setattr(kernel_baseline, "Baseline", TimedAs)
    monkeypatch.setattr(kernel_baseline, "_ROTATION_BYTES", 0)
    for name in ("_make", "_make_triton"):
        make = getattr(kernel_baseline, name)
        monkeypatch.setattr(kernel_baseline, name, lambda torch, device, *more, make=make: make(torch, "cpu", *more))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    kernel_baseline._is_triton_right.cache_clear()
    yield torch
    kernel_baseline._is_triton_right.cache_clear()


def fake_triton(monkeypatch, **parts):
    def random_experts(torch, shape, device):
        return torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.uint8)

    parts = {"NAME": "fake triton", "is_right": lambda torch, device: True, "random_experts": random_experts,
             "multiply_experts": lambda weights, scales, x, y: None} | parts
    monkeypatch.setattr(bench, "kernel_triton", types.SimpleNamespace(**parts), raising=False)


def raising(error):
    def function(*arguments):
        raise error

    return function


def test_a_triton_that_works_is_measured(torch, monkeypatch):
    fake_triton(monkeypatch)
    baseline, note = kernel_baseline.make_baseline(CASE, WORK, "cuda")
    assert baseline.name == "fake triton" and note == ""


@pytest.mark.parametrize("part", ["is_right", "random_experts", "multiply_experts"])
@pytest.mark.parametrize("error", [
    subprocess.CalledProcessError(1, ["gcc", "main.c"]), OSError(30, "Read-only file system", "/root/.triton"),
    RuntimeError("out of resource: shared memory\nmore"), type("CompilationError", (Exception,), {})(), KeyError("sm_100")])
def test_whatever_fails_in_triton_leaves_pytorch_and_a_note(torch, monkeypatch, part, error):
    fake_triton(monkeypatch, **{part: raising(error)})
    baseline, note = kernel_baseline.make_baseline(CASE, WORK, "cuda")
    assert "torch" in baseline.name
    assert note.startswith(f"without Triton: {type(error).__name__}: ") and "\n" not in note


def test_a_triton_that_multiplies_wrong_is_left_out(torch, monkeypatch):
    fake_triton(monkeypatch, is_right=lambda torch, device: False)
    assert "wrong results" in kernel_baseline.make_baseline(CASE, WORK, "cuda")[1]


def test_without_triton_experts_have_pytorch_alone(torch, monkeypatch):
    monkeypatch.delattr(bench, "kernel_triton", raising=False)
    monkeypatch.delitem(sys.modules, "mimo_rt.bench.kernel_triton", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    baseline, note = kernel_baseline.make_baseline(CASE, WORK, "cuda")
    assert "torch" in baseline.name and "without Triton: ModuleNotFoundError" in note
    assert kernel_baseline._expert_shape(CASE, WORK) == (11, 96, 64, 3)


def test_the_record_tells_what_was_left_out():
    measured = _C.KernelCase(kernel="expert_down", format="mxfp4")
    shape = types.SimpleNamespace(name="pro/expert_down")
    facts = {"case": "c", "shape": shape, "measured": measured, "backend": "cuda", "device": "d",
             "error_over_bound": 2.0}
    assert "baseline_note" not in kernel_run.KernelResult(**facts).record()
    result = kernel_run.KernelResult(**facts, baseline_note="without Triton: OSError: full")
    assert result.record()["baseline_note"] == "without Triton: OSError: full"


def test_triton_multiplies_mxfp4():
    pytest.importorskip("triton")
    torch = pytest.importorskip("torch")
    code = ("import torch; from mimo_rt.bench import kernel_triton as k; assert k.is_right(torch, 'cpu'); "
            "k.dequantise = lambda torch, w, s: torch.zeros(2, 160, 160); assert not k.is_right(torch, 'cpu')")
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"TRITON_INTERPRET": "1"}, check=False,
                          capture_output=True, text=True)
    assert done.returncode == 0, f"torch {torch.__version__}: {done.stderr}"
