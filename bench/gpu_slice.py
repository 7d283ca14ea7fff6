"""Whole rounds of one rank's slice of MiMo-V2.5-Pro-FP4 on one GPU, as a fraction of what its memory allows.

    python bench/gpu_slice.py [--json] [--allreduce-us 5] [--layers N] [--experts M] [--device cuda]

The slice is an eighth of the heads, of every expert's width and of the vocabulary in all 70 layers, with the same share
of the draft (whose fc every rank has whole): 72 GB of random weights, made on the GPU from a few packed experts.
Routers differ from layer to layer. A round drafts 7 tokens and verifies 8. Its bytes are those of the experts that it
really used. Then, as a record of its own, where torch is: its matrix products alone, in a CUDA graph. The projection of
a node of eight GPUs takes the mean time of a round and adds all-reduces, which one GPU does not have, as a stated cost:
two per layer of target and draft, --allreduce-us each. What ranks exchange for embeddings and lm_heads is left out.
--layers and --experts shrink the slice, for a GPU with less memory or for --device cpu; then nothing is projected.
Exit codes: 0 measured, 1 it does not fit or cannot run, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mimo_rt import list_backends
from mimo_rt.bench.measurement import Roofs
from mimo_rt.bench.rank_slice import (NOT_COUNTED, NUM_RANKS, Projection, SliceRounds, count_allreduces, measure_rounds,
                                      project)
from mimo_rt.bench.synthetic import SLICE_EXPERTS, SLICE_LAYERS, slice_config, slice_draft_config, synthetic_engine
from mimo_rt.bench.torch_round import TorchResult, has_failed, measure_torch, round_products
from mimo_rt.cli._machine import machine_record
from mimo_rt.errors import MimoRtError, OutOfMemoryError

TORCH_ROUNDS = 30


def open_engine(args: argparse.Namespace) -> Any:
    """Random weights of the slice and of its draft."""
    config = slice_config(args.layers, args.experts)
    try:
        return synthetic_engine(config, {"device": args.device}, slice_draft_config(config), args.seed)
    except OutOfMemoryError as error:
        raise MimoRtError(f"{error} Or lower --layers or --experts.") from None


def measure(args: argparse.Namespace, engine: Any) -> tuple[SliceRounds, Roofs]:
    """Rounds, and the bandwidth read before and after them."""
    before = engine.measure_bandwidth_gbs(0.3)
    rounds = measure_rounds(engine, args.context, args.seconds)
    return rounds, Roofs(max(before, engine.measure_bandwidth_gbs(0.3)))


def measure_baselines(args: argparse.Namespace, engine: Any, rounds: SliceRounds) -> list[TorchResult]:
    """The products of as many experts as the rounds had."""
    num_active = max(round(statistics.fmean(rounds.active)), 1)
    products = round_products(engine.config, engine.draft_config, rounds.num_rows, num_active)
    return measure_torch("cuda" if engine.backend == "cuda" else "cpu", products, args.torch_rounds)


def make_record(args: argparse.Namespace, engine: Any, rounds: SliceRounds, roofs: Roofs,
                projections: Sequence[Projection]) -> dict[str, Any]:
    """The first JSON line: the rounds."""
    case = f"slice/L{args.layers}/E{args.experts}/t{rounds.num_rows}"
    record = rounds.measurement(case).record(roofs)
    record |= {"bandwidth_gbs": round(roofs.bandwidth_gbs, 3), "weight_bytes": engine.weight_bytes,
               "context": args.context, "backend": engine.backend, "num_workers": engine.num_workers,
               "device": next(b.reason for b in list_backends() if b.name == engine.backend)}
    if projections:
        record |= {"allreduce_us_assumed": args.allreduce_us, "allreduces": num_allreduces(engine),
                   "exchanges_not_counted": NOT_COUNTED,
                   "projection": [{"accepted": p.accepted, "tokens_per_s": round(p.tokens_per_s, 1),
                                   "without_allreduce": round(p.without_allreduce, 1)} for p in projections]}
    return record | machine_record()


def make_baseline_record(record: dict[str, Any], torch: Sequence[TorchResult]) -> dict[str, Any]:
    """The second JSON line: torch beside the rounds of the first one."""
    line = {"case": f"{record['case']}/torch", "round_us": record["median_us"]}
    baselines = {t.name: round(statistics.median(t.times_s) * 1e6, 2) for t in torch if t.times_s}
    if baselines:
        line |= {"baselines_us": baselines, "baseline": min(baselines, key=baselines.__getitem__)}
        line["times_baseline"] = round(baselines[line["baseline"]] / record["median_us"], 4)
    if has_failed(torch):
        line["baseline_failed"] = True
    line["baseline_notes"] = [f"without {t.name}: {t.note}" for t in torch if t.note]
    return line | machine_record()


def num_allreduces(engine: Any) -> int:
    return count_allreduces(engine.config.num_layers, engine.draft_config.num_layers)


def print_report(record: dict[str, Any]) -> None:
    build = f"{record['commit'] or 'no commit'}{'+' if record['dirty'] else ''}"
    print(f"mimo_rt {record['version']} ({build})  {record['machine']}  {record['date']}")
    print(f"{record['case']} on {record['backend']} ({record['device']}), "
          f"{record['weight_bytes'] / 1e9:.1f} GB of random weights")
    print(f"round of {record['tokens']} tokens  {record['median_us'] / 1e3:.3f} ms  ({record['p10_us'] / 1e3:.3f}.."
          f"{record['p90_us'] / 1e3:.3f}, n = {record['n']}; with launches {record['mean_us'] / 1e3:.3f} on average)")
    print(f"reads              {record['bytes'] / 1e9:.3f} GB: {record['gbs']:.0f} of "
          f"{record['bandwidth_gbs']:.0f} GB/s measured, "
          f"{100 * record['bandwidth_fraction']:.1f} % of the bound of {record['bound_us'] / 1e3:.3f} ms")
    print(f"active experts     {record['active_experts']:.1f} per layer ({record['active_experts_p10']:.1f}.."
          f"{record['active_experts_p90']:.1f}; {record['active_experts_uniform']:.1f} if routing were uniform)")
    if "projection" not in record:
        print(f"no projection: this is not the whole slice of {SLICE_LAYERS} layers and {SLICE_EXPERTS} experts")
        return
    total_ms = record["allreduces"] * record["allreduce_us_assumed"] / 1e3
    print(f"{NUM_RANKS} GPUs: + {total_ms:.3f} ms for {record['allreduces']} all-reduces of "
          f"{record['allreduce_us_assumed']:g} us (assumed, not measured)\n"
          f"  without the exchanges of {record['exchanges_not_counted']}")
    for p in record["projection"]:
        print(f"  {p['accepted']:.2f} tokens accepted  {p['tokens_per_s']:.0f} tok/s  "
              f"({p['without_allreduce']:.0f} without all-reduces)")


def print_baselines(line: dict[str, Any]) -> None:
    for name, us in line.get("baselines_us", {}).items():
        print(f"products alone in {name}  {us / 1e3:.3f} ms, x {us / line['round_us']:.2f}")
    for note in line["baseline_notes"]:
        print(note)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or a CPU backend (default cuda)")
    parser.add_argument("--layers", type=int, default=SLICE_LAYERS, metavar="N", help=f"default {SLICE_LAYERS}")
    parser.add_argument("--experts", type=int, default=SLICE_EXPERTS, metavar="M", help=f"default {SLICE_EXPERTS}")
    parser.add_argument("--context", type=int, default=256, metavar="T", help="tokens before rounds (default 256)")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="of rounds (default 4)")
    parser.add_argument("--torch-rounds", type=int, default=TORCH_ROUNDS, metavar="N",
                        help=f"rounds of each baseline (default {TORCH_ROUNDS}; 0: no baseline)")
    parser.add_argument("--allreduce-us", type=float, default=5.0, metavar="US",
                        help="assumed for one all-reduce of 8 rows over NVLink (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--json", action="store_true", help="one JSON line instead")
    args = parser.parse_args(argv)
    for name, low, high in (("layers", 2, SLICE_LAYERS), ("experts", 8, SLICE_EXPERTS), ("context", 1, 1 << 17),
                            ("seconds", 0, 3600), ("torch_rounds", 0, 10_000), ("allreduce_us", 0, 1000)):
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name.replace('_', '-')}: expected {low}..{high}, got {getattr(args, name)}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        engine = open_engine(args)
        rounds, roofs = measure(args, engine)
    except MimoRtError as error:
        print(f"gpu_slice: {error}", file=sys.stderr)
        return 1
    is_whole = (args.layers, args.experts) == (SLICE_LAYERS, SLICE_EXPERTS)
    allreduce_s = num_allreduces(engine) * args.allreduce_us / 1e6
    projections = project(statistics.fmean(rounds.times_s), allreduce_s) if is_whole else []
    record = make_record(args, engine, rounds, roofs, projections)
    show(args, record, print_report)  # now: whoever stops what follows has the rounds
    if args.torch_rounds:
        line = make_baseline_record(record, measure_baselines(args, engine, rounds))
        show(args, line, print_baselines)
        if "baseline_failed" in line:
            print("gpu_slice: NO BASELINE: torch is there, but no way of it works: "
                  f"{'; '.join(line['baseline_notes'])}.", file=sys.stderr)
    return 0


def show(args: argparse.Namespace, record: dict[str, Any], print_text: Callable[[dict[str, Any]], None]) -> None:
    if args.json:
        print(json.dumps(record))
    else:
        print_text(record)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
