"""mimo_rt and its peers on the same weights, in one run, taking turns.

  python bench/peers/arena.py --model MODEL_DIR --gguf MODEL.gguf [--llama-bench PATH] [--json]

Every engine lives in a process of its own that waits while another one works. In each round all
engines run the same case one after the other, every second round (of prompts: every second pass
over all of them) in reverse order; the ratio is the median over the rounds, so a machine that
changes speed hits both sides. Peers that are not there are reported as skipped.

  mimo_rt        this library on MODEL_DIR, without drafts
  mimo_rt_drafts the same with drafts: of MODEL_DIR/dflash, else looked up in the text
  mimo_rt_int8   the same with activations of MXFP4 products rounded to 8 bits, as peers do
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

`convert.py` makes the GGUF file. Where engines say their logits after the prompt (cases decode and
text), records have the relative L2 difference from ours, beside that of mimo_rt_int8 in the same
run: how far 8-bit roundings alone move this model. Many times that is another model, such as a
wrong field of the GGUF file; where it is a third (deep random models), logits cannot tell. The case
textN is what users see: 128 greedy tokens after each of N real prompts.

The other engines' memory is asked into huge pages, too: ``huge_page_mb`` of ``resident_mb`` in the
records tell whether the system had them.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mimo_rt import MimoRtError
from mimo_rt.bench.measurement import spread
from mimo_rt.bench.prompts import read_prompts
from mimo_rt.cli._machine import machine_record
from mimo_rt.cli._output import format_table
from mimo_rt.text import ModelText
from peers import (
    ENGINES,
    MAX_CONTEXT,
    TEXT_TOKENS,
    WITH_INT8,
    Case,
    Output,
    Peer,
    Skipped,
    open_peer,
)

BASE = "mimo_rt"
_NUMBERS = {"decode": 1, "rows": 8, "prefill": 512, "text": 8}
# Peers round more than our int8 does, weights as well. On a slice of 4 layers ik_llama.cpp has 4
# times its difference, and 54 times where it ignores the scale of the values.
_MAX_OVER_INT8 = 8.0
_PROMPTS = Path(__file__).resolve().parents[1] / "prompts" / "coding.jsonl"


def parse_cases(text: str) -> list[Case]:
    """"decode,rows8,prefill512,text8" as cases."""
    cases = []
    for word in text.split(","):
        name = word.rstrip("0123456789")
        number = int(word[len(name):] or _NUMBERS.get(name, 0))
        if name not in _NUMBERS or number < 1:
            raise argparse.ArgumentTypeError(
                f"expected decode, rowsN, prefillN or textN, got '{word}'"
            )
        cases.append(Case(name, 1 if name == "decode" else number))
    return cases


def with_prompts(case: Case, model: Path, prompts: Path) -> list[Case]:
    """``text`` once for each of its prompts; any other case as it is.

    Raises:
        MimoRtError: no tokenizer, too few prompts, or one that is too long.
    """
    if case.kind != "text":
        return [case]
    text = ModelText(model)
    cases = []
    for prompt in read_prompts([prompts])[: case.num_rows]:
        ids = tuple(int(i) for i in text.prompt_ids(prompt.content))
        if len(ids) + TEXT_TOKENS > MAX_CONTEXT:
            raise MimoRtError(
                f"[{prompts}] prompt '{prompt.id}': expected at most {MAX_CONTEXT - TEXT_TOKENS} "
                f"tokens, got {len(ids)}."
            )
        cases.append(replace(case, prompt_ids=ids))
    if len(cases) < case.num_rows:
        raise MimoRtError(f"[{prompts}] expected {case.num_rows} prompts, got {len(cases)}.")
    return cases


def take_rounds(
    peers: Sequence[Peer], cases: Sequence[Case], num_rounds: int
) -> list[list[float]]:
    """Seconds per step of every peer, one value per round.

    Rounds go through the cases in turn, all equally often: ``num_rounds`` or somewhat more. The
    order of the peers changes from pass to pass, so that no case has an order of its own.
    """
    order = list(range(len(peers)))
    times: list[list[float]] = [[] for _ in peers]
    for _ in range(math.ceil(num_rounds / len(cases))):
        for case in cases:
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
            "tokens": case.tokens_per_step,
            "median_us": round(statistics.median(samples) * 1e6, 2),
            "p10_us": round(low * 1e6, 2),
            "p90_us": round(high * 1e6, 2),
            "n": len(samples),
            "tokens_per_s": round(case.tokens_per_step / statistics.median(samples), 3),
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
    cases = with_prompts(case, args.model, args.prompts)
    try:
        for name in args.engines:
            try:
                peer = open_peer(name, case, args)
                peers.append(peer)
                peer.run(cases[0])  # warm-up
            except (Skipped, RuntimeError) as reason:
                if name == BASE:
                    raise
                if peers[-1:] and peers[-1].name == name:  # it started, but cannot run this
                    peers.pop().close()
                skipped.append({"case": f"peers/{case.label}/{name}", "engine": name,
                                "skipped": str(reason)})
        times = take_rounds(peers, cases, args.rounds)
        records = case_records(case, [peer.name for peer in peers], times)
        for record, peer in zip(records, peers, strict=True):
            record |= peer.facts
        ours = next((peer.outputs for peer in peers if peer.name == BASE), {})
        for record, peer in zip(records, peers, strict=True):
            record |= agreement(ours, peer.outputs)
        return with_int8_difference(records) + skipped
    finally:
        for peer in peers:
            peer.close()


def agreement(
    ours: dict[tuple[int, ...], Output], theirs: dict[tuple[int, ...], Output]
) -> dict[str, Any]:
    """How many greedy tokens equal ours before the first difference, all prompts together, and the
    largest relative L2 difference of the logits after a prompt."""
    pairs = [(output, theirs[prompt]) for prompt, output in ours.items() if prompt in theirs]
    if not pairs:
        return {}
    record: dict[str, Any] = {
        "equal_tokens": sum(_num_equal(a.token_ids, b.token_ids) for a, b in pairs),
        "compared_tokens": sum(len(a.token_ids) for a, _ in pairs),
    }
    if all(output.logits is not None for pair in pairs for output in pair):
        record["logits_difference"] = round(max(_difference(*pair) for pair in pairs), 6)
    return record


def with_int8_difference(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Beside every difference of logits the one that our own 8-bit activations make."""
    rounding = next((record.get("logits_difference") for record in records
                     if record["engine"] == WITH_INT8), None)
    if rounding is None:
        return records
    return [record | {"int8_difference": rounding} if "logits_difference" in record else record
            for record in records]


