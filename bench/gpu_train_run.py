"""What bench/gpu_train.py does on the GPU machine: answers, features, steps, results, within the time of a call."""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import pieces
import torch
from mimo_rt.train.batch_answers import make_batch_answers
from mimo_rt.train.curve import draw_curve
from mimo_rt.train.draft import DraftModel
from mimo_rt.train.draft_files import export_draft
from mimo_rt.train.draft_run import DraftJob, DraftSizes
from mimo_rt.train.draft_trainer import DraftTrainer, DraftTrainingOptions
from mimo_rt.train.generations import GenerateOptions, Prompt, read_generations
from mimo_rt.train.precision import matmul_dtype
from mimo_rt.train.run import CURVE_FILE, LossError, RunOptions, run_training
from mimo_rt.train.target import TargetModel

DONE, FAILED, NO_GPU, OUT_OF_TIME = 0, 1, 3, 4
NUM_EVALUATIONS = 8
WARM_STEPS, TIMED_STEPS = 3, 10
PROGRESS_S = 5.0
MIN_STEPS = 50  # for fewer no run is planned: later calls would be bound to them
END_S = 12.0  # for the last checkpoint, an evaluation and the results
USED_SHARE = 0.92  # of the time that steps may take, when their number is chosen
MAX_SEQUENCE_TOKENS = 640


class Clock:
    """Seconds of this call: what is left, and what each stage took."""

    def __init__(self, begin: float, minutes: float) -> None:
        self._begin, self._last = begin, begin
        self._end = begin + 60 * minutes
        self.stages: dict[str, float] = {}

    def left(self) -> float:
        return self._end - time.monotonic()

    def end_stage(self, name: str) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.monotonic()
        self.stages[name] = round(now - self._last, 1)
        self._last = now
        print(f"[{name}] {self.stages[name]} s, {self.left():.0f} s left", flush=True)


class Progress:
    """Prints a progress line every few seconds."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, text: str) -> None:
        if time.monotonic() >= self._next:
            print(text, flush=True)
            self._next = time.monotonic() + PROGRESS_S


def run(args: argparse.Namespace, begin: float) -> int:
    """One call; an exit code."""
    if args.torch_device == "cuda" and not torch.cuda.is_available():
        print("gpu_train: torch finds no CUDA device. To try everything on a CPU: --torch-device cpu.")
        return NO_GPU
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))  # whatever it was at, what there is comes back
    clock = Clock(begin, args.minutes)
    send_best(args)  # of earlier calls
    plan_path = args.work / "plan.json"
    dtype = matmul_dtype("auto", torch.device(args.torch_device))
    target = TargetModel(args.work / "input", matmul_dtype=dtype, device=args.torch_device)
    clock.end_stage("start")
    if args.answer_share and not plan_path.is_file():  # once steps are planned, what they train on stays
        make_answers(args, target)
        clock.end_stage("answers")
    job = make_job(args, target)
    clock.end_stage("features")
    if not plan_path.is_file():
        plan = plan_steps(args, job, clock)
        if plan is None:
            return OUT_OF_TIME
        temporary = plan_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(plan) + "\n", encoding="utf-8")
        temporary.replace(plan_path)
    return train(args, job, json.loads(plan_path.read_text(encoding="utf-8")), clock)


def train(args: argparse.Namespace, job: DraftJob, plan: dict[str, Any], clock: Clock) -> int:
    """Steps; whatever ends them, the best draft and the results come back."""
    trainer = job.make_trainer(training_options(args, plan["num_steps"]))
    best = args.work / "best"
    if args.start and not best.exists():  # what comes back is never worse than what was given
        export_draft(trainer.draft, best, acceptance_length=plan["untrained_acceptance_length"], overwrite=True)
        send_best(args)

    def evaluate() -> dict[str, Any]:
        values = job.evaluate(trainer.averaged_draft())
        length = values["mean_acceptance_length"]
        if length > promised_length(best):
            export_draft(trainer.averaged_draft(), best, acceptance_length=length, overwrite=True)
            send_best(args)
        return values

    options = RunOptions(plan["num_steps"], plan["eval_every"], checkpoint_minutes=1.0,
                         max_minutes=max(clock.left() - END_S, 1e-3) / 60)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())  # after the step at hand, for its checkpoint
    failure = "ended"  # by a signal or Ctrl-C
    try:
        is_done = run_training(trainer, args.work / "run", options, evaluate=evaluate, report=Progress(),
                               is_ended=ended.is_set)
        clock.end_stage("train")
        if ended.is_set() and not is_done:
            return FAILED
        if not is_done:
            trainer.history.append({"step": trainer.step_idx, **evaluate()})
        failure = ""
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        if not isinstance(error, LossError):
            raise
        print(f"gpu_train: {error}", file=sys.stderr)
        return FAILED
    finally:
        write_results(args, job, trainer, plan, clock, failure)
    return DONE if is_done else OUT_OF_TIME


def make_answers(args: argparse.Namespace, target: TargetModel) -> None:
    """The target answers prompts that the engine has not answered, for the share of the time that answers have."""
    inputs, options = args.work / "input", GenerateOptions(max_tokens=args.max_tokens, seed=args.seed)
    done = {(g.prompt, g.temperature) for g in read_generations(inputs)}
    lines = (inputs / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [Prompt(name, tuple(token_ids)) for name, token_ids in map(json.loads, lines)]
    stop_ids = json.loads((inputs / "stop_ids.json").read_text(encoding="utf-8"))
    make_batch_answers(target, prompts, args.work / "answers", options, stop_ids=stop_ids, batch=args.batch, done=done,
                       seconds=args.answer_share * 60 * args.minutes, meta={"made_by": "torch"}, report=Progress())
    if args.torch_device == "cuda":
        torch.cuda.empty_cache()  # of the keys and values


def make_job(args: argparse.Namespace, target: TargetModel) -> DraftJob:
    inputs, answers = args.work / "input", args.work / "answers"
    sizes = DraftSizes(num_layers=args.layers, block_size=args.block_size, loss_decay_gamma=args.gamma,
                       target_layer_ids=args.target_layers, draft_vocab_size=args.draft_vocab_size)
    return DraftJob(target, inputs, sizes=sizes, options=training_options(args, 1), num_validation=args.validation,
                    more_data_dir=answers if any(answers.glob("part-*.jsonl")) else None, start_dir=args.start,
                    cache=args.work)


def training_options(args: argparse.Namespace, num_steps: int) -> DraftTrainingOptions:
    return DraftTrainingOptions(num_steps=num_steps, sequences_per_step=args.sequences, lr=args.lr, seed=args.seed,
                                anchors_per_sequence=args.anchors, max_sequence_tokens=MAX_SEQUENCE_TOKENS)


def plan_steps(args: argparse.Namespace, job: DraftJob, clock: Clock) -> dict[str, Any] | None:
    """How many steps and evaluations the run has: as many as fit into what is left, when the number is not given.

    Returns:
        None when so few fit that they are not worth a run.
    """
    trainer = job.make_trainer(training_options(args, WARM_STEPS + TIMED_STEPS))
    untrained = job.evaluate(trainer.draft)  # loads kernels, too
    num_steps, step_s = args.steps, None
    if not num_steps:
        step_s, evaluation_s = measure(trainer, lambda: evaluate_and_keep(args, job, trainer.draft))
        left = USED_SHARE * (clock.left() - END_S - (NUM_EVALUATIONS + 1) * evaluation_s)
        num_steps = max(math.floor(left / step_s), 0)
        print(f"{num_steps} steps of {1000 * step_s:.1f} ms; an evaluation takes {evaluation_s:.1f} s", flush=True)
        if num_steps < MIN_STEPS:
            print(f"gpu_train: fewer than {MIN_STEPS} steps: no run is planned. Call again with more --minutes, or "
                  "with --answer-share 0: the answers made so far are kept.", flush=True)
            return None
    clock.end_stage("plan")
    return {"num_steps": num_steps, "eval_every": max(math.ceil(num_steps / NUM_EVALUATIONS), 1),
            "seconds_per_step": step_s, "untrained_acceptance_length": untrained["mean_acceptance_length"]}


def evaluate_and_keep(args: argparse.Namespace, job: DraftJob, draft: DraftModel) -> None:
    """What an evaluation takes at most: that of the best draft so far. Leaves nothing."""
    job.evaluate(draft)
    with tempfile.TemporaryDirectory(dir=args.work) as scratch:
        send(export_draft(draft, pathlib.Path(scratch) / "best", acceptance_length=1.0), pathlib.Path(scratch) / "out")


def measure(trainer: DraftTrainer, evaluate: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a step and of an evaluation. The trainer is of no other use then."""
    begin = time.monotonic()
    evaluate()
    evaluation_s = time.monotonic() - begin
    for _ in range(WARM_STEPS):
        loss = trainer.step()
    float(loss)  # waits for the device
    begin = time.monotonic()
    for _ in range(TIMED_STEPS):
        loss = trainer.step()
    float(loss)
    return (time.monotonic() - begin) / TIMED_STEPS, evaluation_s


