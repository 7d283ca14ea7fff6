"""``mimo-rt inspect``: what is in a checkpoint; reads headers only, except with --check."""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from .. import _C
from ..text import ModelText
from ._output import escape_controls, format_bytes, format_table, print_json, public_fields

# The first pattern that matches a tensor's name gives its group.
_GROUPS = (
    ("mtp (unused)", r"^model\.mtp\."),
    ("vision (unused)", r"^visual\."),
    ("audio (unused)", r"^(audio_encoder|speech_embeddings)\."),
    ("embedding", r"embed_tokens"),
    ("lm_head", r"lm_head"),
    ("experts", r"\.experts\."),
    ("router", r"\.gate\.(weight|e_score_correction_bias)"),
    ("sinks", r"sink"),
    ("o_proj", r"\.o_proj"),
    ("qkv", r"\.(qkv|q|k|v)_proj"),
    ("dense mlp", r"\.(gate|up|down)_proj"),
    ("norms", r"norm"),
    ("other", r""),
)


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "inspect", parents=[common], help="show a checkpoint's config and tensors",
        allow_abbrev=False, description="Read config.json and the tensor headers of a checkpoint.",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint directory")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--check", action="store_true",
                        help="compare tensors with the config, look for NaN and infinite scales")
    parser.add_argument("--json", action="store_true", help="one JSON record")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config = _C.ModelConfig.from_directory(args.model)
    checkpoint = _C.Checkpoint.open(args.model)
    draft = find_draft(args.model, config)
    eos_token_ids = ModelText(Path(args.model)).end_token_ids(config)
    num_scanned = None
    if args.check:
        from ._scan import scan_scales

        if isinstance(draft, _C.MimoRtError):
            raise draft
        checkpoint.validate(config)
        num_scanned = scan_scales(args.model, checkpoint.tensors)
    if args.json:
        _print_record(args, config, eos_token_ids, draft, checkpoint.tensors, num_scanned)
        return 0
    print(format_table(config_rows(config, eos_token_ids), ("config", args.model)))
    print()
    print(format_table(draft_rows(draft), ("draft", "dflash")))
    print()
    print(format_table(*_group_table(checkpoint.tensors)))
    if args.tensors:
        print()
        print(format_table(*_tensor_table(checkpoint.tensors)))
    if num_scanned is not None:
        print(f"\ncheck: all tensors fit the config; {num_scanned} scale tensors have only "
              "finite values")
    return 0


def config_rows(config: Any, eos_token_ids: list[int]) -> list[tuple[str, Any]]:
    """The config as (name, value) lines; ``eos_token_ids``: with the tokenizer's."""
    layers = config.layers
    num_window = sum(layer.window_tokens > 0 for layer in layers)
    num_moe = sum(layer.is_moe for layer in layers)
    rows: list[tuple[str, Any]] = [
        ("model_type", config.model_type),
        ("layers", f"{config.num_layers}: {config.num_layers - num_window} full, "
                   f"{num_window} window attention; {num_moe} MoE, "
                   f"{config.num_layers - num_moe} dense"),
        ("hidden_size", config.hidden_size),
        ("vocab_size", config.vocab_size),
        ("max context", config.max_position_embeddings),
        ("dense width", config.intermediate_size),
    ]
    if num_moe:
        rows.append(("experts", f"{config.num_experts}, {config.experts_per_token} per token, "
                                f"width {config.expert_intermediate_size}"))
    for label, is_window in (("full attention", False), ("window attention", True)):
        shapes = {_attention(layer) for layer in layers if (layer.window_tokens > 0) is is_window}
        rows += [(label, shape) for shape in sorted(shapes)]
    return [
        *rows,
        ("qkv layout", f"{config.qkv_layout.name}, {config.qkv_chunks} chunks"),
        ("formats", f"experts {config.expert_format.name}, linear {config.linear_format.name}"),
        ("tied embeddings", config.tie_word_embeddings),
        ("end tokens", " ".join(map(str, eos_token_ids)) or "none"),
    ]


