"""From two models and answers to trained MXFP4 experts: what ``mimo-rt train experts`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .data import TrainingData
from .draft_run import split_generations
from .experts import ExpertTrainer, ExpertTrainingOptions
from .generations import read_generations
from .run import Report, RunOptions, run_training
from .target import TargetModel


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

    Returns:
        The model's directory, or None when the time of this call was up first.
    """
    run_dir = Path(run_dir)
    report("loading both models")
    teacher = TargetModel(teacher_dir, device=device)
    student = TargetModel(student_dir, device=device)
    training, validation = split_generations(read_generations(data_dir), num_validation)
    data = TrainingData(training, options.max_sequence_tokens)
    held_out = TrainingData(validation or training[:1], options.max_sequence_tokens)
    trainer = ExpertTrainer(teacher, student, data, options)

    def evaluate() -> dict[str, Any]:
        return trainer.evaluate(held_out)

    if not run_training(trainer, run_dir, run, evaluate=evaluate, report=report):
        return None
    return trainer.export(run_dir / "model", overwrite=True)
