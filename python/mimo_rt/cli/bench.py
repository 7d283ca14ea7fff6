"""``mimo-rt bench``: speed as a fraction of the read bandwidth measured in the same run."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from pathlib import Path
from typing import Any

from .. import _C
from ..loading import engine_options, open_engine
from ._bench_cases import DECODE_ROWS, PREFILL_TOKENS, Bench, Measurement
from ._machine import machine_record
from ._options import add_engine_options, engine_arguments
from ._output import format_table, note, print_json

_CASES = ("bandwidth", "decode", "prefill")


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "bench", parents=[common], help="measure speed", allow_abbrev=False,
        description="bandwidth: what all workers can read. decode: one token per step, and "
        f"{DECODE_ROWS} tokens per step. prefill: {PREFILL_TOKENS} tokens. Without --model the "
        "weights are random, made in memory: hidden 2048, 16 layers, 64 experts, 4 per token.",
    )
    parser.add_argument("case", choices=_CASES)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="DIR", help="checkpoint directory")
    source.add_argument("--synthetic", action="store_true", help="random weights (the default)")
    parser.add_argument("--layers", type=int, metavar="N",
                        help="layers of the random model (default 16)")
    parser.add_argument("--context", type=int, metavar="T",
                        help="tokens in the cache when decoding begins (default 16)")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S",
                        help="time per case (default 4)")
    parser.add_argument("--json", action="store_true", help="one JSON object per case and line")
    add_engine_options(parser)
    parser.set_defaults(run=run, refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    if args.layers is not None and (args.model or args.case == "bandwidth"):
        args.refuse("--layers shapes the random model of decode and prefill only.")
    if args.context is not None and args.case == "bandwidth":
        args.refuse("--context is of decode and prefill only.")
    if not args.model and (args.no_mmap or args.window_tokens is not None):
        args.refuse("--no-mmap and --window-tokens need --model.")
    args.layers = 16 if args.layers is None else args.layers
    args.context = 16 if args.context is None else args.context
    if not (math.isfinite(args.seconds) and 0 < args.seconds <= 3600):
        raise ValueError(f"--seconds: expected a number in (0, 3600], got {args.seconds}.")
    if not 1 <= args.context <= 1 << 20:
        raise ValueError(f"--context: expected 1..{1 << 20}, got {args.context}.")
    bench = Bench(_open_engine(args), args.context, args.seconds)
    bench.measure_bandwidth()
    hash_ = ""
    measured: list[Measurement] = []
    if args.case != "bandwidth":
        hash_ = bench.check_rows_agree()  # a wrong result is not timed
        measured += [bench.decode(), bench.decode_rows()]
    if args.case == "prefill":
        measured = [bench.prefill(), measured[0]]
    bench.measure_bandwidth()  # again at the end: the machine may have changed its mind
    command = shlex.join(args.command_line)
    if args.json:
        for record in _records(args, bench, measured):
            print_json({**record, "logits_hash": hash_ or None, "repeat": command})
    else:
        _print_report(args, bench, measured)
        print(f"{f'logits #{hash_}  ' if hash_ else ''}repeat: {command}")
    return 0


def synthetic_config(num_layers: int = 16) -> dict[str, Any]:
    """config.json of the benchmark model: MiMo-V2.5-Pro-FP4 with a third of its width."""
    from ..checkpoints.presets import quantization_fields

    # One full layer at each end and every sixth; the rest see 128 keys. Layer 0 is dense.
    is_window = [0 if i == 0 or (i + 1) % 6 == 0 else 1 for i in range(num_layers)]
    heads = {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 192,
             "v_head_dim": 128}
    config: dict[str, Any] = {
        "architectures": ["MiMoV2ForCausalLM"],
        "model_type": "mimo_v2",
        "attention_projection_layout": "fused_qkv",
        "hidden_size": 2048,
        "num_hidden_layers": num_layers,
        "hybrid_layer_pattern": is_window,
        "moe_layer_freq": [0, *[1] * (num_layers - 1)],
        **heads,
        **{f"swa_{name}": value for name, value in heads.items()},
        "sliding_window": 128,
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "attention_bias": False,
        "attention_value_scale": 0.612,
        "partial_rotary_factor": 0.334,
        "rope_theta": 10000000,
        "swa_rope_theta": 10000,
        "layernorm_epsilon": 1e-5,
        "hidden_act": "silu",
        "intermediate_size": 8192,
        "moe_intermediate_size": 1024,
        "n_routed_experts": 64,
        "num_experts_per_tok": 4,
        "n_shared_experts": None,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": None,
        "vocab_size": 32768,
        "tie_word_embeddings": False,
        "max_position_embeddings": 1 << 20,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
    }
    return config | quantization_fields(config, "fp8", "mxfp4")


def _open_engine(args: argparse.Namespace) -> Any:
    if args.model:
        return open_engine(Path(args.model), None, engine_arguments(args))
    if args.case == "bandwidth":
        args.layers = 2  # the weights are not read: only the workers are needed
    if not 1 <= args.layers <= 1024:
        raise ValueError(f"--layers: expected 1..1024, got {args.layers}.")
    config = _C.ModelConfig.from_json(json.dumps(synthetic_config(args.layers)), "synthetic")
    note("making random weights …")
    return _C.Engine.synthetic(config, 0, engine_options(**engine_arguments(args)))


def _records(
    args: argparse.Namespace, bench: Bench, measured: list[Measurement]
) -> list[dict[str, Any]]:
    common = {
        **machine_record(),
        "backend": bench.engine.backend,
        "num_workers": bench.engine.num_workers,
        "model": args.model or f"synthetic-{args.layers}",
        "bandwidth_gbs": round(bench.bandwidth_gbs, 3),
        "cache": "warm",
        "clock": "wall",
    }
    if args.case == "bandwidth":
        low, high = min(bench.bandwidths), max(bench.bandwidths)
        return [{"case": "bandwidth", **common, "low_gbs": low, "high_gbs": high,
                 "n": len(bench.bandwidths)}]
    records = [{**m.record(bench.bandwidth_gbs), **common} for m in measured]
    if args.case == "prefill":
        ratio = measured[0].tokens_per_s / measured[1].tokens_per_s
        records[0]["prefill_over_decode"] = round(ratio, 3)
    return records


def _print_report(args: argparse.Namespace, bench: Bench, measured: list[Measurement]) -> None:
    facts = machine_record()
    commit = facts["commit"] or "no commit"
    print(
        f"mimo_rt bench {facts['version']} ({commit}{'+' if facts['dirty'] else ''})  "
        f"{bench.engine.backend}  {facts['machine']}, {bench.engine.num_workers} workers, "
        f"read {bench.bandwidth_gbs:.2f} GB/s measured  {facts['date']}"
    )
    if args.case == "bandwidth":
        spread = f"{min(bench.bandwidths):.2f}..{max(bench.bandwidths):.2f}"
        print(f"read bandwidth {bench.bandwidth_gbs:.2f} GB/s (best of {len(bench.bandwidths)}, "
              f"{spread})")
        return
    rows = [m.row(bench.bandwidth_gbs) for m in measured]
    header = ("case", "median ms", "p10..p90", "n", "GB read", "GB/s", "%bandwidth", "tok/s")
    print(format_table(rows, header))
    if any(m.is_bytes_estimated for m in measured):
        print("~ bytes estimated: experts as by uniform routing")
    if args.case == "prefill":
        ratio = measured[0].tokens_per_s / measured[1].tokens_per_s
        print(f"prefill / decode: {ratio:.1f} x tok/s")
