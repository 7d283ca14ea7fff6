"""The fuzzer under AddressSanitizer and UBSan, and the parallel parts under ThreadSanitizer."""

import concurrent.futures
import os
import re
import subprocess

import pytest

FUZZ_SECONDS = 20
HOSTILE_FILE_TESTS = ["test_checkpoint", "test_pack", "test_packed_cache", "test_mask_embedding"]
# Program -> its cases; none: all of them.
PARALLEL_TESTS = {
    "test_worker_pool": [],
    "test_team": [],
    "test_work_stealing": [],
    # Not the sweeps over chunks and fusing: a minute and a half of the same threads.
    "test_executors": ["a sequence does not depend on the sequences beside it",
                       "several plans of one executor share the cache and keep their own epochs",
                       "a lost signal is a timeout with a hang report, and the executor stays stopped",
                       "eight workers on few cores finish with the same logits",
                       "tracing lists every task once, in order, and changes no result",
                       "bad steps are refused and leave the executor usable"],
    # Not the one that fails: an exception that several threads share counts its owners in libstdc++, unseen.
    "test_joint_steps": ["sessions that wait together decode together, and each gets what it gets alone",
                         "a session that is cancelled while it waits is not taken along",
                         "sessions that come and go give what they give alone",
                         "on the CPU a joint step leaves the same tokens, keys and values as steps of each alone",
                         "with a draft model sessions share steps, too, and draft afterwards as if they had been alone"],
    "test_round_sharing": [
        "sessions with a draft that begin, rewind, end and cancel at any time have the tokens of each alone"],
    "test_session_lookup": ["sessions of several threads, with steps and rounds in any order, keep their texts",
                            "on the CPU and the reference, rounds with lookups leave the tokens of plain steps"],
    "test_cuda_session": [
        "two threads stream in turn, each takes the GPU from a launch that waits; another one cancels"],
    "test_rounds": ["rounds of a draft that is often right emit the same tokens in fewer rounds",
                    "an exception of the caller's ends the rounds and leaves them resumable",
                    "a signal lost in a round is a timeout with a report, and the process goes on"],
}
EMULATED = ["test_emulation", "test_cuda_accept", "test_cuda_edges", "test_cuda_edge_relay", "test_cuda_attend_rows",
            "test_cuda_attention", "test_cuda_expert_fp8", "test_cuda_expert_gemm", "test_cuda_expert_mxfp8", "test_cuda_experts",
            "test_cuda_projection", "test_cuda_projection_stores", "test_cuda_router", "test_cuda_sample_rows",
            "test_cuda_sampling"]
# Sanitizer -> programs; tests/conftest.py begins to build them when the run begins.
PROGRAMS = {
    "thread": [*PARALLEL_TESTS, *EMULATED, "test_cuda_persistent", "test_cuda_rounds"],
    "address,undefined": ["fuzz_checkpoint", *HOSTILE_FILE_TESTS, *EMULATED, "test_cuda_embed", "test_cuda_draft_rounds"],
}
# Cases that take long under AddressSanitizer, over code that others run there.
LONG_CASES = ["a row of the model's vocabulary has the CPU's tokens, most of them behind the first 256 slices",
              "act of many tokens is exact where every partial sum is; one activation changes it",
              "sums of many tokens are exact where every partial sum is; one activation changes them"]


def run(command, **environment):
    """Runs a program; sanitizers report through its exit status."""
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False,
                          timeout=900, env=os.environ | environment)


