"""Kills a process in the middle of a generation; the next one must find a usable device. bench/gpu_gate.py runs it.

    python bench/gpu_kill.py [--device cuda] [--model DIR] [--times 3]

A process of its own generates, is killed (SIGKILL) after some tokens, while its kernel runs, and a new process then has
to give the tokens that an undisturbed one gave, in time. Without --model: a tiny random model. One JSON line; exit code
1: something went wrong.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from mimo_rt import Session
from mimo_rt.checkpoints import write_tiny_checkpoint
from mimo_rt.cli._machine import machine_record

IDS = list(range(1, 25))
NUM_TOKENS = 64       # of a process that is left alone
LONG_TOKENS = 30_000  # of one that is killed: more than it gets to
LIMIT_S = 60          # of a process; opening a GPU takes seconds


def child(device: str, model_dir: pathlib.Path, num_tokens: int) -> int:
    """One process: a line for each event of a generation, then its end."""
    with Session(model_dir, device=device, draft=None, max_context=len(IDS) + num_tokens) as session:
        for event in session.stream(IDS, max_tokens=num_tokens, temperature=0.0, ignore_eos=True):
            print(json.dumps(list(event.token_ids)), flush=True)
    print("end", flush=True)
    return 0


def command(args: argparse.Namespace, model_dir: pathlib.Path, num_tokens: int) -> list[str]:
    return [sys.executable, __file__, "--device", args.device, "--model", str(model_dir), "--child", str(num_tokens)]


def run_whole(args: argparse.Namespace, model_dir: pathlib.Path) -> list[int]:
    """The tokens of a process that is left alone; an error says what it printed."""
    done = subprocess.run(command(args, model_dir, NUM_TOKENS), capture_output=True, text=True, timeout=LIMIT_S,
                          check=False)
    lines = done.stdout.splitlines()
    if done.returncode or lines[-1:] != ["end"]:
        raise RuntimeError(f"a process ended with code {done.returncode}: {(done.stdout + done.stderr)[-1000:]}")
    return [token for line in lines[:-1] for token in json.loads(line)]


def kill_one(args: argparse.Namespace, model_dir: pathlib.Path, num_events: int) -> None:
    """Kills a process when it has told of so many events."""
    longest = json.loads((model_dir / "config.json").read_text())["max_position_embeddings"] - len(IDS)
    wanted = min(LONG_TOKENS, longest)
    with subprocess.Popen(command(args, model_dir, wanted), stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(num_events)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    num_tokens = sum(len(json.loads(line)) for line in lines if line.endswith("]\n"))
    if process.returncode != -signal.SIGKILL or num_tokens >= wanted:
        raise RuntimeError(f"expected a process to be killed while it generates {wanted} tokens, it ended with code "
                           f"{process.returncode} after {num_tokens}")


def check(args: argparse.Namespace, model_dir: pathlib.Path) -> dict[str, Any]:
    """Kills at later and later moments; what went wrong, if anything."""
    begin, num_killed, error = time.monotonic(), 0, ""
    try:
        expected = run_whole(args, model_dir)
        for place in range(args.times):
            kill_one(args, model_dir, 1 + 20 * place)
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
            write_tiny_checkpoint(pathlib.Path(parent) / "tiny", seed=1, intermediate_size=192,
                                  max_position_embeddings=len(IDS) + LONG_TOKENS))
        record = check(args, model_dir)
        print(json.dumps(record), flush=True)
    return int(not record["passed"])


if __name__ == "__main__":
    sys.exit(main())
