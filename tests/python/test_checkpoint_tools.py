"""Number formats, safetensors writer and tensor inventory, against independent definitions."""

import json
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from mimo_rt.checkpoints import CheckpointWriter, TensorSpec, atomic_directory, formats, layout
from reference_model import E2M1, E4M3, read_tensors

RNG = np.random.default_rng(2)


def wide_range(shape):
    """Normal values spread over many binades, with exact zeros."""
    values = RNG.standard_normal(shape) * np.exp2(RNG.integers(-12, 10, shape))
    values[RNG.random(shape) < 0.02] = 0
    return values.astype(np.float32)


def is_nearest_even(values, codes, decode):
    """Whether `codes` are nearest to `values`, ties going to the even code (float64)."""
    values = np.abs(values.astype(np.float64))
    magnitude = codes & (np.iinfo(codes.dtype).max >> 1)
    error = np.abs(decode(magnitude) - values)
    for step in (-1, 1):
        other = np.clip(magnitude.astype(np.int64) + step, 0, None).astype(codes.dtype)
        other_error = np.abs(decode(other).astype(np.float64) - values)
        better = other_error < error
        tie_lost = (other_error == error) & (other != magnitude) & (magnitude & 1 == 1)
        if (better | tie_lost).any():
            return False
    return True


def decode_bf16_exactly(codes):
    return formats.decode_bf16(codes).astype(np.float64)


# --- BF16 and FP8 --------------------------------------------------------------------------------


def test_bf16_every_code_survives():
    codes = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    values = formats.decode_bf16(codes)
    is_nan = np.isnan(values)
    assert np.array_equal(formats.encode_bf16(values)[~is_nan], codes[~is_nan])
    assert np.isnan(formats.decode_bf16(formats.encode_bf16(values[is_nan]))).all()


def test_bf16_rounds_to_nearest_even():
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)], dtype=np.float32)
    assert formats.decode_bf16(formats.encode_bf16(ties)).tolist() == [1, 1 + 2**-6, -1]
    values = wide_range(20_000)
    assert is_nearest_even(values, formats.encode_bf16(values), decode_bf16_exactly)
    truncated = (values.view(np.uint32) >> 16).astype(np.uint16)
    assert not is_nearest_even(values, truncated, decode_bf16_exactly)


def test_e4m3_every_code_survives():
    codes = np.arange(256).astype(np.uint8)
    values = formats.decode_e4m3(codes)
    assert np.array_equal(values, E4M3.astype(np.float32), equal_nan=True)
    finite = ~np.isnan(values)
    assert finite.sum() == 254
    assert np.array_equal(formats.encode_e4m3(values)[finite], codes[finite])


