"""mimo_rt and its peers on the same weights, in one run, taking turns.

  python bench/peers/arena.py --model MODEL_DIR --gguf MODEL.gguf [--llama-bench PATH] [--json]

Every engine lives in a process of its own that waits while another one works. In each round all
engines run the same case one after the other, every second round in reverse order; the ratio is the
median over the rounds, so a machine that changes speed hits both sides. Peers that are not there
are reported as skipped.

  mimo_rt        this library on MODEL_DIR
  llama_cpp      the package llama-cpp-python on the GGUF file; --llama-library PATH makes it load
                 that libllama.so
  xllamacpp      the package xllamacpp (llama.cpp's server as a wheel) on the GGUF file; times are
                 those that it reports itself
  llama_sync     the package llama-cpp-py-sync (llama.cpp of the day, a wheel) on the GGUF file
  ik_llama       the package ik-llama-cpp-python (a wheel) on the GGUF file, weights repacked
  llama_bench    a llama-bench binary on the GGUF file; starts anew for every turn, so its rounds
                 hold only what it times itself
  transformers   transformers on MODEL_DIR, a plain transformer in disguise (the demo model), BF16;
                 transformers_f32: twice the bytes, but faster where the machine has no BF16 units

`convert.py` makes the GGUF file.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimo_rt.bench.measurement import spread
from mimo_rt.cli._machine import machine_record
from mimo_rt.cli._output import format_table
from peers import ENGINES, Case, Peer, Skipped, open_peer

BASE = "mimo_rt"


def parse_cases(text: str) -> list[Case]:
    """"decode,rows8,prefill512" as cases."""
    cases = []
    for word in text.split(","):
        name = word.rstrip("0123456789")
        number = int(word[len(name):] or {"decode": 1, "rows": 8, "prefill": 512}.get(name, 0))
        if name not in ("decode", "rows", "prefill") or number < 1:
            raise argparse.ArgumentTypeError(f"expected decode, rowsN or prefillN, got '{word}'")
        cases.append(Case(name, 1 if name == "decode" else number))
    return cases


def take_rounds(peers: Sequence[Peer], case: Case, num_rounds: int) -> list[list[float]]:
    """Seconds per step of every peer, one value per round; all have run the case before."""
    order = list(range(len(peers)))
    times: list[list[float]] = [[] for _ in peers]
    for _ in range(num_rounds):
        for i in order:
            times[i].append(peers[i].run(case))
        order.reverse()
    return times


def case_records(
    case: Case, names: Sequence[str], times: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """One per engine; ``over_mimo_rt``: this engine's time over ours, above 1: we are faster."""
    ours = times[names.index(BASE)] if BASE in names else None
    records = []
    for name, samples in zip(names, times, strict=True):
        low, high = spread(samples)
        record = {
            "case": f"peers/{case.label}/{name}",
            "engine": name,
            "tokens": case.num_rows,
            "median_us": round(statistics.median(samples) * 1e6, 2),
            "p10_us": round(low * 1e6, 2),
            "p90_us": round(high * 1e6, 2),
            "n": len(samples),
            "tokens_per_s": round(case.num_rows / statistics.median(samples), 3),
        }
        if ours is not None:
            ratios = [theirs / mine for theirs, mine in zip(samples, ours, strict=True)]
            low, high = spread(ratios)
            record |= {"over_mimo_rt": round(statistics.median(ratios), 4),
                       "over_mimo_rt_p10": round(low, 4), "over_mimo_rt_p90": round(high, 4)}
        records.append(record)
    return records


def run_case(case: Case, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one case with every engine that can run it."""
    peers: list[Peer] = []
    skipped = []
    try:
        for name in args.engines:
            try:
                peer = open_peer(name, case, args)
                peers.append(peer)
                peer.run(case)  # warm-up
            except (Skipped, RuntimeError) as reason:
                if name == BASE:
                    raise
                if peers[-1:] and peers[-1].name == name:  # it started, but cannot run this
                    peers.pop().close()
                skipped.append({"case": f"peers/{case.label}/{name}", "engine": name,
                                "skipped": str(reason)})
        times = take_rounds(peers, case, args.rounds)
        records = case_records(case, [peer.name for peer in peers], times)
        for record, peer in zip(records, peers, strict=True):
            record |= peer.facts
        _note_agreement(records)
        return records + skipped
    finally:
        for peer in peers:
            peer.close()


def _note_agreement(records: list[dict[str, Any]]) -> None:
    """How many tokens of greedy decoding equal ours before the first difference."""
    ours = next((r["token_ids"] for r in records if r["engine"] == BASE and "token_ids" in r), None)
    for record in records:
        theirs = record.pop("token_ids", None)
        if ours and theirs:
            pairs = enumerate(zip(ours, theirs, strict=False))
            record["equal_tokens"] = next((i for i, (a, b) in pairs if a != b), len(ours))
            record["compared_tokens"] = len(ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, metavar="MODEL_DIR")
    parser.add_argument("--gguf", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--engines", type=lambda text: text.split(","), default=list(ENGINES),
                        metavar="LIST", help=f"default: {','.join(ENGINES)}")
    parser.add_argument("--cases", type=parse_cases, default=parse_cases("decode,rows8,prefill512"),
                        metavar="LIST", help="default: decode,rows8,prefill512")
    parser.add_argument("--rounds", type=int, default=20, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all usable cores")
    parser.add_argument("--llama-library", type=Path, metavar="libllama.so")
    parser.add_argument("--llama-bench", type=Path, metavar="PATH")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.engines) - set(ENGINES):
        parser.error(f"--engines: expected some of {', '.join(ENGINES)}, got {sorted(unknown)}")
    if args.rounds < 1:
        parser.error("--rounds: expected at least 1")
    args.threads = args.threads or machine_record()["num_usable_cores"]
    common = {**machine_record(), "model": args.model.name, "num_workers": args.threads,
              "repeat": shlex.join(["python", *sys.argv])}
    try:
        records = [record for case in args.cases for record in run_case(case, args)]
    except RuntimeError as error:
        sys.exit(f"arena: {error}")
    if args.json:
        for record in records:
            print(json.dumps({**record, **common}))
        return
    print(format_table([_row(record) for record in records],
                       ("case", "median ms", "p10..p90", "n", "tok/s", "time / mimo_rt",
                        "tokens as ours")))


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    if "skipped" in record:
        reason = textwrap.shorten(record["skipped"], 60, placeholder="…")  # --json has all of it
        return (record["case"], "skipped", reason, "-", "-", "-", "-")
    ratio = record.get("over_mimo_rt")
    return (record["case"], f"{record['median_us'] / 1e3:.3f}",
            f"{record['p10_us'] / 1e3:.3f}..{record['p90_us'] / 1e3:.3f}", str(record["n"]),
            f"{record['tokens_per_s']:.2f}",
            "-" if ratio is None else f"{ratio:.3f} ({record['over_mimo_rt_p10']:.3f}.."
            f"{record['over_mimo_rt_p90']:.3f})",
            f"{record['equal_tokens']} of {record['compared_tokens']}"
            if "equal_tokens" in record else "-")


if __name__ == "__main__":
    main()
