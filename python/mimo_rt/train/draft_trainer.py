"""The training loop of a draft: deterministic, resumable, one sequence at a time.

What a step does is a function of the seed and the step's number alone (which sequences, which
anchors, which ids of the vocabulary), so a resumed run of the same precision continues bit for bit
where it stopped; the checkpoint holds weights, optimiser state, the step and the history of losses.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import _C
from .blocks import block_labels, sample_anchors
from .data import TrainingData
from .draft import DraftModel
from .features import FeatureSource
from .loss import VocabSample, block_loss, slot_weights
from .optimizers import learning_rate_factor, make_optimizers, set_learning_rate
from .precision import autocast
from .schedule import mix_seed, sequences_of_step
from .state_files import load_state, save_state
from .target import TargetModel

MIN_WEIGHT = 1e-9


@dataclass(frozen=True)
class DraftTrainingOptions:
    """Numbers of a training run.

    Attributes:
        sequences_per_step, anchors_per_sequence: blocks of a step are their product, at most.
        lr: peak learning rate of both optimisers.
        ema_decay: 0 keeps no average; else the exported weights are the running average.
        num_frequent_ids, num_random_ids: softmax over the most frequent ids of the answers, the
            labels and random others (see VocabSample); both 0: over the whole vocabulary. Both
            must be 0 for a draft of a part of the vocabulary: its softmax is over that part, and
            tokens outside are no labels.
        start: digest of the draft that training started at; empty: random weights.
    """

    num_steps: int = 1000
    sequences_per_step: int = 8
    anchors_per_sequence: int = 64
    lr: float = 2e-3
    warmup_fraction: float = 0.04
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    num_frequent_ids: int = 0
    num_random_ids: int = 0
    max_sequence_tokens: int = 1024
    seed: int = 0
    start: str = ""


class DraftTrainer:
    """Trains ``draft`` to continue the answers of ``target``.

    Args:
        data: training sequences; ``features`` are those of the same sequences.
        dtype: in which matrices are multiplied (see precision.py).
    """

    def __init__(
        self,
        target: TargetModel,
        draft: DraftModel,
        data: TrainingData,
        features: FeatureSource,
        options: DraftTrainingOptions,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.draft = draft.to(target.device)
        self.options = options
        self.step_idx = 0
        self.history: list[dict[str, float]] = []
        self._target, self._data, self._features = target, data, features
        self._dtype = dtype
        self._head = self.draft.head(target.lm_head)
        self._optimizers = make_optimizers(
            draft.parameters(), lr=options.lr, weight_decay=options.weight_decay, dtype=dtype
        )
        self._weights = slot_weights(draft.shape.block_size - 1, draft.shape.loss_decay_gamma)
        self._ema = {k: v.detach().clone() for k, v in draft.state_dict().items()}
        self._sample = None
        if options.num_frequent_ids or options.num_random_ids:
            if draft.vocab_ids is not None:
                raise _C.InvalidArgumentError(
                    "[train] num_frequent_ids, num_random_ids: expected 0 for a draft of a part of "
                    f"the vocabulary, got {options.num_frequent_ids}, {options.num_random_ids}."
                )
            certain = data.frequent_ids(options.num_frequent_ids)
            self._sample = VocabSample(certain, options.num_random_ids)

    # -- one step

    def step(self) -> float:
        """Train on the next sequences; returns the mean loss per label, in nat."""
        options = self.options
        generator = torch.Generator().manual_seed(mix_seed(options.seed, self.step_idx))
        chosen = sequences_of_step(
            options.seed, self.step_idx, options.sequences_per_step, len(self._data)
        )
        batch = []
        for seq_idx in chosen:
            ids = self._data.token_ids[seq_idx]
            anchors = sample_anchors(
                len(ids),
                self._data.num_prompt_tokens[seq_idx],
                options.anchors_per_sequence,
                generator,
            )
            labels, is_inside = block_labels(ids, anchors, self.draft.shape.block_size)
            labels, is_known = self.draft.draft_ids(labels.to(self._target.device))
            weight = (is_inside * self._weights).to(labels.device) * is_known
            batch.append((seq_idx, anchors, labels, weight))
        # A small part of the vocabulary may know no token of the step.
        total_weight = sum(weight.sum() for *_, weight in batch).clamp(min=MIN_WEIGHT)
        loss = 0.0
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        for item in batch:
            with autocast(self._target.device, self._dtype):
                part = self._sequence_loss(*item, generator) / total_weight
            part.backward()
            loss += float(part.detach())
        self._update()
        self.history.append({"step": self.step_idx, "loss": loss})
        self.step_idx += 1
        return loss

    def _sequence_loss(
        self,
        seq_idx: int,
        anchors: Tensor,
        labels: Tensor,
        weight: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        z = self._blocks(seq_idx, anchors)
        sample = None
        if self._sample is not None:
            sample = self._sample.choose(labels, len(self._head), generator)
        return block_loss(z, labels, weight, self._head, sample)

    def _blocks(self, seq_idx: int, anchors: Tensor) -> Tensor:
        """Draft outputs of the blocks; the context ends before the last anchor."""
        anchors = anchors.to(self._target.device)
        features = self._features(seq_idx)[: int(anchors.max())]
        context = self.draft.context(features)
        ids = self._data.token_ids[seq_idx].to(self._target.device)
        return self.draft(context, self._target.embed[ids[anchors]], anchors)

    def _update(self) -> None:
        options = self.options
        torch.nn.utils.clip_grad_norm_(self.draft.parameters(), options.clip_norm)
        factor = learning_rate_factor(self.step_idx, options.num_steps, options.warmup_fraction)
        set_learning_rate(self._optimizers, options.lr * factor)
        for optimizer in self._optimizers:
            optimizer.step()
        if options.ema_decay:
            # A young average forgets its random start faster.
            decay = min(options.ema_decay, (1 + self.step_idx) / (10 + self.step_idx))
            for name, value in self.draft.state_dict().items():
                self._ema[name].lerp_(value, 1 - decay)

    # -- result

    def averaged_draft(self) -> DraftModel:
        """The draft to export: the running average when there is one."""
        if not self.options.ema_decay:
            return self.draft
        model = DraftModel(self.draft.shape, vocab_ids=self.draft.vocab_ids)
        model.load_state_dict(self._ema)
        return model.to(self._target.device)

    # -- checkpoints

    def save(self, path: Path) -> None:
        """Replace ``path`` by the state after the last step; the old file stays until then."""
        state = {
            "options": asdict(self.options),
            "step_idx": self.step_idx,
            "history": self.history,
            "draft": self.draft.state_dict(),
            "ema": self._ema,
            "vocab_ids": self.draft.vocab_ids,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        save_state(path, state)

    def _check_vocabulary(self, path: Path, saved: Tensor | None) -> None:
        ids = self.draft.vocab_ids
        is_equal = saved is ids is None
        if saved is not None and ids is not None:
            is_equal = torch.equal(saved.cpu(), ids.cpu())
        if not is_equal:
            raise _C.InvalidArgumentError(
                f"[train] {path} was made with another vocabulary of the draft (other answers, or "
                "another draft_vocab_size). Use the same ones or another directory."
            )

    def load(self, path: Path) -> None:
        """Continue from :meth:`save`. InvalidArgumentError when options or vocabulary differ."""
        state = load_state(path, asdict(self.options))
        self._check_vocabulary(path, state.get("vocab_ids"))
        self.step_idx, self.history = state["step_idx"], state["history"]
        self.draft.load_state_dict(state["draft"])
        self._ema = state["ema"]
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