def find_draft(model_dir: str, config: Any) -> Any:
    """The DraftConfig of ``model_dir/dflash``, None, or the error that makes it unusable."""
    directory = Path(model_dir) / "dflash"
    if not directory.is_dir():
        return None
    try:
        draft = _C.DraftConfig.from_directory(directory)
        draft.check_target(config)
    except _C.MimoRtError as error:
        return error
    return draft


def draft_rows(draft: Any) -> list[tuple[str, Any]]:
    """What :func:`find_draft` returned, as (name, value) lines."""
    if draft is None:
        return [("present", "no: plain decoding")]
    if isinstance(draft, _C.MimoRtError):
        return [("unusable", escape_controls(str(draft)))]
    windows = sorted(set(draft.window_tokens))
    window = " or ".join(f"{tokens} tokens" if tokens else "all" for tokens in windows)
    sink = ", sinks" if draft.has_sink else ""
    return [
        ("layers", f"{draft.num_layers}, width {draft.intermediate_size}"),
        ("block", f"{draft.block_size} tokens, mask token {draft.mask_token_id}"),
        ("vocabulary", f"{draft.draft_vocab_size} tokens" if draft.draft_vocab_size else "all"),
        ("features of layers", " ".join(map(str, draft.target_layer_ids))),
        ("attention", f"{draft.num_q_heads} q / {draft.num_kv_heads} kv heads of "
                      f"{draft.qk_head_dim}/{draft.v_head_dim}, rotary {draft.rotary_dim} at base "
                      f"{draft.rope_theta:g}{sink}"),
        ("window", window),
    ]


def _attention(layer: Any) -> str:
    window = f", {layer.window_tokens} keys" if layer.window_tokens else ""
    sink = ", sinks" if layer.has_sink else ""
    return (f"{layer.num_q_heads} q / {layer.num_kv_heads} kv heads of {layer.qk_head_dim}/"
            f"{layer.v_head_dim}, rotary {layer.rotary_dim} at base {layer.rope_theta:g}"
            f"{window}{sink}")


def _group_table(tensors: list[Any]) -> tuple[list[tuple[Any, ...]], tuple[str, ...]]:
    groups: dict[str, list[Any]] = defaultdict(list)
    for tensor in tensors:
        groups[next(n for n, pattern in _GROUPS if re.search(pattern, tensor.name))].append(tensor)
    rows = [
        (
            name,
            len(groups[name]),
            " ".join(sorted({str(tensor.dtype) for tensor in groups[name]})),
            format_bytes(sum(tensor.num_bytes for tensor in groups[name])),
        )
        for name, _ in _GROUPS
        if name in groups
    ]
    total = format_bytes(sum(tensor.num_bytes for tensor in tensors))
    num_files = len({tensor.file_name for tensor in tensors})
    rows.append((f"all, in {num_files} file(s)", len(tensors), "", total))
    return rows, ("group", "tensors", "dtypes", "size")


def _tensor_table(tensors: list[Any]) -> tuple[list[tuple[Any, ...]], tuple[str, ...]]:
    rows = [
        (escape_controls(t.name), t.dtype, list(t.shape), format_bytes(t.num_bytes), t.file_name)
        for t in tensors
    ]
    return rows, ("tensor", "dtype", "shape", "size", "file")


def _print_record(
    args: argparse.Namespace, config: Any, eos_token_ids: list[int], draft: Any,
    tensors: list[Any], num_scanned: int | None,
) -> None:
    is_unusable = isinstance(draft, _C.MimoRtError)
    record: dict[str, Any] = {
        "model": args.model,
        "config": public_fields(config) | {"layers": [public_fields(x) for x in config.layers]},
        "eos_token_ids": eos_token_ids,
        "draft": {"error": str(draft)} if is_unusable else draft and public_fields(draft),
        "num_tensors": len(tensors),
        "num_bytes": sum(tensor.num_bytes for tensor in tensors),
        "num_checked_scale_tensors": num_scanned,
    }
    if args.tensors:
        record["tensors"] = [public_fields(tensor) for tensor in tensors]
    print_json(record)
