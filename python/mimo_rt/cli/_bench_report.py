"""Records and tables of the cases that time steps of an engine."""

from __future__ import annotations

import argparse
from typing import Any

from ..bench.cases import Bench
from ..bench.measurement import Measurement
from ._machine import machine_record
from ._output import format_table


def engine_record(args: argparse.Namespace, engine: Any) -> dict[str, Any]:
    """What every record says about machine, build and model."""
    return {
        **machine_record(),
        "backend": engine.backend,
        "num_workers": engine.num_workers,
        "activations": engine.options.activations,
        "model": args.model or f"synthetic-{args.layers}",
    }


def records(
    args: argparse.Namespace, bench: Bench, measured: list[Measurement]
) -> list[dict[str, Any]]:
    """One per case."""
    common = {
        **engine_record(args, bench.engine),
        "bandwidth_gbs": round(bench.bandwidth_gbs, 3),
        "cache": "warm",
        "clock": "wall",
        "draft": args.draft,
    }
    if args.case == "bandwidth":
        low, high = min(bench.bandwidths), max(bench.bandwidths)
        return [{"case": "bandwidth", **common, "low_gbs": low, "high_gbs": high,
                 "n": len(bench.bandwidths)}]
    if bench.roofs.peak_gflops:
        common["peak_gflops"] = round(bench.roofs.peak_gflops, 2)
        common["peak_source"] = bench.roofs.peak_source
    lines = [{**m.record(bench.roofs), **common} for m in measured]
    if args.case == "prefill":
        ratio = measured[0].tokens_per_s / measured[1].tokens_per_s
        lines[0]["prefill_over_decode"] = round(ratio, 3)
    if args.case == "verify":
        for line, m in zip(lines, measured, strict=True):
            line["cost_of_one"] = round(m.median_s / measured[0].median_s, 4)
    return lines


def print_head(args: argparse.Namespace, engine: Any, bandwidth_gbs: float) -> None:
    """The line above a table: what was measured, where, when."""
    facts = machine_record()
    commit = facts["commit"] or "no commit"
    backend = engine.backend
    if engine.options.activations != "bf16":
        backend += f" with {engine.options.activations} activations"
    print(
        f"mimo_rt bench {facts['version']} ({commit}{'+' if facts['dirty'] else ''})  "
        f"{backend}  {facts['machine']}, {engine.num_workers} workers, "
        f"read {bandwidth_gbs:.2f} GB/s measured  {facts['date']}"
    )


def print_measurements(
    args: argparse.Namespace, bench: Bench, measured: list[Measurement]
) -> None:
    print_head(args, bench.engine, bench.bandwidth_gbs)
    if args.case == "bandwidth":
        low, high = min(bench.bandwidths), max(bench.bandwidths)
        print(f"read bandwidth {bench.bandwidth_gbs:.2f} GB/s "
              f"(best of {len(bench.bandwidths)}, {low:.2f}..{high:.2f})")
        return
    header = ["case", "median ms", "p10..p90", "n", "GB read", "GB/s", "%bandwidth", "tok/s"]
    rows = [list(m.row(bench.roofs)) for m in measured]
    if args.case == "verify":
        header.append("x one token")
        for row, m in zip(rows, measured, strict=True):
            row.append(f"{m.median_s / measured[0].median_s:.3f}")
    if args.case == "prompt":
        header += ["x alone", "others wait ms"]
        for row, m in zip(rows, measured, strict=True):
            row += [f"{m.facts['over_alone']:.2f}", f"{m.facts['longest_wait_ms']:.0f}"]
    if args.case == "sessions":
        header.append("x one session")
        for row, m in zip(rows, measured, strict=True):
            row.append(f"{m.tokens_per_s / measured[0].tokens_per_s:.2f}")
        if args.draft != "none":
            header.append("x with drafts")
            for row, m in zip(rows, measured, strict=True):
                row.append(f"{m.facts['drafts_over_plain']:.2f}")
    if args.case == "contention":
        header += ["others' cores", "x alone (mean)", "x fair"]
        for row, m in zip(rows, measured, strict=True):
            row += [f"{m.facts['competitor_cores']:.2f}", f"{m.facts['mean_over_alone']:.2f}",
                    f"{m.facts['fair_over_alone']:.2f}"]
    if bench.roofs.peak_gflops:
        header += ["GFLOP/s", "%bound", "bound by"]
        for row, m in zip(rows, measured, strict=True):
            line = m.record(bench.roofs)
            row += [f"{line['gflops']:.1f}", f"{100 * line['bound_fraction']:.1f}",
                    line["bound_by"]]
    print(format_table(rows, header))
    for m in measured:
        if m.in_situ_gbs is not None:
            print(f"%bandwidth of {m.case}: of {m.in_situ_gbs:.2f} GB/s, read between its steps")
    if any(m.is_bytes_estimated for m in measured):
        print("~ bytes estimated: experts as by uniform routing")
    if bench.roofs.peak_gflops:
        print(f"vector peak {bench.roofs.peak_gflops:.1f} GFLOP/s: {bench.roofs.peak_source}, "
              f"{bench.engine.num_workers} threads")
    if args.case == "prefill":
        ratio = measured[0].tokens_per_s / measured[1].tokens_per_s
        print(f"prefill / decode: {ratio:.1f} x tok/s")
