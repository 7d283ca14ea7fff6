"""Number formats of MiMo checkpoints in numpy: BF16, FP8 E4M3 in 128x128 blocks, MXFP4.

Encoders round to nearest, ties to even; decoders are exact. All work on whole arrays.
Formats: OCP FP8 and OCP Microscaling (MX) v1.0; the block layouts are those of MiMo-V2 checkpoints.
"""

from __future__ import annotations

import numpy as np

FP8_BLOCK = 128
FP8_MAX = 448.0
MXFP4_BLOCK = 32
E2M1_VALUES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=np.float32)


def encode_bf16(values: np.ndarray) -> np.ndarray:
    """Round float32 values to BF16 bits (uint16). NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    with np.errstate(over="ignore"):
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Rounding can carry a NaN payload out of the mantissa: set the quiet bit instead.
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, (bits >> 16) | 0x40, rounded).astype(np.uint16)


def decode_bf16(bits: np.ndarray) -> np.ndarray:
    """Expand BF16 bits (uint16) to float32."""
    return (np.asarray(bits, dtype=np.uint16).astype(np.uint32) << 16).view(np.float32)


def encode_e4m3(values: np.ndarray) -> np.ndarray:
    """Round float32 values to E4M3 codes; magnitudes above 448 become 448, NaN becomes 0x7f."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    magnitude = bits & 0x7FFFFFFF
    # Keep 3 mantissa bits; the exponent bias goes from 127 to 7.
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20).astype(np.int32) - (120 << 3)
    with np.errstate(invalid="ignore", over="ignore"):
        subnormal = np.rint(np.abs(values) * 512.0)  # steps of 2^-9 below 2^-6
        code = np.where(magnitude < 0x3C800000, np.minimum(subnormal, 8), np.minimum(normal, 0x7E))
    code = np.where(magnitude > 0x7F800000, 0x7F, code).astype(np.uint8)
    return code | ((bits >> 24) & 0x80).astype(np.uint8)


def _e4m3_table() -> np.ndarray:
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    value = np.where(
        exponent == 0,
        np.ldexp(mantissa.astype(np.float64), -9),
        np.ldexp(8.0 + mantissa, exponent - 10),
    )
    value[127] = np.nan
    return np.concatenate([value, -value]).astype(np.float32)


_E4M3_VALUES = _e4m3_table()


def decode_e4m3(codes: np.ndarray) -> np.ndarray:
    """Expand E4M3 codes (uint8) to float32; 0x7f and 0xff are NaN."""
    return _E4M3_VALUES[codes]


