"""GPTQ for MXFP4 experts: rounding in which later columns make up for the error of earlier ones.

Where quantisation-aware training starts. Rounding every weight to its nearest value ignores that the
inputs of a layer are correlated; GPTQ (Frantar et al., arXiv 2210.17323, section 3) minimises the
error of the layer's *output* over calibration tokens instead. Layers are done in order, each on the
inputs that the layers already rounded give, and towards the output of the unquantised model: first
by a least-squares fit of the weights, then by the compensated rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import silu

from .. import _C
from ..checkpoints.formats import MXFP4_BLOCK
from ..checkpoints.layout import layer_shape
from .mxfp4 import quantize_mxfp4, round_e2m1
from .target import TargetModel

# Shares of the mean diagonal that are added to a Gram matrix: of the rounding (as published), and of
# the fit, which has as many parameters as weights and must not follow the calibration tokens.
ROUNDING_DAMPING = 0.01
FIT_DAMPING = 0.05
# The experts of a layer share one Gram matrix of their hidden units.
MAX_HIDDEN_UNITS = 8192

Report = Callable[[str], None]


def gptq_mxfp4(weight: Tensor, gram: Tensor, damping: float = ROUNDING_DAMPING) -> Tensor:
    """Weights near ``weight [rows, cols]`` whose nearest MXFP4 values are GPTQ's choice.

    Every weight is what it was when its rounding came, with the errors of those before it made up
    for. Training wants these and not their rounded values: those lie half a step away from every
    other value, and small updates would change nothing.

    Args:
        gram: sum of x xᵀ over the inputs x. A block's exponents are those of least squared error
            when the rounding reaches it.
    """
    cols = weight.shape[1]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(gram, damping)))
    factor = torch.linalg.cholesky(inverse, upper=True)
    rest, values = weight.clone(), torch.empty_like(weight)
    for begin in range(0, cols, MXFP4_BLOCK):
        part = slice(begin, begin + MXFP4_BLOCK)
        values[:, part], error = _round_block(rest[:, part], factor[part, part])
        rest[:, part.stop :] -= error @ factor[part, part.stop :]
    # A few blocks have grown into another exponent since theirs was chosen.
    differs = (quantize_mxfp4(rest).values != values).reshape(len(rest), -1, MXFP4_BLOCK)
    return torch.where(differs.any(dim=2).repeat_interleave(MXFP4_BLOCK, dim=1), values, rest)


def _round_block(block: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds a block of columns, whose columns take up the error of those before them in place.

    Returns the values, and the scaled errors that the columns after the block absorb.
    """
    step = torch.exp2(quantize_mxfp4(block).exponent.float())[:, 0]
    values, error = torch.empty_like(block), torch.empty_like(block)
    for j in range(block.shape[1]):
        values[:, j] = round_e2m1(block[:, j] / step) * step
        error[:, j] = (block[:, j] - values[:, j]) / factor[j, j]
        block[:, j + 1 :] -= error[:, j, None] * factor[j, j + 1 :]
    return values, error


def _damped(gram: Tensor, damping: float) -> Tensor:
    # The smallest addition keeps inputs that are always zero invertible.
    addition = (gram.diagonal().mean() * damping).clamp_min(1e-12)
    return gram + addition * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def fit(weight: Tensor, inputs: Tensor, missing: Tensor, gram: Tensor) -> Tensor:
    """``weight`` plus the least-squares map from ``inputs`` to what its outputs are ``missing``."""
    change = torch.linalg.solve(_damped(gram, FIT_DAMPING), inputs.T @ missing)
    return weight + change.T


class _Streams:
    """The residual streams of all calibration tokens in the teacher and in the student."""

    def __init__(self, model: TargetModel, sequences: Sequence[Tensor]) -> None:
        self.sizes = [len(ids) for ids in sequences]
        self.x = torch.cat([model.embed[ids.to(model.device)] for ids in sequences])
        self._model = model

    def attend(self, layer_idx: int) -> None:
        parts = self.x.split(self.sizes)
        self.x = torch.cat([self._model.attention_output(part, layer_idx) for part in parts])

    def normed(self, layer_idx: int) -> Tensor:
        return self._model.mlp_input(self.x, layer_idx)


