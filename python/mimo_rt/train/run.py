"""Drives a trainer: checkpoints, evaluation, a log, a progress line and the curve.

The directory of a run holds ``state.pt`` (the last checkpoint), ``log.jsonl`` (one line per step
and evaluation, rewritten from the checkpoint's history when a run resumes) and ``curve.png``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from .. import _C
from .curve import draw_curve
from .generations import format_duration

STATE_FILE = "state.pt"
LOG_FILE = "log.jsonl"
CURVE_FILE = "curve.png"

_REPORT_EVERY_S = 0.2  # to read a loss waits for a GPU, and many steps take less

Report = Callable[[str], None]


class Trainer(Protocol):
    """What DraftTrainer and ExpertTrainer have in common."""

    step_idx: int

    @property
    def history(self) -> list[dict[str, Any]]: ...
    def step(self) -> float | Tensor: ...
    def save(self, path: Path) -> None: ...
    def load(self, path: Path) -> None: ...


class LossError(_C.InvalidArgumentError):
    """A loss is not finite: of all wrong options the one that nobody can see before a run."""


@dataclass(frozen=True)
class RunOptions:
    """When a run stops and what it does beside training.

    Attributes:
        num_steps: length of the whole training.
        eval_every: steps between evaluations; one more follows the last step.
        checkpoint_minutes: at most this much work is lost when the process dies.
        max_minutes: stop earlier, after a checkpoint; the next call goes on. 0: no limit.
    """

    num_steps: int
    eval_every: int = 200
    checkpoint_minutes: float = 5.0
    max_minutes: float = 0.0


def run_training(
    trainer: Trainer,
    directory: Path,
    options: RunOptions,
    *,
    evaluate: Callable[[], dict[str, Any]],
    report: Report,
    is_ended: Callable[[], bool] = lambda: False,
) -> bool:
    """Train until done or out of time; True when all steps are done.

    Args:
        directory: of the run; continues from its checkpoint when there is one.
        evaluate: numbers to log, computed on held-out data.
        report: takes the text of a progress line.
        is_ended: asked after every step; True ends the call with a checkpoint and nothing else.

    Raises:
        LossError: a loss is not finite; no checkpoint is written any more.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = directory / STATE_FILE
    if state.is_file():
        trainer.load(state)
    log = _Log(directory, trainer.history)
    start_time = saved_time = time.monotonic()
    reported_time = 0.0
    first_step, last_values = trainer.step_idx, ""
    while trainer.step_idx < options.num_steps:
        loss = trainer.step()
        now = time.monotonic()
        is_last = trainer.step_idx == options.num_steps
        is_cut_off = is_ended()
        is_evaluated = is_last or (trainer.step_idx % options.eval_every == 0 and not is_cut_off)
        is_stopped = is_cut_off or 0 < options.max_minutes < (now - start_time) / 60
        if not (is_evaluated or is_stopped or now - reported_time > _REPORT_EVERY_S):
            continue
        _check_loss(trainer.step_idx, float(loss))
        if is_evaluated:
            values = evaluate()
            trainer.history.append({"step": trainer.step_idx, **values})
            last_values = _summary(values)
        reported_time = now
        log.update(trainer.history)
        rate = (now - start_time) / (trainer.step_idx - first_step)
        left = format_duration(rate * (options.num_steps - trainer.step_idx))
        report(
            f"step {trainer.step_idx} of {options.num_steps}, loss {float(loss):.3f}{last_values}, "
            f"{rate:.2f} s/step, {left} left"
        )
        if is_last or is_stopped or now - saved_time > 60 * options.checkpoint_minutes:
            trainer.save(state)
            draw_curve(trainer.history, directory / CURVE_FILE)
            saved_time = time.monotonic()
        if is_stopped:
            break
    return trainer.step_idx >= options.num_steps


def _check_loss(step_idx: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise LossError(
            f"[train] step {step_idx}: expected a finite loss, got {loss}. "
            "Train in another directory with a lower --lr."
        )


def _summary(values: dict[str, Any]) -> str:
    numbers = {name: value for name, value in values.items() if isinstance(value, float)}
    return "".join(f", {name.replace('_', ' ')} {v:.4g}" for name, v in numbers.items())


class _Log:
    """Appends what is new in the history to log.jsonl."""

    def __init__(self, directory: Path, history: list[dict[str, Any]]) -> None:
        self._path = directory / LOG_FILE
        self._num_written = len(history)
        lines = [json.dumps(entry) + "\n" for entry in history]
        self._path.write_text("".join(lines), encoding="utf-8")

    def update(self, history: list[dict[str, Any]]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            for entry in history[self._num_written :]:
                file.write(json.dumps(entry) + "\n")
        self._num_written = len(history)
