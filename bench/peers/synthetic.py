"""Write the benchmark's random model as a checkpoint, for engines that only read files.

  python bench/peers/synthetic.py OUT_DIR [--layers 16] [--seed 0]

Shapes and formats are those of `mimo-rt bench decode`; 16 layers take 3.7 GB. Codes are drawn
directly: encoding real numbers would take minutes and change nothing for a benchmark.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from mimo_rt.bench.synthetic import synthetic_config
from mimo_rt.checkpoints.formats import E2M1_VALUES, decode_e4m3, encode_bf16
from mimo_rt.checkpoints.layout import tensor_specs
from mimo_rt.checkpoints.writer import CheckpointWriter, TensorSpec, atomic_directory, write_json

_E4M3_CODES = np.arange(0x20, 0x60)  # 2^-3 to 30: no subnormals, nothing near the maximum


def write_synthetic(directory: Path, num_layers: int, seed: int = 0) -> None:
    """The model directory ``directory``: config.json and model.safetensors."""
    config = synthetic_config(num_layers)
    rng = np.random.default_rng(seed)
    specs = tensor_specs(config)
    with atomic_directory(directory) as partial:
        write_json(partial / "config.json", config)
        with CheckpointWriter(partial, specs) as writer:
            for name, spec in specs.items():
                writer.write(name, _tensor(rng, name, spec, specs))


def _tensor(
    rng: np.random.Generator, name: str, spec: TensorSpec, specs: dict[str, TensorSpec]
) -> np.ndarray:
    if spec.dtype == "U8":
        if name.endswith("_scale"):
            cols = spec.shape[-1] * 32
            rms = math.sqrt(np.mean(E2M1_VALUES**2))
            exponent = 127 + round(math.log2(1 / math.sqrt(cols) / rms))
            return rng.integers(exponent - 1, exponent + 2, spec.shape, dtype=np.uint8)
        return np.frombuffer(rng.bytes(math.prod(spec.shape)), np.uint8).reshape(spec.shape)
    if spec.dtype == "F8_E4M3":
        sign = rng.integers(0, 2, spec.shape, dtype=np.uint8) << 7
        return rng.choice(_E4M3_CODES.astype(np.uint8), spec.shape) | sign
    if name.endswith("weight_scale_inv"):
        cols = specs[name.removesuffix("_scale_inv")].shape[-1]
        rms = math.sqrt(np.mean(decode_e4m3(_E4M3_CODES) ** 2))
        return (rng.uniform(0.5, 1.5, spec.shape) / rms / math.sqrt(cols)).astype(np.float32)
    values = rng.standard_normal(spec.shape, dtype=np.float32)
    if len(spec.shape) == 2:
        values *= np.float32(1 / math.sqrt(spec.shape[-1]))
    elif name.endswith("norm.weight"):
        values = 1 + np.float32(0.1) * values
    else:
        values *= np.float32(0.01)
    return encode_bf16(values) if spec.dtype == "BF16" else values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, metavar="OUT_DIR")
    parser.add_argument("--layers", type=int, default=16, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_synthetic(args.output, args.layers, args.seed)


if __name__ == "__main__":
    main()
