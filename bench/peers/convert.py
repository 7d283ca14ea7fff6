"""Write a MiMo checkpoint as GGUF, so that llama.cpp can run the same weights.

  python bench/peers/convert.py MODEL_DIR OUT.gguf [--dense q8_0|bf16|f32] [--plain bf16|q8_0|f32]
      [--fold-value-scale]

MXFP4 experts, norms, the router and (by default) BF16 weights are carried over bit by bit. FP8
weights are rounded to --dense: Q8_0 is nearest in bytes (8.5 bits per weight against 8); F32 is
exact. `mimo-rt demo` leaves the demo model in the cache; `synthetic.py` writes the benchmark model.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf_blocks import DENSE_TYPES, encode
from gguf_models import gguf_model
from mimo_rt.checkpoints.text_files import byte_alphabet
from stored import Linear, StoredCheckpoint


def convert(
    directory: Path, output: Path, dense: str = "q8_0", plain: str = "bf16", *,
    folds_value_scale: bool = False,
) -> dict[str, Any]:
    """Write ``output``; returns the architecture and the bytes per tensor type.

    ``output`` appears complete or not at all.
    """
    checkpoint = StoredCheckpoint(directory)
    model = gguf_model(checkpoint, folds_value_scale=folds_value_scale)
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    num_bytes: Counter[str] = Counter()
    # Tensors wait in a temporary file until the header is known.
    writer = gguf.GGUFWriter(str(partial), model.architecture, use_temp_file=True)
    try:
        writer.add_name(checkpoint.directory.name)
        for key, value in model.metadata.items():
            _add(writer, f"{model.architecture}.{key}", value)
        _add_tokenizer(writer, checkpoint)
        for name, make in model.tensors:
            kind, data = _encode(make(), dense, plain)
            raw_dtype = None if kind == "F32" else gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, data, raw_dtype=raw_dtype)
            num_bytes[kind] += data.nbytes
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
    return {"architecture": model.architecture, "bytes": dict(num_bytes)}


def _encode(value: Linear | np.ndarray, dense: str, plain: str) -> tuple[str, np.ndarray]:
    if isinstance(value, Linear):
        return encode(value, dense, plain)
    return "F32", np.ascontiguousarray(value, dtype=np.float32)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def _add_tokenizer(writer: gguf.GGUFWriter, checkpoint: StoredCheckpoint) -> None:
    """The byte-level BPE of tokenizer.json; without one, bytes and tokens that mean nothing, as
    some engines do not run a model without a vocabulary."""
    path = checkpoint.directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    model = tokenizer.get("model", {})
    vocab = dict(model.get("vocab", {}))
    special = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    vocab |= special
    vocab_size = checkpoint.config["vocab_size"]
    if model.get("type") != "BPE" or sorted(vocab.values()) != list(range(vocab_size)):
        if vocab_size < 256:
            writer.add_tokenizer_model("none")
            return
        fillers = [f"<token {i}>" for i in range(256, vocab_size)]
        vocab = {token: i for i, token in enumerate([*byte_alphabet(), *fillers])}
        special, model, tokenizer = {}, {"merges": []}, {}
    tokens = sorted(vocab, key=vocab.__getitem__)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    has_digits = '"Digits"' in json.dumps(tokenizer.get("pre_tokenizer"))
    writer.add_tokenizer_pre("smollm" if has_digits else "gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in special else normal for token in tokens])
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    writer.add_token_merges(merges or [f"{tokens[0]} {tokens[1]}"])  # no empty arrays in GGUF
    eos = checkpoint.config.get("eos_token_id")
    if isinstance(eos, int):
        writer.add_eos_token_id(eos)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("output", type=Path, metavar="OUT.gguf")
    parser.add_argument("--dense", choices=DENSE_TYPES, default="q8_0",
                        help="type of FP8 weights (default q8_0)")
    parser.add_argument("--plain", choices=DENSE_TYPES, default="bf16",
                        help="type of BF16 weights (default bf16)")
    parser.add_argument("--fold-value-scale", action="store_true",
                        help="put the attention value scale into v's weights, for engines that do "
                        "not read it (ik_llama.cpp of 2026-09)")
    args = parser.parse_args()
    report = convert(args.model, args.output, args.dense, args.plain,
                     folds_value_scale=args.fold_value_scale)
    sizes = ", ".join(f"{kind} {size / 1e6:.1f} MB" for kind, size in report["bytes"].items())
    print(f"{args.output}: {report['architecture']}, {sizes}")


if __name__ == "__main__":
    main()