def fp8_scale_rows(num_rows: int, chunks: int = 1) -> int:
    """Rows of the scale grid when ``num_rows`` come in ``chunks`` chunks, each padded to 128."""
    if chunks < 1 or num_rows % chunks:
        raise ValueError(f"FP8 rows: expected a multiple of {chunks} chunks, got {num_rows}.")
    return chunks * -(-(num_rows // chunks) // FP8_BLOCK)


def _fp8_scale_row_of(num_rows: int, chunks: int) -> np.ndarray:
    """Scale row of every weight row."""
    chunk_rows = num_rows // chunks
    rows_per_chunk = fp8_scale_rows(num_rows, chunks) // chunks
    row = np.arange(num_rows)
    return (row // chunk_rows) * rows_per_chunk + (row % chunk_rows) // FP8_BLOCK


def encode_fp8_blocks(weight: np.ndarray, chunks: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Encode ``[rows, cols]`` as E4M3 codes and one float32 scale per 128x128 block.

    The scale grid starts anew at each of ``chunks`` equal runs of rows (the fused qkv tensor);
    blocks at the lower and right edge may be smaller.
    """
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    num_rows, num_cols = weight.shape
    scale_row = _fp8_scale_row_of(num_rows, chunks)
    col_starts = np.arange(0, num_cols, FP8_BLOCK)
    row_starts = np.flatnonzero(np.diff(scale_row, prepend=-1))
    amax = np.maximum.reduceat(np.abs(weight), col_starts, axis=1)
    amax = np.maximum.reduceat(amax, row_starts, axis=0)
    # The smallest normal float keeps a block of denormals from dividing by zero.
    scale = np.where(amax > 0, np.maximum(amax / FP8_MAX, np.finfo(np.float32).tiny), 1.0)
    scale = scale.astype(np.float32)
    expanded = np.repeat(scale, FP8_BLOCK, axis=1)[:, :num_cols][scale_row]
    return encode_e4m3(weight / expanded), scale


def decode_fp8_blocks(codes: np.ndarray, scale: np.ndarray, chunks: int = 1) -> np.ndarray:
    """Inverse of :func:`encode_fp8_blocks`, in float32 (one rounding of code x scale)."""
    num_rows, num_cols = codes.shape
    expected = (fp8_scale_rows(num_rows, chunks), -(-num_cols // FP8_BLOCK))
    if scale.shape != expected:
        raise ValueError(f"FP8 scale grid: expected shape {expected}, got {scale.shape}.")
    expanded = np.repeat(scale, FP8_BLOCK, axis=1)[:, :num_cols]
    return decode_e4m3(codes) * expanded[_fp8_scale_row_of(num_rows, chunks)]


def encode_e2m1(values: np.ndarray) -> np.ndarray:
    """Round to E2M1 codes 0..15; magnitudes above 6 become 6."""
    magnitude = np.abs(values)
    # The step is 1/2 below 2, 1 below 4 and 2 above; `rint` breaks ties to the even code.
    code = np.where(
        magnitude < 2,
        np.rint(magnitude * 2),
        np.where(magnitude < 4, np.rint(magnitude) + 2, np.rint(np.minimum(magnitude, 6) / 2) + 4),
    ).astype(np.uint8)
    return code | (np.signbit(values).astype(np.uint8) << 3)


def encode_mxfp4(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encode ``[rows, cols]`` as packed E2M1 codes and E8M0 scales, one per 32 columns.

    Returns codes ``[rows, cols/2]`` (low nibble first) and scales ``[rows, cols/32]``, both uint8.

    Every block gets the exponent with the least squared error. With e = floor(log2 amax) - 2 only
    e-1, e and e+1 can win: at e-2 the largest element alone loses more than all others can gain,
    and the grid of e+2 within reach is a subset of that of e+1. Ties take e, then e+1.
    """
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    num_rows, num_cols = weight.shape
    if num_cols % MXFP4_BLOCK:
        raise ValueError(f"MXFP4 columns: expected a multiple of {MXFP4_BLOCK}, got {num_cols}.")
    if not np.isfinite(weight).all():
        raise ValueError("MXFP4 weights: expected finite values, got NaN or infinity.")
    blocks = weight.reshape(-1, MXFP4_BLOCK)
    amax = np.abs(blocks).max(axis=1)
    base = np.where(amax > 0, np.frexp(amax)[1] - 3, 0)  # frexp's mantissa is in [1/2, 1)
    best_error = np.full(len(blocks), np.inf, dtype=np.float32)
    best_exponent = np.zeros(len(blocks), dtype=np.int32)
    best_code = np.zeros(blocks.shape, dtype=np.uint8)
    for offset in (0, 1, -1):
        exponent = np.clip(base + offset, -127, 127)
        scaled = np.ldexp(blocks, -exponent[:, None])
        code = encode_e2m1(scaled)
        residual = E2M1_VALUES[code & 7] - np.abs(scaled)
        # Back to units of `base`, so that errors compare and never underflow.
        step = np.exp2(2.0 * (exponent - base)).astype(np.float32)
        error = np.einsum("ij,ij->i", residual, residual) * step
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_exponent = np.where(better, exponent, best_exponent)
        best_code = np.where(better[:, None], code, best_code)
    codes = best_code.reshape(num_rows, num_cols)
    packed = codes[:, 0::2] | (codes[:, 1::2] << 4)
    scale = (best_exponent + 127).astype(np.uint8)
    return packed, scale.reshape(num_rows, num_cols // MXFP4_BLOCK)


def decode_mxfp4(packed: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Inverse of :func:`encode_mxfp4`, in float32."""
    num_rows, num_bytes = packed.shape
    expected = (num_rows, num_bytes * 2 // MXFP4_BLOCK)
    if scale.shape != expected:
        raise ValueError(f"MXFP4 scales: expected shape {expected}, got {scale.shape}.")
    if (scale == 0xFF).any():
        raise ValueError("MXFP4 scales: expected bytes 0..254, got 255 (NaN in E8M0).")
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(num_rows, num_bytes * 2)
    values = np.concatenate([E2M1_VALUES, -E2M1_VALUES])[codes]
    exponent = scale.astype(np.int32) - 127
    blocks = values.reshape(num_rows, -1, MXFP4_BLOCK)
    return np.ldexp(blocks, exponent[:, :, None]).reshape(values.shape)
