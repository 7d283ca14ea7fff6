"""The stage `python` of bench/gpu_gate.py: the tests of sessions in Python, on the GPU instead of the CPU.

tests/conftest.py says what MIMO_RT_TEST_DEVICE does; tests that are about CPUs alone are marked `cpu_only`.
"""

from __future__ import annotations

import re
import subprocess

from gate_steps import NOT_RUN, ROOT, Log, Stage

NAMES = ("test_session_api", "test_session_lookup", "test_session_models", "test_streaming")
TESTS = tuple(ROOT / "tests" / "python" / f"{name}.py" for name in NAMES)
SILENCE_S = 20  # some tests start a process, and CUDA with it
MAX_FAILURES = 5  # on a device that is lost every test fails


def command(python: str) -> list[str]:
    """One line per test, so that a hang has a name and the stacks of its threads."""
    return [python, "-m", "pytest", "-vv", "--tb=short", f"--maxfail={MAX_FAILURES}", "-p", "no:cacheprovider",
            "-o", f"faulthandler_timeout={SILENCE_S - 5}", *map(str, TESTS)]


def run_session_tests(log: Log, python: str) -> None:
    """What pytest says in the end becomes a line of its own."""
    if subprocess.run([python, "-m", "pytest", "--version"], capture_output=True, check=False).returncode:
        reason = "no pytest here or among the wheels: see --collect and --wheels"
        log.add("python", "sessions", NOT_RUN, 0.0, reason=reason)
        return

    def keep_outcome(line: str) -> None:
        if outcome := re.fullmatch(r"=+ (.*\b(?:passed|failed|skipped|errors?)\b.*) =+", line.strip()):
            log.write({"stage": "python", "outcome": outcome[1]})
            print(f"[python] {outcome[1]}", flush=True)

    Stage("python", log).run("sessions", command(python), {"MIMO_RT_TEST_DEVICE": "cuda"}, on_line=keep_outcome,
                             may_be_cut=True, silence_s=SILENCE_S)
