"""From two models and answers to trained MXFP4 experts: what ``mimo-rt train experts`` does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .answers_meta import checkpoint_digest
from .data import TrainingData, answers_digest
from .draft_run import split_generations
from .experts import ExpertTrainer, ExpertTrainingOptions
from .generations import read_generations
from .gptq import gptq_experts
from .ops import training_device
from .run import STATE_FILE, Report, RunOptions, run_training
from .target import TargetModel


def calibration_sequences(data: TrainingData, num_tokens: int, seed: int) -> list[Tensor]:
    """Sequences of ``data`` in an order drawn from ``seed``, until they have ``num_tokens``."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    chosen: list[Tensor] = []
    for seq_idx in order.tolist():
        if sum(map(len, chosen)) >= num_tokens:
            break
        chosen.append(data.token_ids[seq_idx])
    return chosen


def train_experts(
    teacher_dir: Path,
    student_dir: Path,
    data_dir: Path,
    run_dir: Path,
    *,
    options: ExpertTrainingOptions,
    run: RunOptions,
    num_validation: int = 16,
    device: str = "cpu",
    report: Report,
) -> Path | None:
    """Train, or go on training, in ``run_dir``; the finished model is ``run_dir/model``.

    Args:
        teacher_dir: the unquantised model.
        student_dir: the same model with MXFP4 experts; all its other tensors are kept.
        data_dir: texts in the form of answers, whoever made them: what they teach is what the
            teacher makes of them.

    Returns:
        The model's directory, or None when the time of this call was up first.
    """
    run_dir = Path(run_dir)
    torch_device = training_device(device)
    report("loading both models")
    teacher = TargetModel(teacher_dir, device=torch_device)
    student = TargetModel(student_dir, device=torch_device)
    training, validation = split_generations(read_generations(data_dir), num_validation)
    data = TrainingData(training, options.max_sequence_tokens)
    held_out = TrainingData(validation or training[:1], options.max_sequence_tokens)
    options = replace(
        options,
        answers=answers_digest(data, held_out),
        teacher_digest=checkpoint_digest(teacher.directory),
        student_digest=checkpoint_digest(student.directory),
    )
    start = None
    if options.gptq_tokens and not (run_dir / STATE_FILE).is_file():
        sequences = calibration_sequences(data, options.gptq_tokens, options.seed)
        start = gptq_experts(teacher, student, sequences, report)
    trainer = ExpertTrainer(teacher, student, data, options, start=start)
    if start is not None:  # GPTQ may have taken longer than all steps will
        run_dir.mkdir(parents=True, exist_ok=True)
        trainer.save(run_dir / STATE_FILE)

    def evaluate() -> dict[str, Any]:
        return trainer.evaluate(held_out)

    if not run_training(trainer, run_dir, run, evaluate=evaluate, report=report):
        return None
    return trainer.export(run_dir / "model", overwrite=True)