def promised_length(draft: pathlib.Path) -> float:
    """The acceptance length in the config.json of a draft; 0 where there is no draft yet."""
    path = draft / "config.json"
    return json.loads(path.read_text(encoding="utf-8"))["acceptance_length"] if path.is_file() else 0.0


def send_best(args: argparse.Namespace) -> None:
    """The best draft so far, if there is one, as pieces in --out."""
    if (best := args.work / "best").is_dir():
        send(best, args.out)


def send(draft: pathlib.Path, out: pathlib.Path) -> None:
    pieces.cut({path.name: path.read_bytes() for path in sorted(draft.iterdir())}, out, preset=0)


def write_results(args: argparse.Namespace, job: DraftJob, trainer: DraftTrainer, plan: dict[str, Any], clock: Clock,
                  failure: str) -> None:
    """One line more in result.jsonl, and the curve."""
    try:
        history = trainer.history
    except RuntimeError:  # of a lost GPU, with the last losses, which are not asked for again
        history = trainer.history
    args.out.mkdir(parents=True, exist_ok=True)
    is_cuda = args.torch_device == "cuda"
    evaluations = [entry for entry in history if "mean_acceptance_length" in entry]
    last_loss = next((entry["loss"] for entry in reversed(history) if "loss" in entry), math.nan)
    record = {
        "record": "gpu_train",
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
        "torch": torch.__version__,
        "max_memory_bytes": torch.cuda.max_memory_allocated() if is_cuda else None,
        **plan,
        "step": trainer.step_idx,
        "failure": failure or None,
        "blocks_per_step": args.sequences * args.anchors,
        "num_answers": len(job.data),
        "num_tokens": sum(map(len, job.data.token_ids)),
        "best_acceptance_length": promised_length(args.work / "best") or None,
        "last_loss": last_loss if math.isfinite(last_loss) else None,
        "evaluations": evaluations,
        "stage_seconds": clock.stages,
    }
    line = json.dumps(record)
    with (args.work / "result.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    shutil.copy2(args.work / "result.jsonl", args.out / "result.jsonl")
    print(line, flush=True)
    draw_curve(history, args.out / CURVE_FILE)
