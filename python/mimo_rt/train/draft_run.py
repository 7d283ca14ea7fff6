"""From a model and its answers to a trained draft: what ``mimo-rt train draft`` does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoints.draft_layout import DraftShape, default_target_layer_ids
from .acceptance import evaluate_draft
from .answers_meta import check_target, checkpoint_digest
from .data import TrainingData, answers_digest
from .draft import DraftModel
from .draft_files import export_draft
from .draft_start import start_at_draft, weights_digest
from .draft_trainer import DraftTrainer, DraftTrainingOptions
from .feature_table import FeatureTable
from .features import FeatureSource
from .generations import Generation, read_generations
from .ops import training_device
from .precision import matmul_dtype
from .run import Report, RunOptions, run_training
from .target import TargetModel


@dataclass(frozen=True)
class DraftSizes:
    """Choices of a new draft; heads, head sizes and MLP width are those of the target by default.

    Attributes:
        target_layer_ids: captured layers; empty: ``num_features`` layers evenly spread.
        mask_token_id: recorded in config.json, never looked up; -1: the last id of the vocabulary.
        draft_vocab_size: the draft can propose this many ids, the most frequent ones of the
            answers; 0: all.
    """

    num_layers: int = 3
    num_features: int = 5
    target_layer_ids: tuple[int, ...] = ()
    block_size: int = 8
    window_tokens: int = 1024
    intermediate_size: int = 0
    mask_token_id: int = -1
    draft_vocab_size: int = 0
    loss_decay_gamma: float = 4.0


def shape_for_target(config: dict[str, Any], sizes: DraftSizes, num_anchors: int) -> DraftShape:
    """The draft of a target: its hidden size and heads, 64 or fewer rotary dimensions."""
    num_layers = config["num_hidden_layers"]
    ids = sizes.target_layer_ids or default_target_layer_ids(num_layers, sizes.num_features)
    # Engines take draft heads in whole groups of 16 elements.
    qk_head_dim, v_head_dim = (-(-config[name] // 16) * 16 for name in ("head_dim", "v_head_dim"))
    dense_width = config["moe_intermediate_size"] * config["num_experts_per_tok"]
    return DraftShape(
        hidden_size=config["hidden_size"],
        intermediate_size=sizes.intermediate_size or dense_width,
        num_layers=sizes.num_layers,
        num_q_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        qk_head_dim=qk_head_dim,
        v_head_dim=v_head_dim,
        rotary_dim=min(qk_head_dim, 64),
        target_layer_ids=tuple(ids),
        mask_token_id=sizes.mask_token_id % config["vocab_size"],
        num_target_layers=num_layers,
        vocab_size=config["vocab_size"],
        block_size=sizes.block_size,
        window_tokens=sizes.window_tokens,
        value_scale=config["attention_value_scale"],
        rms_norm_eps=config["layernorm_epsilon"],
        max_position_embeddings=config["max_position_embeddings"],
        loss_decay_gamma=sizes.loss_decay_gamma,
        num_anchors=num_anchors,
        draft_vocab_size=sizes.draft_vocab_size,
    )


def split_generations(
    generations: Sequence[Generation], num_validation: int, more: Sequence[Generation] = ()
) -> tuple[list[Generation], list[Generation]]:
    """(training, validation): whole prompts are held out, chosen by the hash of their name.

    Args:
        more: answers for training only; those to a prompt that is held out are left out. A prompt
            that comes twice under different names is the same prompt.
    """

    def rank(name: str) -> bytes:
        return hashlib.sha256(name.encode()).digest()

    prompts = sorted({g.prompt for g in generations}, key=rank)
    names = set(prompts[: min(num_validation, len(prompts) // 4)])
    held_out = {tuple(g.prompt_ids) for g in generations if g.prompt in names}
    training = [g for g in (*generations, *more) if tuple(g.prompt_ids) not in held_out]
    return training, [g for g in generations if g.prompt in names]


class DraftJob:
    """What a draft is trained and measured on, ready for a trainer.

    Args:
        target: its matmul_dtype is also that of the draft's products.
        data_dir: answers of this target; of some of its prompts they are held out.
        more_data_dir: answers for training only, if any.
        start_dir: as for :func:`train_draft`.
        cache: directory of the features, on a CPU; None keeps nothing. A GPU holds them itself.
    """

    def __init__(
        self,
        target: TargetModel,
        data_dir: Path,
        *,
        sizes: DraftSizes,
        options: DraftTrainingOptions,
        num_validation: int,
        more_data_dir: Path | None = None,
        start_dir: Path | None = None,
        cache: Path | None = None,
    ) -> None:
        self.target = target
        more = read_generations(more_data_dir) if more_data_dir else []
        training, validation = split_generations(read_generations(data_dir), num_validation, more)
        self._target_digest = checkpoint_digest(target.directory)
        for directory in (data_dir, more_data_dir):
            if directory:
                check_target(Path(directory), self._target_digest)
        self.data = TrainingData(training, options.max_sequence_tokens)
        self.is_validated = bool(validation)
        self.held_out = TrainingData(validation or training[:1], options.max_sequence_tokens)
        self.shape = shape_for_target(target.config, sizes, options.anchors_per_sequence)
        self._features = self._make_features(self.data, cache and cache / "features")
        self._held_out_features = self._make_features(
            self.held_out, cache and cache / "features-held-out"
        )
        self._start_dir = start_dir

    def _make_features(
        self, data: TrainingData, cache: Path | None
    ) -> FeatureSource | FeatureTable:
        layer_ids = self.shape.target_layer_ids
        if self.target.device.type == "cpu":
            return FeatureSource(self.target, layer_ids, data.token_ids, cache)
        return FeatureTable(self.target, layer_ids, data.token_ids)

    def make_trainer(self, options: DraftTrainingOptions) -> DraftTrainer:
        """A trainer before its first step."""
        answers = answers_digest(self.data, self.held_out)
        options = replace(options, answers=answers, target_digest=self._target_digest)
        if self._start_dir is not None:
            draft = start_at_draft(self._start_dir, self.shape)
            options = replace(options, start=weights_digest(draft))
        else:
            draft = _random_draft(self.shape, self.data, options.seed)
        return DraftTrainer(
            self.target, draft, self.data, self._features, options, dtype=self.target.matmul_dtype
        )

    def evaluate(self, draft: DraftModel) -> dict[str, Any]:
        """Acceptance on the held-out answers."""
        return evaluate_draft(
            self.target, draft, self.held_out, self._held_out_features,
            dtype=self.target.matmul_dtype,
        )


def _random_draft(shape: DraftShape, data: TrainingData, seed: int) -> DraftModel:
    vocab_ids = None
    if shape.draft_vocab_size:
        vocab_ids = data.vocabulary(shape.draft_vocab_size, shape.vocab_size)
    return DraftModel(shape, seed=seed, vocab_ids=vocab_ids)


def train_draft(
    model_dir: Path,
    data_dir: Path,
    run_dir: Path,
    *,
    sizes: DraftSizes,
    options: DraftTrainingOptions,
    run: RunOptions,
    num_validation: int = 16,
    device: str = "cpu",
    precision: str = "auto",
    start_dir: Path | None = None,
    cache_features: bool = True,
    report: Report,
) -> Path | None:
    """Train, or go on training, in ``run_dir``; the finished draft is ``run_dir/dflash``.

    Args:
        precision: "fp32", "bf16" or "auto", see precision.py. Not part of what a run was begun
            with: it may go on with another, in other bits and with features computed anew.
        start_dir: a finished draft to start at; None: random weights.

    Returns:
        The draft's directory, or None when the time of this call was up first. Its config.json
        has the acceptance length on the held-out answers, if any were held out.

    Raises:
        InvalidArgumentError: no usable answers, or none of this model; the run was begun with other
            options, answers, weights or another start; or the draft to start at has another shape.
    """
    run_dir = Path(run_dir)
    torch_device = training_device(device)
    report("loading the target")
    dtype = matmul_dtype(precision, torch_device)
    target = TargetModel(model_dir, matmul_dtype=dtype, device=torch_device)
    job = DraftJob(
        target, data_dir, sizes=sizes, options=options, num_validation=num_validation,
        start_dir=start_dir, cache=run_dir if cache_features else None,
    )
    trainer = job.make_trainer(options)

    def evaluate() -> dict[str, Any]:
        return job.evaluate(trainer.averaged_draft())

    if not run_training(trainer, run_dir, run, evaluate=evaluate, report=report):
        return None
    return export_draft(
        trainer.averaged_draft(), run_dir / "dflash",
        acceptance_length=_last_acceptance_length(trainer.history) if job.is_validated else None,
        overwrite=True,
    )


def _last_acceptance_length(history: Sequence[dict[str, Any]]) -> float:
    """Of the evaluation that follows the last step."""
    name = "mean_acceptance_length"
    return next(entry[name] for entry in reversed(history) if name in entry)
