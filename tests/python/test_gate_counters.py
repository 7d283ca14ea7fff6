"""Counters of the GPU gate, from tools that are played: read, kept, and no reason to fail where there are none."""

import importlib
import json
import re
import sys
import time

import pytest

from mimo_rt.bench.compare import warnings
from mimo_rt.bench.kernel_shapes import choose

RESOURCES = """
Fatbin elf code:
================
arch = sm_90a
code version = [1,8]
host = linux

Resource usage:
 Common:
  GLOBAL:0 CONSTANT[3]:24
 Function _ZN7mimo_rt4cuda16attention_kernelENS0_15AttentionParamsE:
  REG:128 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:728 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN7mimo_rt4cuda11read_kernelEv:
  REG:24 STACK:16 SHARED:0 LOCAL:8 CONSTANT[0]:544 TEXTURE:0 SURFACE:0 SAMPLER:0
Fatbin elf code:
================
arch = sm_100a
 Function _ZN7mimo_rt4cuda11read_kernelEv:
  REG:26 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:544 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

COUNTERS = """==PROF== Connected to process 71 (/usr/bin/python3)
{"case": "pro-r8/qkv/fp8_e4m3/t1"}
==PROF== Profiling "projection_fp8_kernel": 0%....100% - 9 passes
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value","Rule Name","Rule Description"
"0","71","projection_fp8_kernel(P)","GPU Speed Of Light Throughput","Duration","us","6.50","",""
"0","71","projection_fp8_kernel(P)","GPU Speed Of Light Throughput","DRAM Throughput","%","83.10","",""
"0","71","projection_fp8_kernel(P)","SpeedOfLight","","","","Bottleneck","Memory is ""more"" heavily used"
"0","71","projection_fp8_kernel(P)","Launch Statistics","Grid Size","","1,132","",""
"0","71","projection_fp8_kernel(P)","Launch Statistics","Function Cache Configuration","","CachePreferNone","",""
"""


@pytest.fixture
def counters(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "bench"))
    return importlib.import_module("gate_counters")


@pytest.fixture
def log(counters, tmp_path):
    return counters.Log(tmp_path / "result.jsonl", time.monotonic() + 60)


def kept(log):
    return [json.loads(line) for line in log.path.read_text().splitlines()]


def play(monkeypatch, counters, tmp_path, output, exit_code=0):
    """A tool that writes down its arguments and says `output`."""
    (tmp_path / "output").write_text(output)
    tool = tmp_path / "tool"
    tool.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/called\ncat {tmp_path}/output\nexit {exit_code}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(counters, "find_tool", lambda name: str(tool))


def test_resources_of_every_kernel_and_architecture_are_kept(counters, log, monkeypatch, tmp_path):
    library = tmp_path / "venv" / "lib" / "python3.12" / "site-packages" / "mimo_rt" / "lib" / "libmimo_rt.so"
    library.parent.mkdir(parents=True)
    library.write_text("")
    play(monkeypatch, counters, tmp_path, RESOURCES)
    counters.run_resources(log, str(tmp_path / "venv" / "bin" / "python"))
    assert (tmp_path / "called").read_text() == f"--dump-resource-usage {library}\n"
    step, *lines = kept(log)
    assert step["status"] == "passed"
    found = [tuple(line["resources"].values()) for line in lines]
    assert found == [("_ZN7mimo_rt4cuda16attention_kernelENS0_15AttentionParamsE", "sm_90a", 128, 0, 1024, 0),
                     ("_ZN7mimo_rt4cuda11read_kernelEv", "sm_90a", 24, 16, 0, 8),
                     ("_ZN7mimo_rt4cuda11read_kernelEv", "sm_100a", 26, 0, 0, 0)]


def test_counters_of_each_case_are_kept(counters, log, monkeypatch, tmp_path):
    play(monkeypatch, counters, tmp_path, COUNTERS, exit_code=9)  # ncu has ended the program
    counters.run_counters(log, sys.executable)
    lines = kept(log)
    assert [line["op"] for line in lines if "counters" in line] == list(counters.CASES)
    assert not warnings(lines, lines[:2])  # a file that was cut off is of the same machine
    assert {line["status"] for line in lines if "status" in line} == {"passed"}
    assert lines[0]["counters"] == {"Duration [us]": 6.5, "DRAM Throughput [%]": 83.1, "Grid Size": 1132.0,
                                    "Function Cache Configuration": "CachePreferNone"}
    calls = (tmp_path / "called").read_text().splitlines()
    assert len(calls) == len(counters.CASES) and "regex:expert_gate_up_kernel" in calls[0]
    assert "-m mimo_rt kbench expert_gate_up --shape pro-r8 --tokens 8 --device cuda" in calls[0]


def test_cases_are_kernels_of_kbench_and_select_those_of_the_sources(counters, root):
    sources = "".join(path.read_text() for path in sorted((root / "csrc" / "cuda").rglob("*.cu*")))
    kernels = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^()]*\)\s+)?(\w+)\(", sources)
    assert len(kernels) == sources.count("__global__ ") and "persistent_kernel" in kernels
    selected = {kernel: {name for name in kernels if re.search(function, name)}
                for kernel, (function, _) in counters.CASES.items()}
    assert selected == {
        "expert_gate_up": {"expert_gate_up_kernel"}, "expert_down": {"expert_down_kernel"},
        "qkv": {"projection_fp8_kernel", "projection_fp8_normed_kernel"},
        "o_proj": {"projection_bf16_kernel", "projection_bf16_normed_kernel"},
        "attention_window": {"attention_kernel"}, "router": {"router_logits_f32_kernel", "router_logits_bf16_kernel"},
        "select_experts": {"select_experts_kernel"}, "sample_best": {"sample_best_kernel"},
    }
    assert all(choose([kernel], counters.SHAPE) for kernel in counters.CASES)


@pytest.mark.parametrize(("output", "num_tries"), [("==ERROR== ERR_NVGPUCTRPERM - no permission", 1),
                                                   ("==WARNING== No kernels were profiled.", None)])
def test_counters_that_are_not_to_be_had_are_no_failure(counters, log, monkeypatch, tmp_path, output, num_tries):
    play(monkeypatch, counters, tmp_path, output, exit_code=1)
    counters.run_counters(log, sys.executable)
    lines = kept(log)
    assert len(lines) == (num_tries or len(counters.CASES)) and {line["status"] for line in lines} == {"not run"}
    assert output in lines[0]["output"]


def test_without_the_tools_there_is_a_note(counters, log, monkeypatch):
    monkeypatch.setattr(counters, "find_tool", lambda name: None)
    counters.run_resources(log, sys.executable)
    counters.run_counters(log, sys.executable)
    assert [(line["step"], line["status"], line["reason"]) for line in kept(log)] == [
        ("cuobjdump", "not run", "not on this machine"), ("ncu", "not run", "not on this machine")]
