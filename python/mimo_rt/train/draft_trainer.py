"""The training loop of a draft: deterministic, resumable.

What a step does is a function of the seed and the step's number alone (which sequences, which
anchors, which ids of the vocabulary), so a resumed run of the same precision continues bit for bit
where it stopped; the checkpoint holds weights, optimiser state, the step and the history of losses.

A pass (forward and backward) takes one sequence on a CPU, whose caches hold no more, and all of a
step's on a GPU, which one alone would not fill. A step waits for the device only with a sampled
softmax, whose ids are chosen on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .. import _C
from .blocks import block_labels, sample_anchors
from .data import TrainingData
from .draft import DraftModel
from .loss import VocabSample, block_loss, slot_weights
from .ops import to_device
from .optimizers import learning_rate_factor, make_optimizers, set_learning_rate
from .precision import autocast
from .schedule import mix_seed, sequences_of_step
from .state_files import load_state, save_state
from .target import TargetModel

MIN_WEIGHT = 1e-9
PAD_TOKENS = 64  # contexts of a pass are filled up to a multiple: few shapes, few allocations


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
        answers: digest of the answers that are trained on and of those held out: a run that went on
            with others would be measured on answers that it has seen.
        target_digest: of the target's checkpoint.
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
    answers: str = ""
    target_digest: str = ""


class Features(Protocol):
    """Of numbered sequences: FeatureSource or FeatureTable."""

    def batch(self, seq_ids: Sequence[int], num_tokens: int) -> Tensor: ...


@dataclass(frozen=True)
class _Pass:
    """Blocks of some sequences, on the device.

    Attributes:
        seq_ids: of the sequences; num_context: tokens before the last anchor.
        anchors: ``[num_sequences, num_blocks]``, and ``anchor_ids`` the tokens there.
        labels, weight: ``[num_sequences, num_blocks, num_slots]``; no label weighs 0.
    """

    seq_ids: Sequence[int]
    num_context: int
    anchors: Tensor
    anchor_ids: Tensor
    labels: Tensor
    weight: Tensor


class DraftTrainer:
    """Trains ``draft`` to continue the answers of ``target``.

    Args:
        data: training sequences; ``features`` are those of the same sequences.
        dtype: in which matrices are multiplied (see precision.py).
        sequences_per_pass: changes nothing but the order of sums; 0: what suits the device.
    """

    def __init__(
        self,
        target: TargetModel,
        draft: DraftModel,
        data: TrainingData,
        features: Features,
        options: DraftTrainingOptions,
        *,
        dtype: torch.dtype = torch.float32,
        sequences_per_pass: int = 0,
    ) -> None:
        self.draft = draft.to(target.device)
        self.options = options
        self.step_idx = 0
        self._history: list[dict[str, Any]] = []
        self._new_losses: list[tuple[int, Tensor]] = []  # still on the device
        is_cpu = target.device.type == "cpu"
        self._per_pass = sequences_per_pass or (1 if is_cpu else options.sequences_per_step)
        self._ids = pad_sequence(data.token_ids, batch_first=True).to(target.device)
        self._num_tokens = torch.tensor([len(ids) for ids in data.token_ids])
        self._target, self._data, self._features = target, data, features
        self._dtype = dtype
        self._head = self.draft.head(target.lm_head)
        self._optimizers = make_optimizers(
            draft.parameters(), lr=options.lr, weight_decay=options.weight_decay, dtype=dtype
        )
        weights = slot_weights(draft.shape.block_size - 1, draft.shape.loss_decay_gamma)
        self._weights = weights.to(target.device)
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

    def step(self) -> Tensor:
        """Train on the next sequences; returns the mean loss per label, in nat, on the device."""
        options = self.options
        generator = torch.Generator().manual_seed(mix_seed(options.seed, self.step_idx))
        chosen = sequences_of_step(
            options.seed, self.step_idx, options.sequences_per_step, len(self._data)
        )
        anchors = [self._sample_anchors(seq_idx, generator) for seq_idx in chosen]
        begins = range(0, len(chosen), self._per_pass)
        parts = [slice(begin, begin + self._per_pass) for begin in begins]
        passes = [self._make_pass(chosen[part], anchors[part]) for part in parts]
        # A small part of the vocabulary may know no token of the step.
        weights = torch.stack([part.weight.sum() for part in passes])
        total_weight = weights.sum().clamp(min=MIN_WEIGHT)
        losses = []
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        for part in passes:
            with autocast(self._target.device, self._dtype):
                loss = self._pass_loss(part, generator) / total_weight
            loss.backward()
            losses.append(loss.detach())
        self._update()
        loss = torch.stack(losses).sum()
        self._new_losses.append((self.step_idx, loss))
        self.step_idx += 1
        return loss

    @property
    def history(self) -> list[dict[str, Any]]:
        """Losses of all steps, and what others append; waits for the device."""
        if self._new_losses:
            steps, losses = zip(*self._new_losses, strict=True)
            self._new_losses.clear()
            pairs = zip(steps, torch.stack(losses).tolist(), strict=True)
            self._history += [{"step": step, "loss": loss} for step, loss in pairs]
        return self._history

    def _sample_anchors(self, seq_idx: int, generator: torch.Generator) -> Tensor:
        num_tokens = len(self._data.token_ids[seq_idx])
        num_prompt_tokens = self._data.num_prompt_tokens[seq_idx]
        count = self.options.anchors_per_sequence
        return sample_anchors(num_tokens, num_prompt_tokens, count, generator)

    def _make_pass(self, seq_ids: Sequence[int], anchors_of: Sequence[Tensor]) -> _Pass:
        """Fewer anchors than in other sequences are filled up with ones that weigh nothing."""
        num_context = max(int(anchors.max()) for anchors in anchors_of)
        if len(seq_ids) > 1:
            num_context = -(-num_context // PAD_TOKENS) * PAD_TOKENS
        seq_idx = torch.tensor(seq_ids)
        # -1 is no position.
        padded = pad_sequence(anchors_of, batch_first=True, padding_value=-1)
        anchors, num_tokens, rows = (
            to_device(u, self._target.device) for u in (padded, self._num_tokens[seq_idx], seq_idx)
        )
        is_anchor, anchors = anchors >= 0, anchors.clamp(min=0)
        ids = self._ids[rows]
        labels, is_inside = block_labels(ids, anchors, self.draft.shape.block_size, num_tokens)
        labels, is_known = self.draft.draft_ids(labels)
        weight = is_inside * self._weights * is_known * is_anchor[..., None]
        return _Pass(seq_ids, num_context, anchors, ids.gather(1, anchors), labels, weight)

    def _pass_loss(self, part: _Pass, generator: torch.Generator) -> Tensor:
        context = self.draft.context(self._features.batch(part.seq_ids, part.num_context))
        z = self.draft(context, self._target.embed[part.anchor_ids], part.anchors)
        sample = None
        if self._sample is not None:
            labels = part.labels[part.weight > 0]
            sample = self._sample.choose(labels, len(self._head), generator)
        return block_loss(z, part.labels, part.weight, self._head, sample)

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

    def _begun_with(self) -> dict[str, Any]:
        return asdict(self.options) | asdict(self.draft.shape)

    def save(self, path: Path) -> None:
        """Replace ``path`` by the state after the last step; the old file stays until then."""
        state = {
            "options": self._begun_with(),
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
        if saved is not None and ids is not None and not torch.equal(saved, ids.cpu()):
            raise _C.InvalidArgumentError(
                f"[train] {path} was made with another vocabulary of the draft, that of other "
                "answers. Use the same ones or another directory."
            )

    def load(self, path: Path) -> None:
        """Continue from :meth:`save`.

        InvalidArgumentError when options, the draft's shape or its vocabulary differ.
        """
        state = load_state(path, self._begun_with())
        self._check_vocabulary(path, state.get("vocab_ids"))
        self.step_idx, self._history = state["step_idx"], state["history"]
        self._new_losses.clear()
        self.draft.load_state_dict(state["draft"])
        self._ema = {k: v.to(self._target.device) for k, v in state["ema"].items()}
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
