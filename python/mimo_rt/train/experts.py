"""Quantisation-aware training of MXFP4 experts by distillation from the unquantised model.

Only the expert weights are trained. A step rounds their float32 masters to MXFP4, runs the student
with the rounded values, and gives the gradient of a rounded value to its master unchanged
(straight-through). The loss is the Kullback-Leibler divergence of the student's next-token
distribution from the teacher's, over all positions of a sequence. AdamW trains the masters: they
start at weights that round to GPTQ's choice and move by less than a quantisation step, where the
orthogonal steps of Muon would be far too coarse.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from .. import _C
from ..checkpoints.layout import format_of, tensor_specs
from ..checkpoints.writer import CheckpointWriter, atomic_directory
from .data import TrainingData
from .mxfp4 import quantize_mxfp4
from .optimizers import learning_rate_factor, set_learning_rate
from .schedule import sequences_of_step
from .state_files import load_state, save_state
from .target import TargetModel
from .tensors import CheckpointTensors


@dataclass(frozen=True)
class ExpertTrainingOptions:
    """Numbers of a training run; sequences are cut to max_sequence_tokens.

    ``gptq_tokens``: about how many tokens GPTQ may look at for the start; 0 starts at the teacher.
    ``answers``: as for DraftTrainingOptions. ``teacher_digest``, ``student_digest``: of
    the two checkpoints.
    """

    num_steps: int = 200
    sequences_per_step: int = 4
    lr: float = 3e-5
    warmup_fraction: float = 0.04
    clip_norm: float = 1.0
    max_sequence_tokens: int = 512
    gptq_tokens: int = 32768
    seed: int = 0
    answers: str = ""
    teacher_digest: str = ""
    student_digest: str = ""


def expert_linears(model: TargetModel) -> list[str]:
    """Names of the weights that config.json says are MXFP4."""
    return [name for name in model.weights if format_of(model.config, name) == "mxfp4"]


class ExpertTrainer:
    """Trains the experts of ``student`` towards ``teacher``.

    Args:
        teacher: the unquantised model; its expert weights are where training starts.
        student: same sizes, experts in MXFP4; everything else of it stays as it is.
        start: expert weights to start at; None: the teacher's.
    """

    def __init__(
        self,
        teacher: TargetModel,
        student: TargetModel,
        data: TrainingData,
        options: ExpertTrainingOptions,
        *,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.options = options
        self.step_idx = 0
        self.history: list[dict[str, float]] = []
        self._teacher, self._student, self._data = teacher, student, data
        start = teacher.weights if start is None else start
        self._masters: dict[str, Tensor] = {}
        for name in expert_linears(student):
            if name not in start or start[name].shape != student.weights[name].shape:
                raise _C.ShapeMismatchError(
                    f"[train] '{name}': expected {list(student.weights[name].shape)} in the "
                    f"start too, got {list(start[name].shape) if name in start else 'none'}."
                )
            self._masters[name] = start[name].clone()
        if not self._masters:
            raise _C.InvalidArgumentError(
                f"[train] {student.directory}: expected MXFP4 experts, found none."
            )
        self._optimizer = torch.optim.AdamW(
            self._masters.values(), lr=options.lr, weight_decay=0.0, betas=(0.9, 0.95)
        )

    def quantized(self) -> dict[str, Tensor]:
        """The expert weights as MXFP4 values."""
        return {name: quantize_mxfp4(master).values for name, master in self._masters.items()}

    def step(self) -> float:
        """Train on the next sequences; returns the divergence in nat per token."""
        options = self.options
        chosen = sequences_of_step(
            options.seed, self.step_idx, options.sequences_per_step, len(self._data)
        )
        num_tokens = sum(len(self._data.token_ids[i]) for i in chosen)
        weights = {k: v.requires_grad_() for k, v in self.quantized().items()}
        loss = 0.0
        for seq_idx in chosen:
            part = self._divergence(self._data.token_ids[seq_idx], weights) / num_tokens
            part.backward()
            loss += float(part.detach())
        for name, master in self._masters.items():
            # An expert that no token chose has no gradient.
            grad = weights[name].grad
            master.grad = torch.zeros_like(master) if grad is None else grad
        torch.nn.utils.clip_grad_norm_(self._masters.values(), options.clip_norm)
        factor = learning_rate_factor(self.step_idx, options.num_steps, options.warmup_fraction)
        set_learning_rate([self._optimizer], options.lr * factor)
        self._optimizer.step()
        for master in self._masters.values():
            master.grad = None
        self.history.append({"step": self.step_idx, "loss": loss})
        self.step_idx += 1
        return loss

    def _divergence(self, token_ids: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """Sum over positions of KL(teacher || student)."""
        token_ids = token_ids.to(self._student.device)
        with torch.no_grad():
            expected = self._teacher.forward(token_ids).logits.log_softmax(dim=-1)
        got = self._student.forward(token_ids, replace=weights).logits.log_softmax(dim=-1)
        return kl_div(got, expected, log_target=True, reduction="sum")

    def evaluate(self, data: TrainingData) -> dict[str, Any]:
        """On held-out sequences: divergence and next-token losses of both, in nat per token."""
        weights = self.quantized()
        sums = {"divergence": 0.0, "teacher_loss": 0.0, "student_loss": 0.0}
        num_tokens = 0
        with torch.no_grad():
            for ids in data.token_ids:
                ids = ids.to(self._student.device)
                expected = self._teacher.forward(ids).logits[:-1].log_softmax(dim=-1)
                got = self._student.forward(ids, replace=weights).logits[:-1].log_softmax(dim=-1)
                sums["divergence"] += float(kl_div(got, expected, log_target=True, reduction="sum"))
                sums["teacher_loss"] -= float(expected.gather(1, ids[1:, None]).sum())
                sums["student_loss"] -= float(got.gather(1, ids[1:, None]).sum())
                num_tokens += len(ids) - 1
        return {name: value / num_tokens for name, value in sums.items()}

    # -- checkpoints

    def save(self, path: Path) -> None:
        """Replace ``path`` by the state after the last step."""
        state = {
            "options": asdict(self.options),
            "step_idx": self.step_idx,
            "history": self.history,
            "masters": self._masters,
            "optimizer": self._optimizer.state_dict(),
        }
        save_state(path, state)

    def load(self, path: Path) -> None:
        """Continue from :meth:`save`. InvalidArgumentError when the options differ."""
        state = load_state(path, asdict(self.options))
        self.step_idx, self.history = state["step_idx"], state["history"]
        for name, value in state["masters"].items():
            self._masters[name].copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])

    # -- result

    def export(self, directory: Path, *, overwrite: bool = False) -> Path:
        """Write the student with the trained experts: exactly the values that training used."""
        source = self._student.directory
        tensors = CheckpointTensors(source)
        specs = tensor_specs(self._student.config)
        with atomic_directory(Path(directory), overwrite=overwrite) as partial:
            for path in source.iterdir():
                if path.is_file() and ".safetensors" not in path.name:
                    shutil.copy2(path, partial / path.name)
            with CheckpointWriter(partial, specs) as writer:
                for name in specs:
                    module = name.removesuffix("_scale").removesuffix(".weight")
                    if module not in self._masters:
                        writer.write(name, _stored(tensors.raw(name)))
                for module, master in self._masters.items():
                    codes, scale = quantize_mxfp4(master).encode()
                    writer.write(f"{module}.weight", codes)
                    writer.write(f"{module}.weight_scale", scale)
        return Path(directory)


def _stored(tensor: Tensor) -> Any:
    """The bytes of a tensor in the numpy type that the writer stores."""
    views: dict[torch.dtype, Callable[[], Tensor]] = {
        torch.bfloat16: lambda: tensor.view(torch.uint16),
        torch.float8_e4m3fn: lambda: tensor.view(torch.uint8),
    }
    return views.get(tensor.dtype, lambda: tensor)().numpy()
