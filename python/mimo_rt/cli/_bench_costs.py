"""``mimo-rt bench costs``: what pieces of a step cost on this machine, kept for the planner."""

from __future__ import annotations

import argparse
from typing import Any

from .. import _C
from ..loading import ProgressLine
from ..value_checks import as_int
from ._machine import machine_record
from ._options import add_backend_options
from ._output import format_table, print_json

_BITS_PER_WEIGHT = {"mxfp4": 4.25, "fp8_e4m3": 8.0, "bf16": 16.0, "f32": 32.0}


def add_parsers(cases: Any, common: argparse.ArgumentParser) -> None:
    text = "what kernels and edges of a plan cost here; engines opened later plan with it"
    parser = cases.add_parser(
        "costs", parents=[common], help=text, allow_abbrev=False,
        description=f"{text}. Takes some ten seconds; measure on a machine that does nothing else. "
        "The table is kept in the cache directory, one per backend and set of kernels, GPU, number "
        "of workers and activations; that of another processor is not used.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--forget", action="store_true",
                        help="remove the table: plans go by rules of thumb again")
    add_backend_options(parser)
    parser.set_defaults(run=run, refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    if args.no_pin or args.no_mmap:
        args.refuse("--no-pin and --no-mmap mean nothing here.")
    num_workers = 0 if args.threads is None else as_int("--threads", args.threads, 1, 4096, "bench")
    key = _C.cost_key(args.device, num_workers, args.activations)
    path = _C.cost_table_path(key)
    if args.forget:
        was_there = path.is_file()
        path.unlink(missing_ok=True)
        if args.json:
            print_json({"file": str(path), "removed": was_there})
        else:
            print(f"{'removed' if was_there else 'nothing to remove:'} {path}")
        return 0
    line = ProgressLine("measuring", in_gb=False)
    try:
        table = _C.measure_costs(key, lambda done: line(round(100 * done), 100))
    finally:
        line.close()
    _C.save_cost_table(key, table)
    if args.json:
        print_json({**machine_record(), "backend": key.backend, "device": key.processor or None,
                    "kernel_set": key.kernel_set or None, "num_workers": key.num_workers,
                    "activations": key.activations, "file": str(path), **_record(table)})
    else:
        print(_text(table))
        print(f"written to {path}")
    return 0


def _record(table: Any) -> dict[str, Any]:
    return {
        "tokens": list(table.tokens),
        "matrix_ns": dict(zip(table.formats, table.matrix_ns, strict=True)),
        "attention_ns": table.attention_ns, "norm_ns": table.norm_ns,
        "prepare_ns": table.prepare_ns, "edge_ns": table.edge_ns,
        "edge_worker_ns": table.edge_worker_ns,
    }


def _text(table: Any) -> str:
    """Times, and what they mean as rates of one worker."""
    rows = []
    for name, times in zip(table.formats, table.matrix_ns, strict=True):
        gbs = 1024 * _BITS_PER_WEIGHT[name] / 8 / times[0]
        gflops = 2 * 1024 * table.tokens[-1] / times[-1]
        rows.append([name, *(f"{ns:.1f}" for ns in times), f"{gbs:.1f}", f"{gflops:.0f}"])
    header = ("ns per 1024 weights", *(f"{n} tok" for n in table.tokens), "GB/s at 1",
              f"GFLOP/s at {table.tokens[-1]}")
    preparing = f" and preparing {table.prepare_ns:.0f}" if table.prepare_ns else ""
    kernels = (
        f"attention {table.attention_ns:.1f} ns per 1024 multiply-adds, RMSNorm "
        f"{table.norm_ns:.0f}{preparing} ns per 1024 elements"
    )
    edges = (
        f"an edge between two workers {table.edge_ns:.0f} ns, each worker more "
        f"{table.edge_worker_ns:.0f} ns"
    )
    return "\n".join(["Of one worker, while all work:", format_table(rows, header), kernels, edges])
