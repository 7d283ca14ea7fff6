"""Kills a process in the middle of a generation; the next one must find a usable device. bench/gpu_gate.py runs it.

    python bench/gpu_kill.py [--device cuda] [--model DIR] [--times 3]

A process of its own begins a long generation, without events, so that a GPU stays in launches of many rounds; it is
killed (SIGKILL) some time later, and a new process then has to give the tokens that an undisturbed one gave, in time.
Without --model: a tiny random model. One JSON line; exit code 1: something went wrong.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from mimo_rt import Session
from mimo_rt.checkpoints import write_tiny_checkpoint
from mimo_rt.cli._machine import machine_record

IDS = list(range(1, 25))
NUM_TOKENS = 64       # of a process that is left alone
LONG_TOKENS = 100_000  # of one that is killed: more than it gets to
LIMIT_S = 12           # of a process; opening a GPU takes seconds
FIRST_PAUSE_S, MORE_PAUSE_S = 0.05, 0.15  # after the beginning of a generation; every kill comes later than the last


def child(device: str, model_dir: pathlib.Path, num_tokens: int) -> int:
    """One process: a line when the generation begins, one with its tokens when it has ended."""
    with Session(model_dir, device=device, draft=None, max_context=len(IDS) + num_tokens) as session:
        print("begin", flush=True)
        result = session.generate(IDS, max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    print(json.dumps(list(result.token_ids)), flush=True)
    return 0


def command(args: argparse.Namespace, model_dir: pathlib.Path, num_tokens: int) -> list[str]:
    return [sys.executable, __file__, "--device", args.device, "--model", str(model_dir), "--child", str(num_tokens)]


def run_whole(args: argparse.Namespace, model_dir: pathlib.Path) -> list[int]:
    """The tokens of a process that is left alone; an error says what it printed."""
    done = subprocess.run(command(args, model_dir, NUM_TOKENS), capture_output=True, text=True, timeout=LIMIT_S,
                          check=False)
    lines = done.stdout.splitlines()
    if done.returncode or lines[:1] != ["begin"]:
        raise RuntimeError(f"a process ended with code {done.returncode}: {(done.stdout + done.stderr)[-1000:]}")
    return json.loads(lines[1])


def kill_one(args: argparse.Namespace, model_dir: pathlib.Path, pause_s: float) -> None:
    """Kills a process so long after its generation has begun."""
    longest = json.loads((model_dir / "config.json").read_text())["max_position_embeddings"] - len(IDS)
    wanted = min(LONG_TOKENS, longest)
    with subprocess.Popen(command(args, model_dir, wanted), stdout=subprocess.PIPE, text=True) as process:
        late = threading.Timer(LIMIT_S, process.kill)  # one that hangs before it begins
        late.start()
        begun = process.stdout.readline() == "begin\n"
        late.cancel()
        time.sleep(pause_s if begun else 0.0)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
    if process.returncode != -signal.SIGKILL or rest or not begun:
        happened = "it had ended by itself" if rest else "it never began" if not begun else f"code {process.returncode}"
        raise RuntimeError(f"expected a process to be killed while it generates {wanted} tokens: {happened}")


def check(args: argparse.Namespace, model_dir: pathlib.Path) -> dict[str, Any]:
    """Kills at later and later moments; what went wrong, if anything."""
    begin, num_killed, error = time.monotonic(), 0, ""
    try:
        expected = run_whole(args, model_dir)
        for place in range(args.times):
            kill_one(args, model_dir, FIRST_PAUSE_S + MORE_PAUSE_S * place)
            num_killed += 1
            if run_whole(args, model_dir) != expected:
                raise RuntimeError(f"other tokens after {num_killed} kills")
    except (RuntimeError, subprocess.TimeoutExpired) as failed:
        error = str(failed)
    return {"kill": model_dir.name, "device": args.device, "passed": not error, "num_killed": num_killed,
            "error": error, "seconds": round(time.monotonic() - begin, 1), **machine_record()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or a CPU backend (default cuda)")
    parser.add_argument("--model", type=pathlib.Path, metavar="DIR", help="checkpoint instead of the tiny model")
    parser.add_argument("--times", type=int, default=3, metavar="N", help="processes to kill (default 3)")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        return child(args.device, args.model, args.child)
    with tempfile.TemporaryDirectory(prefix="mimo_rt-gpu-kill-") as parent:
        model_dir = args.model or pathlib.Path(
            write_tiny_checkpoint(pathlib.Path(parent) / "tiny", seed=1, preset="multiples_of_32",
                                  max_position_embeddings=len(IDS) + LONG_TOKENS))
        record = check(args, model_dir)
        print(json.dumps(record), flush=True)
    return int(not record["passed"])


if __name__ == "__main__":
    sys.exit(main())