def test_e4m3_rounds_to_nearest_even_and_saturates():
    def decode(codes):
        return np.where(codes < 0x7F, E4M3[codes & 0x7F], np.inf)

    values = wide_range(20_000)
    values = values[np.abs(values) <= 448]
    codes = formats.encode_e4m3(values)
    assert np.array_equal(codes >> 7, np.signbit(values))
    assert is_nearest_even(values, codes, decode)
    midpoints = ((E4M3[:126] + E4M3[1:127]) / 2).astype(np.float32)
    assert is_nearest_even(midpoints, formats.encode_e4m3(midpoints), decode)
    assert not is_nearest_even(values, codes ^ 1, decode)
    assert formats.encode_e4m3(np.float32([500, -1e30, np.inf, np.nan])).tolist() == [
        0x7E, 0xFE, 0x7E, 0x7F,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "cols", "chunks"), [(128, 128, 1), (1, 1, 1), (300, 200, 1), (352, 160, 2)]
)
def test_fp8_blocks_stay_within_half_a_step(rows, cols, chunks):
    weight = wide_range((rows, cols))
    codes, scale = formats.encode_fp8_blocks(weight, chunks)
    decoded = formats.decode_fp8_blocks(codes, scale, chunks).astype(np.float64)
    # Each block by itself: half a step is 2^-4 of the value, or 2^-10 of the scale near zero.
    chunk_rows, scale_row = rows // chunks, 0
    for chunk in range(chunks):
        for row in range(0, chunk_rows, 128):
            begin, end = chunk * chunk_rows + row, chunk * chunk_rows + min(row + 128, chunk_rows)
            for block_col in range(-(-cols // 128)):
                part = np.s_[begin:end, block_col * 128 : block_col * 128 + 128]
                expected = weight[part].astype(np.float64)
                s = float(scale[scale_row, block_col])
                assert s == pytest.approx(np.abs(expected).max() / 448, rel=1e-6)
                bound = np.maximum(np.abs(expected) * 2**-4, s * 2**-10) * (1 + 1e-6)
                assert (np.abs(decoded[part] - expected) <= bound).all()
            scale_row += 1
    assert scale_row == len(scale)


def test_fp8_scale_grid_restarts_per_chunk():
    """The released fused qkv: 8 chunks of 3392 rows have 216 scale rows, not 212."""
    assert formats.fp8_scale_rows(27136, 8) == 216
    scale_row = formats._fp8_scale_row_of(27136, 8)
    assert scale_row[[3584, 13439, 13440, 27135]].tolist() == [28, 106, 106, 215]
    codes, scale = formats.encode_fp8_blocks(wide_range((352, 160)), chunks=2)
    with pytest.raises(ValueError, match=r"\(3, 2\), got \(4, 2\)"):
        formats.decode_fp8_blocks(codes, scale, chunks=1)


# --- MXFP4 ---------------------------------------------------------------------------------------


def mxfp4_pair(byte, scale):
    packed = np.full((1, 16), byte, dtype=np.uint8)
    return formats.decode_mxfp4(packed, np.full((1, 1), scale, dtype=np.uint8))[0, :2].tolist()


def test_mxfp4_known_bytes():
    assert mxfp4_pair(0x2A, 127) == [-1.0, 1.0]  # low nibble first
    assert mxfp4_pair(0x7F, 127) == [-6.0, 6.0]
    assert mxfp4_pair(0x10, 120) == [0.0, 0.00390625]
    with pytest.raises(ValueError, match="255"):
        mxfp4_pair(0x10, 255)


def test_mxfp4_every_byte_and_scale():
    packed = np.tile(np.arange(256, dtype=np.uint8), (255, 1))
    scale = np.repeat(np.arange(255, dtype=np.uint8)[:, None], 16, axis=1)
    with np.errstate(over="ignore"):  # 4 and 6 times 2^127 exceed float32
        values = formats.decode_mxfp4(packed, scale)
        factor = 2.0 ** (np.arange(255) - 127.0)[:, None]
        assert np.array_equal(values[:, 0::2], (E2M1[packed & 15] * factor).astype(np.float32))
        assert np.array_equal(values[:, 1::2], (E2M1[packed >> 4] * factor).astype(np.float32))


def least_error(block):
    """Least squared error of a block over all exponents and codes (float64)."""
    grid = E2M1[:8]
    errors = []
    for exponent in range(-40, 30):
        scaled = np.abs(block.astype(np.float64)) * 2.0**-exponent
        nearest = np.abs(scaled[:, None] - grid).min(axis=1)
        errors.append(np.sum(nearest**2) * 4.0**exponent)
    return min(errors)


def hard_blocks():
    """Blocks for which each of the three candidate exponents wins somewhere."""
    normal = RNG.standard_normal((60, 32))
    just_below_eight = RNG.uniform(0, 1, (30, 32))
    just_below_eight[:, 0] = 7.9
    spread = RNG.standard_normal((60, 32)) * np.exp2(RNG.integers(-6, 6, (60, 32)))
    crowded = RNG.choice([1.24, 1.26, 2.5, 3.0], (60, 32)) * RNG.choice([-1, 1], (60, 32))
    crowded[:, 0] = 8.01 * np.exp2(RNG.integers(-1, 2, 60))
    between = np.full((30, 32), 1.25) + RNG.uniform(-0.2, 0.2, (30, 32))
    between[:, 0] = RNG.uniform(4, 4.3, 30)
    blocks = np.concatenate([normal, just_below_eight, spread, crowded, between])
    return (blocks * np.exp2(RNG.integers(-12, 4, (len(blocks), 1)))).astype(np.float32)


def test_mxfp4_takes_the_best_exponent():
    blocks = hard_blocks()
    packed, scale = formats.encode_mxfp4(blocks)
    decoded = formats.decode_mxfp4(packed, scale).astype(np.float64)
    error = np.sum((decoded - blocks) ** 2, axis=1)
    least = np.array([least_error(block) for block in blocks])
    assert (error <= least * (1 + 1e-5)).all()  # candidates are compared in float32
    usual = np.floor(np.log2(np.abs(blocks).max(axis=1))) - 2 + 127
    assert set((scale[:, 0] - usual).astype(int)) == {-1, 0, 1}
    # Control: the usual exponent alone is not optimal on these blocks.
    scaled = blocks * np.exp2(127 - usual)[:, None]
    code = formats.encode_e2m1(scaled)
    usual_error = np.sum((E2M1[code] - scaled) ** 2, axis=1) * 4.0 ** (usual - 127)
    assert not (usual_error <= least * (1 + 1e-5)).all()


def test_mxfp4_survives_what_it_can_hold():
    codes = RNG.integers(0, 16, (64, 96)).astype(np.uint8)
    codes[:, 0::32] = 7  # a 6 in each block fixes its exponent
    scale = RNG.integers(100, 140, (64, 3))
    weight = (E2M1[codes] * np.exp2(np.repeat(scale, 32, axis=1) - 127.0)).astype(np.float32)
    packed, got_scale = formats.encode_mxfp4(weight)
    assert np.array_equal(formats.decode_mxfp4(packed, got_scale), weight)
    assert np.array_equal(got_scale, scale)


def test_mxfp4_extremes():
    zero = formats.decode_mxfp4(*formats.encode_mxfp4(np.zeros((2, 32), np.float32)))
    assert not zero.any()
    tiny = np.full((1, 32), 1e-38, np.float32)
    assert formats.decode_mxfp4(*formats.encode_mxfp4(tiny)) == pytest.approx(tiny, rel=0.25)
    with pytest.raises(ValueError, match="multiple of 32, got 33"):
        formats.encode_mxfp4(np.zeros((1, 33), np.float32))
    with pytest.raises(ValueError, match="finite"):
        formats.encode_mxfp4(np.full((1, 32), np.nan, np.float32))


# --- files ---------------------------------------------------------------------------------------

SPECS = {
    "b": TensorSpec("BF16", (3, 5)),
    "a": TensorSpec("F32", (7,)),
    "q": TensorSpec("F8_E4M3", (2, 3)),
    "u": TensorSpec("U8", (9,)),
}


def filled(spec):
    raw = RNG.integers(0, 120, spec.num_bytes).astype(np.uint8)
    return raw.view({"BF16": "<u2", "F32": "<f4"}.get(spec.dtype, "u1")).reshape(spec.shape)


@pytest.mark.parametrize("max_shard_bytes", [None, 35, 10_000])
def test_writer_is_read_back(tmp_path, max_shard_bytes):
    data = {name: filled(spec) for name, spec in SPECS.items()}
    with CheckpointWriter(tmp_path, SPECS, max_shard_bytes=max_shard_bytes) as writer:
        for name in reversed(SPECS):  # any order
            writer.write(name, data[name])
    read = read_tensors(tmp_path)
    assert set(read) == set(SPECS)
    for name, spec in SPECS.items():
        assert read[name][0] == spec.dtype
        assert np.array_equal(read[name][1].view(np.uint8), data[name].view(np.uint8))
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (max_shard_bytes is not None)
    if index.exists():
        content = json.loads(index.read_text())
        assert content["metadata"]["total_size"] == sum(s.num_bytes for s in SPECS.values())
        assert set(content["weight_map"]) == set(SPECS)
    assert len(list(tmp_path.glob("*.safetensors"))) == (3 if max_shard_bytes == 35 else 1)


def test_header_is_as_the_format_says(tmp_path):
    with CheckpointWriter(tmp_path, SPECS) as writer:
        for name, spec in SPECS.items():
            writer.write(name, filled(spec))
    raw = (tmp_path / "model.safetensors").read_bytes()
    (header_bytes,) = struct.unpack("<Q", raw[:8])
    assert header_bytes % 8 == 0
    header = json.loads(raw[8 : 8 + header_bytes])
    ranges = [header[name]["data_offsets"] for name in SPECS]
    assert ranges[0][0] == 0 and ranges[-1][1] == len(raw) - 8 - header_bytes
    assert all(left[1] == right[0] for left, right in zip(ranges, ranges[1:], strict=False))


def test_safetensors_library_accepts_the_file(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    with CheckpointWriter(tmp_path, SPECS) as writer:
        for name, spec in SPECS.items():
            writer.write(name, filled(spec))
    read = dict(safetensors.deserialize((tmp_path / "model.safetensors").read_bytes()))
    assert {n: (i["dtype"], tuple(i["shape"])) for n, i in read.items()} == {
        n: (s.dtype, s.shape) for n, s in SPECS.items()
    }


def test_writer_refuses_what_was_not_announced(tmp_path):
    with pytest.raises(ValueError, match=r"'a': expected float32 \[7\] for F32, got float32 \[6\]"):
        with CheckpointWriter(tmp_path, SPECS) as writer:
            writer.write("a", np.zeros(6, np.float32))
    with pytest.raises(ValueError, match="'z' is not announced"):
        with CheckpointWriter(tmp_path, SPECS) as writer:
            writer.write("z", np.zeros(6, np.float32))
    with pytest.raises(ValueError, match="4 tensors not written"):
        with CheckpointWriter(tmp_path, SPECS):
            pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_interrupted_directory_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        with atomic_directory(tmp_path / "model") as partial:
            (partial / "config.json").write_text("{}")
            assert not (tmp_path / "model").exists()
            raise error
    assert list(tmp_path.iterdir()) == []
    with atomic_directory(tmp_path / "model") as partial:
        (partial / "config.json").write_text("{}")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    with pytest.raises(ValueError, match="exists already"), atomic_directory(tmp_path / "model"):
        pass


@pytest.mark.parametrize("fails", ["rename", "rmtree"])
def test_a_directory_is_never_missing_while_it_is_replaced(tmp_path, monkeypatch, fails):
    """Interrupted between any two of its calls there is the old directory or the new one."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").touch()
    rename = os.rename

    def interrupted(source, *rest, **_):
        if fails == "rmtree" or rest == (path,):
            monkeypatch.undo()
            raise KeyboardInterrupt
        rename(source, *rest)

    monkeypatch.setattr({"rename": os, "rmtree": shutil}[fails], fails, interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_directory(path, overwrite=True) as partial:
        (partial / "new").touch()
    assert [p.name for p in path.iterdir()] == [{"rename": "old", "rmtree": "new"}[fails]]
    with atomic_directory(path, overwrite=True) as partial:  # control
        (partial / "newer").touch()
    assert [p.name for p in path.iterdir()] == ["newer"]


KILLED_BETWEEN_RENAMES = """
import os, pathlib, sys
from mimo_rt.checkpoints import atomic_directory
rename, path = os.rename, pathlib.Path(sys.argv[1])
os.rename = lambda source, to: os._exit(9) if to == path else rename(source, to)
with atomic_directory(path, overwrite=True): pass
"""


def test_what_a_killed_process_was_replacing_stays(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").touch()
    os.utime(path, (0, 0))
    assert subprocess.run([sys.executable, "-c", KILLED_BETWEEN_RENAMES, path], check=False).returncode == 9
    (before,) = tmp_path.glob(".model.partial-*-before")
    assert not path.exists() and before.stat().st_mtime > 0
    os.utime(before, (0, 0))  # hours later
    with pytest.raises(KeyboardInterrupt), atomic_directory(path):
        raise KeyboardInterrupt
    assert (before / "old").exists()
    with atomic_directory(path):
        pass
    assert (before / "old").exists()
    with atomic_directory(path, overwrite=True):  # control: there is another one
        pass
    assert not before.exists()


# --- inventory -----------------------------------------------------------------------------------


def pro_config(experts):
    """MiMo-V2.5-Pro, the fields that decide the tensors."""
    full = {0, 7, 15, 23, 31, 39, 47, 55, 62, 69}
    heads = {
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "head_dim": 192,
        "v_head_dim": 128,
    }
    ignored = [f"model.layers.{i}.self_attn.o_proj" for i in range(70)]
    return {
        **heads,
        **{f"swa_{key}": value for key, value in heads.items()},
        "attention_projection_layout": "fused_qkv",
        "hidden_size": 6144,
        "num_hidden_layers": 70,
        "hybrid_layer_pattern": [int(i not in full) for i in range(70)],
        "moe_layer_freq": [int(i > 0) for i in range(70)],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "n_routed_experts": 384,
        "moe_intermediate_size": 2048,
        "intermediate_size": 16384,
        "vocab_size": 152576,
        "tie_word_embeddings": False,
        "quantization_config": {"ignored_layers": ignored, "store_dtype": experts},
    }


def elements(specs, dtype):
    return sum(int(np.prod(s.shape, dtype=object)) for s in specs.values() if s.dtype == dtype)


def test_inventory_of_the_released_checkpoints():
    """Counts published for V2.5-Pro (FP8) and its MXFP4 successors, to the tensor and the byte."""
    fp8 = layout.tensor_specs(pro_config("fp8"), num_mtp_layers=3)
    assert len(fp8) == 159_581
    assert sum(elements(fp8, dtype) for dtype in ("BF16", "F32", "F8_E4M3")) == 1_023_244_718_976
    fp4 = layout.tensor_specs(
        pro_config("mxfp4") | {"moe_router_dtype": "bfloat16"}, num_mtp_layers=3
    )
    assert elements(fp4, "U8") == 531_351_207_936
    assert elements(fp4, "F8_E4M3") == 13_378_781_184
    assert elements(fp4, "F32") == 857_088
    without_mtp = layout.tensor_specs(pro_config("mxfp4"))
    assert elements(without_mtp, "F8_E4M3") != 13_378_781_184  # control
    qkv = "model.layers.3.self_attn.qkv_proj"
    assert fp4[f"{qkv}.weight_scale_inv"].shape == (216, 48)
    expert = "model.layers.1.mlp.experts.0"
    assert fp4[f"{expert}.gate_proj.weight"].shape == (2048, 3072)
    assert fp4[f"{expert}.down_proj.weight_scale"].shape == (6144, 64)


def test_fused_rows_of_the_released_checkpoint():
    q, k, v = (np.arange(rows)[:, None] for rows in (128 * 192, 8 * 192, 8 * 128))
    fused = layout.fuse_qkv(q, k + 100_000, v + 200_000, chunks=8)[:, 0]
    assert len(fused) == 27136
    assert fused[3584] == 17 * 192  # q head 17, element 0
    assert fused[13439] == 100_000 + 3 * 192 + 191  # k head 3, element 191
    assert fused[13440] == 200_000 + 3 * 128  # v head 3, element 0
    assert fused[27135] == 200_000 + 8 * 128 - 1
