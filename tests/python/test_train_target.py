"""The torch forward of a checkpoint against the plain numpy model, both in float64.

Two float64 evaluations differ by roundings of u = 2^-53 each; sums have at most 400 terms and there are 5 layers, so
2^13 u relative to the largest logit is far above what rounding gives. FP8 weights are code x scale, rounded once to
float32: a relative 2^-24 per weight, which averages out along a sum and adds up over some 16 linears.
"""

import json
import shutil

import numpy as np
import pytest
from reference_model import ReferenceModel

torch = pytest.importorskip("torch")

from mimo_rt.checkpoints import PRESETS, write_tiny_checkpoint  # noqa: E402
from mimo_rt.train.target import TargetModel  # noqa: E402

BF16_BOUND = 2.0**13 * 2.0**-53
BOUND = 16 * 2.0**-24
TOKENS = np.random.default_rng(3).integers(0, 100, size=21)


def difference(got, expected):
    return np.abs(got.numpy() - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module", params=sorted(PRESETS))
def directory(request, tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / request.param, preset=request.param)


def logits(directory):
    with torch.no_grad():
        return TargetModel(directory, dtype=torch.float64).forward(torch.tensor(TOKENS)).logits


def test_logits_equal_the_plain_model(directory):
    is_bf16 = "quantization_config" not in json.loads((directory / "config.json").read_text())
    bound = BF16_BOUND if is_bf16 else BOUND
    assert difference(logits(directory), ReferenceModel(directory).forward(TOKENS)) < bound


@pytest.mark.parametrize("field,value", [("attention_value_scale", 0.62), ("partial_rotary_factor", 0.25),
                                         ("sliding_window", 7), ("swa_rope_theta", 20000)])
def test_the_bound_sees_a_wrong_field(tmp_path, field, value):
    directory = write_tiny_checkpoint(tmp_path / "good")
    expected = ReferenceModel(directory).forward(TOKENS)
    wrong = shutil.copytree(directory, tmp_path / "wrong")
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps(config | {field: value}))
    assert difference(logits(wrong), expected) > 100 * BOUND


def test_features_are_the_stream_before_the_final_norm(tmp_path):
    """From the last feature the final norm and lm_head give the logits; earlier ones do not, and order is kept."""
    directory = write_tiny_checkpoint(tmp_path / "m")
    model = TargetModel(directory, dtype=torch.float64)
    with torch.no_grad():
        out = model.forward(torch.tensor(TOKENS), layer_ids=[4, 0, 2])
        early = model.forward(torch.tensor(TOKENS), layer_ids=[0, 2], wants_logits=False)
    last, first, middle = out.features.split(model.hidden_size, dim=1)
    assert early.logits is None
    assert torch.equal(early.features, torch.cat([first, middle], dim=1))

    def head(x):
        reference = ReferenceModel(directory)
        return reference.rms_norm(x.numpy(), "model.norm") @ reference.plain("lm_head.weight").T

    assert difference(out.logits, head(last)) < BOUND
    assert difference(out.logits, head(middle)) > 0.01


def test_products_in_bf16_leave_the_stream_in_float32(tmp_path):
    """A dense layer: operands and results within 2^-9 each; a chain of four products stays within 2^-6."""
    directory = write_tiny_checkpoint(tmp_path / "m")
    exact, rounded = (TargetModel(directory, matmul_dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert not exact.config["moe_layer_freq"][0]
    with torch.no_grad():
        expected, got = (m.forward(torch.tensor(TOKENS), layer_ids=[0], wants_logits=False).features
                         for m in (exact, rounded))
    assert got.dtype == torch.float32
    assert rounded.weights["model.layers.0.self_attn.q_proj"].dtype == torch.bfloat16
    assert rounded.weights["model.layers.1.mlp.gate"].dtype == torch.float32  # who routes is not rounded
    assert 0 < difference(got, expected.numpy()) < 2**-6