def gptq_experts(
    teacher: TargetModel, student: TargetModel, sequences: Sequence[Tensor], report: Report
) -> dict[str, Tensor]:
    """Weights of the experts of ``student``, layer by layer; ``quantize_mxfp4`` of them is GPTQ's.

    Args:
        sequences: token ids of calibration texts; some tens of thousands of tokens.
        report: called with a line of progress per layer.

    Raises:
        InvalidArgumentError: a layer's experts have more than MAX_HIDDEN_UNITS hidden units.
    """
    result: dict[str, Tensor] = {}
    num_layers = student.config["num_hidden_layers"]
    with torch.no_grad():
        expected, got = _Streams(teacher, sequences), _Streams(student, sequences)
        for layer_idx in range(num_layers):
            expected.attend(layer_idx)
            got.attend(layer_idx)
            rounded: dict[str, Tensor] = {}
            if layer_shape(student.config, layer_idx).is_moe:
                chosen = _LayerRounding(teacher, student, layer_idx).run(expected, got)
                result |= chosen
                rounded = {k: quantize_mxfp4(v).values for k, v in chosen.items()}
            expected.x = teacher.mlp_output(expected.x, layer_idx)
            got.x = student.mlp_output(got.x, layer_idx, {**student.weights, **rounded})
            error = float((got.x - expected.x).norm() / expected.x.norm())
            report(f"layer {layer_idx + 1} of {num_layers} rounded, relative error {error:.3f}")
    return result


class _LayerRounding:
    """The experts of one layer: gate and up on the normed stream, then all down matrices at once."""

    def __init__(self, teacher: TargetModel, student: TargetModel, layer_idx: int) -> None:
        self._teacher, self._student, self._layer_idx = teacher, student, layer_idx
        self._modules = student.expert_modules(layer_idx)
        self._width = student.config["moe_intermediate_size"]
        num_units = self._width * len(self._modules)
        if num_units > MAX_HIDDEN_UNITS:
            raise _C.InvalidArgumentError(
                f"[train] GPTQ: expected experts of at most {MAX_HIDDEN_UNITS} hidden units per "
                f"layer together, layer {layer_idx} has {num_units}. --gptq-tokens 0 starts at the "
                "teacher's weights."
            )

    def run(self, expected: _Streams, got: _Streams) -> dict[str, Tensor]:
        wanted_input, inputs = expected.normed(self._layer_idx), got.normed(self._layer_idx)
        result = self._round_gate_up(wanted_input, inputs)
        wanted = self._teacher.mlp_output(expected.x, self._layer_idx) - got.x
        rounded = {k: quantize_mxfp4(v).values for k, v in result.items()}
        hidden = self._hidden_units(inputs, rounded)
        return result | self._round_down(wanted, hidden)

    def _round_gate_up(self, wanted_input: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        names = [f"{m}.{part}_proj" for m in self._modules for part in ("gate", "up")]
        weight = torch.cat([self._teacher.weights[name] for name in names])
        gram = inputs.T @ inputs
        weight = fit(weight, inputs, (wanted_input - inputs) @ weight.T, gram)
        return dict(zip(names, gptq_mxfp4(weight, gram).split(self._width), strict=True))

    def _hidden_units(self, inputs: Tensor, gate_up: Mapping[str, Tensor]) -> Tensor:
        """``[num_tokens, experts * width]``: times the router's weight, 0 where not routed."""
        shares = self._student.expert_shares(inputs, self._layer_idx)
        parts = []
        for expert, module in enumerate(self._modules):
            gate, up = (inputs @ gate_up[f"{module}.{part}_proj"].T for part in ("gate", "up"))
            parts.append(silu(gate) * up * shares[:, expert, None])
        return torch.cat(parts, dim=1)

    def _round_down(self, wanted: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """``wanted``: what the layer must add to the student's stream to reach the teacher's."""
        names = [f"{module}.down_proj" for module in self._modules]
        weight = torch.cat([self._teacher.weights[name] for name in names], dim=1)
        gram = hidden.T @ hidden
        weight = fit(weight, hidden, wanted - hidden @ weight.T, gram)
        return dict(zip(names, gptq_mxfp4(weight, gram).split(self._width, dim=1), strict=True))