def _difference(ours: Output, theirs: Output) -> float:
    a, b = ours.logits, theirs.logits
    if a.shape != b.shape:
        raise RuntimeError(f"expected logits of {len(a)} tokens as ours, got {len(b)}: it is "
                           "another model. Convert it anew.")
    return float(np.linalg.norm(b - a) / np.linalg.norm(a))


def _num_equal(ours: Sequence[int], theirs: Sequence[int]) -> int:
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, metavar="MODEL_DIR")
    parser.add_argument("--gguf", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--engines", type=lambda text: text.split(","), default=list(ENGINES),
                        metavar="LIST", help=f"default: {','.join(ENGINES)}")
    parser.add_argument("--cases", type=parse_cases, default=parse_cases("decode,rows8,prefill512"),
                        metavar="LIST", help="default: decode,rows8,prefill512")
    parser.add_argument("--prompts", type=Path, default=_PROMPTS, metavar="FILE.jsonl",
                        help="of the case text (default: bench/prompts/coding.jsonl)")
    parser.add_argument("--rounds", type=int, default=20, metavar="N",
                        help="turns of every engine (default 20), for text with one prompt each "
                        "and as many more as the last pass over the prompts needs")
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
    records: list[dict[str, Any]] = []
    failure = ""
    try:
        for case in args.cases:
            for record in run_case(case, args):
                records.append(record)
                if args.json:  # now: whatever stops what follows leaves them
                    print(json.dumps({**record, **common}), flush=True)
    except (RuntimeError, MimoRtError) as error:
        failure = f"arena: {error}"
    if records and not args.json:
        print(format_table([_row(record) for record in records],
                           ("case", "median ms", "p10..p90", "n", "tok/s", "time / mimo_rt",
                            "tokens as ours", "logits from ours")))
    if failure:
        sys.exit(failure)


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    if "skipped" in record:
        reason = textwrap.shorten(record["skipped"], 60, placeholder="…")  # --json has all of it
        return (record["case"], "skipped", reason, *["-"] * 5)
    ratio = record.get("over_mimo_rt")
    return (record["case"], f"{record['median_us'] / 1e3:.3f}",
            f"{record['p10_us'] / 1e3:.3f}..{record['p90_us'] / 1e3:.3f}", str(record["n"]),
            f"{record['tokens_per_s']:.2f}",
            "-" if ratio is None else f"{ratio:.3f} ({record['over_mimo_rt_p10']:.3f}.."
            f"{record['over_mimo_rt_p90']:.3f})",
            f"{record['equal_tokens']} of {record['compared_tokens']}"
            if "equal_tokens" in record else "-",
            _logits_text(record.get("logits_difference"), record.get("int8_difference", math.inf)))


def _logits_text(difference: float | None, int8_difference: float) -> str:
    if difference is None:
        return "-"
    doubt = "" if difference <= _MAX_OVER_INT8 * int8_difference else ": another model?"
    return f"{100 * difference:.2f} %{doubt}"


if __name__ == "__main__":
    main()
