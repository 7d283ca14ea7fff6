"""What bench/gpu_gate.py says in the end: its steps, what was measured, and the numbers that it was run for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gate_steps import FAILED, LIMITS_S, NOT_RUN, PASSED, Log


def print_summary(log: Log) -> None:
    print(f"\n{'stage':<10} {'passed':>7} {'failed':>7} {'not run':>8} {'seconds':>8}")
    for stage in LIMITS_S:
        steps = [s for s in log.steps if s["stage"] == stage]
        counts = [sum(s["status"] == status for s in steps) for status in (PASSED, FAILED, NOT_RUN)]
        seconds = sum(s["seconds"] for s in steps)
        print(f"{stage:<10} {counts[0]:>7} {counts[1]:>7} {counts[2]:>8} {seconds:>8.1f}")
    print_cases([r for r in log.records if "case" in r])
    for line in headlines(log.records):
        print(line)
    print(f"\nwritten: {log.path}")


def print_cases(records: list[dict[str, Any]]) -> None:
    if records:
        print(f"\n{'case':<40} {'median us':>10} {'GB/s':>8} {'%read':>6} {'x base':>7}")
    for r in records:
        share = f"{100 * r['bandwidth_fraction']:.1f}" if r.get("bandwidth_fraction") else "-"
        share = "WRONG" if r.get("correct") is False else "FAILED" if r.get("error") else share
        base = f"{r['times_baseline']:.2f}" if r.get("times_baseline") else "-"
        base = "FAILED" if r.get("baseline_failed") else base
        print(f"{r['case']:<40} {r.get('median_us', '-'):>10} {r.get('gbs', '-'):>8} {share:>6} {base:>7}")


def headlines(records: list[dict[str, Any]]) -> Iterator[str]:
    """Tokens/s of the slice and of the models, and the slice beside torch; nothing of what was not measured."""
    for record in records:
        for p in record.get("projection", ()):
            yield f"slice, projected for a node: {p['tokens_per_s']:.0f} tok/s at {p['accepted']:.2f} tokens accepted"
        if "round_us" in record and "times_baseline" in record:
            yield f"slice: {record['baseline']} takes {record['times_baseline']:.2f} x as long for its products alone"
        if "tokens_per_s" in record and "model" in record:
            yield f"{record['model']}: {model_speeds(record)}"


def model_speeds(record: dict[str, Any]) -> str:
    plain = f"{record['tokens_per_s']:.0f} tok/s, prompts {record['prefill_tokens_per_s']:.0f}"
    drafts = (f", {kind} {max(draft['tokens_per_s'].values()):.0f}" for kind, draft in record["drafts"].items())
    return plain + "".join(drafts)