def run_all(commands, **environment):
    """Runs programs, as many at a time as there are cores; returns what `run` does, in order."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda command: run(command, **environment), commands))


@pytest.fixture(scope="module")
def tsan_programs(sanitized):
    return sanitized("thread")


@pytest.fixture(scope="module")
def asan_programs(sanitized):
    return sanitized("address,undefined")


def tsan_command(program, *cases):
    """ThreadSanitizer wants its addresses where it expects them."""
    return ["setarch", "-R", program, *cases]


def test_cuda_kernels_under_tsan(tsan_programs):
    clean = [("test_emulation", "the correct kernel gives the same answer in every schedule"),
             ("test_cuda_accept", "the host's word is the last: no round begins after it has asked to stop"),
             ("test_cuda_accept", "rounds that ran before the device heard that it should stop count like others, lookups, too"),
             ("test_cuda_rounds", "active experts add up over rounds"),
             ("test_cuda_attention", "the schedule and the number of blocks do not change a bit"),
             ("test_cuda_attend_rows", "shares of several rows count apart, whoever comes last"),
             ("test_cuda_sample_rows", "rows with rules of their own count apart, whoever comes last"),
             ("test_cuda_sampling", "a draft without a finite logit proposes token 0, which the target may confirm"),
             ("test_cuda_router", "a token's logits have the same bits alone, in any batch and schedule"),
             ("test_cuda_router", "the route is that of a sort, ties to the lower expert, in every schedule"),
             ("test_cuda_edges", "every edge hands over the right values in every schedule"),
             ("test_cuda_edges", "a signal that does not come ends all blocks with one report"),
             ("test_cuda_persistent", "a launch may run any number of epochs, counters and tags may wrap around"),
             ("test_cuda_edge_relay", "the token comes through every hop, launch after launch, in every schedule"),
             ("test_cuda_expert_gemm", "with a residual the sums are added and rounded once"),
             ("test_cuda_experts", "partial sums that do not fit at once follow in passes, same bits"),
             ("test_cuda_expert_fp8", "every E2M1 code is exact at every ratio of two neighbouring scales, up to 2^11"),
             ("test_cuda_expert_fp8", "rows are rounded to the nearest codes of their scale; a row of zeros stays one"),
             ("test_cuda_expert_mxfp8", "a token's results have the same bits alone, in any batch and schedule"),
             ("test_cuda_projection", "the schedule of a projection does not change a bit"),
             ("test_cuda_projection", "a fused norm multiplies rows that were rounded once"),
             ("test_cuda_projection_stores", "gate and up become columns of a gated MLP"),
             ("test_cuda_projection_stores", "the token is the lowest of the largest, for any number of blocks")]
    commands = [tsan_command(tsan_programs / program, case) for program, case in clean]
    for done in run_all(commands, TSAN_OPTIONS="halt_on_error=1"):
        assert done.returncode == 0, done.stdout + done.stderr
    planted = [("test_emulation", "a missing block barrier is found", "pipeline"),
               ("test_cuda_edges", "an addition without release looks right: only ThreadSanitizer finds it", "relay"),
               ("test_cuda_attend_rows",
                "a share that counts itself in without order looks right: only ThreadSanitizer finds it", "attend"),
               ("test_cuda_sample_rows",
                "a share that counts itself in without order looks right: only ThreadSanitizer finds it", "weigh")]
    for program, case, kernel in planted:
        done = run(tsan_command(tsan_programs / program, case), TSAN_OPTIONS="halt_on_error=1")
        assert done.returncode != 0 and "data race" in done.stderr and kernel in done.stderr


@pytest.mark.parametrize("program", PARALLEL_TESTS)
def test_parallel_parts_under_tsan(tsan_programs, program):
    done = run(tsan_command(tsan_programs / program, *PARALLEL_TESTS[program]), TSAN_OPTIONS="halt_on_error=1")
    assert done.returncode == 0, done.stdout + done.stderr


def test_fuzzing_the_checkpoint_reader_finds_nothing(asan_programs):
    done = run([asan_programs / "fuzz_checkpoint", "--seconds", FUZZ_SECONDS, "--seed", 1])
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = dict(re.findall(r"^(.+?) +\d+ executions +(\d+) unique outcomes$", done.stdout, re.MULTILINE))
    assert "packed file" in outcomes and min(map(int, outcomes.values())) > 1, done.stdout  # each reader was reached


def test_the_fuzzer_finds_a_planted_fault(asan_programs, tmp_path):
    done = run([asan_programs / "fuzz_checkpoint", "--seconds", 5, "--self-test", 1], TMPDIR=str(tmp_path))
    assert done.returncode != 0 and "AddressSanitizer: heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize("program", HOSTILE_FILE_TESTS)
def test_hostile_files_under_asan(asan_programs, program):
    done = run([asan_programs / program])
    assert done.returncode == 0, done.stdout + done.stderr


def cases_without_faults(program):
    """All cases of a test program but long ones, and those that plant faults, which the sanitizer would find first."""
    cases = run([program, "--list"]).stdout.splitlines()
    kept = [case for case in cases if "left out" not in case and case not in LONG_CASES]
    assert kept
    return kept


def test_cuda_kernels_under_asan(asan_programs):
    kernels = [name for name in PROGRAMS["address,undefined"]
               if name.startswith("test_cuda_") and name not in ("test_cuda_edges", "test_cuda_draft_rounds")]
    commands = [["test_emulation", "the correct kernel gives the same answer in every schedule"],
                ["test_cuda_edges", "every edge hands over the right values in every schedule",
                 "a signal that does not come ends all blocks with one report"],
                ["test_cuda_draft_rounds", "two tokens from rounds of drawn drafts"],
                *([name, *cases_without_faults(asan_programs / name)] for name in kernels)]
    for done in run_all([asan_programs / program, *cases] for program, *cases in commands):
        assert done.returncode == 0, done.stdout + done.stderr
    done = run([asan_programs / "test_emulation", "a read before arrival is found"])
    assert done.returncode != 0 and "use-after-poison" in done.stderr
