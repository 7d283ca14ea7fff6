"""Trained experts as differences: an exact round trip, small files, damaged files."""

import numpy as np
import pytest
from mimo_rt import _C
from mimo_rt.checkpoints import expert_delta, formats

MODULE = "model.layers.0.mlp.experts.0.gate_proj"


def trained(rng, weight):
    """MXFP4 codes and scales near those of plain rounding, and some far away."""
    codes, scale = formats.encode_mxfp4(weight)
    shifted = np.clip(scale.astype(int) + rng.integers(-1, 2, scale.shape), 0, 254).astype(np.uint8)
    codes = np.where(rng.random(codes.shape) < 0.1, rng.integers(0, 256, codes.shape), codes).astype(np.uint8)
    return codes, shifted


@pytest.mark.parametrize("case", ["normal", "tiny", "huge", "zero"])
def test_round_trip_gives_the_same_values(case):
    rng = np.random.default_rng(6)
    factor = {"normal": 1.0, "tiny": 2.0**-140, "huge": 2.0**125, "zero": 0.0}[case]
    weight = (rng.standard_normal((32, 96)) * factor).astype(np.float32)
    codes, scale = trained(rng, weight)
    delta = expert_delta.encode_delta(weight, codes, scale)
    got = expert_delta.decode_delta(weight, delta, scale)
    with np.errstate(over="ignore"):
        assert np.array_equal(formats.decode_mxfp4(got, scale), formats.decode_mxfp4(codes, scale))
    assert not (np.isin(got & 15, 8) | (got >> 4 == 8)).any()  # -0 is stored as 0
    other = expert_delta.decode_delta(-weight + np.float32(1), delta, scale)  # control: other source weights
    assert not np.array_equal(other, got)


def test_unmoved_codes_cost_next_to_nothing(tmp_path):
    weight = np.random.default_rng(1).standard_normal((256, 256)).astype(np.float32)
    codes, scale = formats.encode_mxfp4(weight)
    delta = expert_delta.encode_delta(weight, codes, scale)
    assert not delta.any()
    path = tmp_path / "experts.npz"
    expert_delta.write_expert_delta(path, {f"{MODULE}.scale": scale, f"{MODULE}.delta": delta})
    assert path.stat().st_size < 0.1 * codes.size
    with expert_delta.open_expert_delta(path) as opened:
        got, got_scale = opened.codes_and_scale(MODULE, weight)
    assert np.array_equal(got_scale, scale)
    assert np.array_equal(formats.decode_mxfp4(got, scale), formats.decode_mxfp4(codes, scale))


def test_damaged_files_are_named(tmp_path):
    weight = np.ones((4, 64), dtype=np.float32)
    codes, scale = formats.encode_mxfp4(weight)
    delta = expert_delta.encode_delta(weight, codes, scale)
    for bad in (delta[:, 1:], delta.astype(np.int8), np.full_like(delta, 0xFF)):
        with pytest.raises(_C.BadFormatError, match="expert delta"):
            expert_delta.decode_delta(weight, bad, scale)
    with pytest.raises(_C.BadFormatError, match="scales below 255"):
        expert_delta.decode_delta(weight, delta, np.full_like(scale, 0xFF))
    path = tmp_path / "experts.npz"
    expert_delta.write_expert_delta(path, {f"{MODULE}.scale": scale})
    with expert_delta.open_expert_delta(path) as opened, pytest.raises(_C.BadFormatError, match=MODULE):
        opened.codes_and_scale(MODULE, weight)
    for content in (b"", b"PK\x03\x04 nonsense", path.read_bytes()[:-30]):
        path.write_bytes(content)
        with pytest.raises(_C.BadFormatError, match="cannot be read"), expert_delta.open_expert_delta(path):
            pass
