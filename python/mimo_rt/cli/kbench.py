"""``mimo-rt kbench``: single kernels, each checked and compared with what the machine can do."""

from __future__ import annotations

import argparse
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import _C
from ..bench.compare import TOLERANCE, read_records
from ..bench.kernel_run import KernelResult, case_name, measure_kernel
from ..bench.kernel_shapes import FORMATS, MODELS, OPS, Shape, choose
from ..errors import DeviceLostError, MimoRtError, UnavailableError
from ..value_checks import as_int
from ._bench_files import run_compare
from ._machine import machine_record
from ._output import format_table, note, print_json

_DEFAULT_SHAPE = "pro-r8"


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "kbench", parents=[common], help="measure single kernels", allow_abbrev=False,
        description="Times single kernels on random data outside the caches, beside a plain read "
        "of the same memory, beside their multiply-adds in registers alone (%peak, on a CPU) or "
        "an empty kernel (on a GPU), and beside PyTorch where it is installed (MXFP4 experts on a "
        "GPU: also beside Triton, whichever is faster). 'edges' hands a token from worker to "
        "worker: a hop is what an edge between tasks costs. Results are compared with float64 "
        "first: a wrong one is not timed, and a case that fails has an 'error' instead of times; "
        "both make the exit code 1. CPU kernels run on one thread, edges on all. "
        "'mimo-rt kbench compare A.jsonl B.jsonl' judges two files of --json lines; exit code 1 "
        "when a case is SLOWER, wrong, failed, or MISSING: measured in A alone.",
    )
    parser.add_argument("kernels", nargs="*", metavar="KERNEL",
                        help=f"edges, or of {', '.join((*OPS, *FORMATS))} (default: all of the "
                        "shape)")
    parser.add_argument("--shape", metavar="NAME", default=_DEFAULT_SHAPE,
                        help=f"{', '.join(MODELS)}, MODEL/OP, or ROWSxK for formats "
                        f"(default {_DEFAULT_SHAPE})")
    parser.add_argument("--after", dest="behind", metavar="KERNEL",
                        help="only the kernels behind this one, which failed or hung")
    parser.add_argument("--tokens", type=_token_list, metavar="LIST",
                        help="e.g. 1,8,64 (default: the usual numbers of the backend)")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="of edges: blocks or threads that hand the token around (default: "
                        "one per multiprocessor or core)")
    parser.add_argument("--device", "--backend", default="cpu", metavar="NAME",
                        help="cpu, cuda, or a CPU backend of 'mimo-rt doctor' (default cpu)")
    parser.add_argument("--seconds", type=float, default=0.3, metavar="S",
                        help="time per case (default 0.3), and as much for its baseline")
    parser.add_argument("--hot", action="store_true",
                        help="CPU matrices from the caches instead: the compute limit")
    parser.add_argument("--activations", choices=("bf16", "int8"), default="bf16",
                        help="what MXFP4 matrices are multiplied with on the CPU (default bf16)")
    parser.add_argument("--no-baseline", action="store_true", help="do not measure PyTorch")
    parser.add_argument("--list", action="store_true", help="show the shapes and stop")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, metavar="X",
                        help=f"compare: smaller changes are the same (default {TOLERANCE})")
    parser.add_argument("--json", action="store_true", help="one JSON object per case and line")
    parser.set_defaults(run=run, refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    if args.kernels[:1] == ["compare"]:
        return _compare(args)
    if not (math.isfinite(args.seconds) and 0 < args.seconds <= 3600):
        raise ValueError(f"--seconds: expected a number in (0, 3600], got {args.seconds}.")
    shapes = choose(args.kernels, args.shape)
    if args.list:
        print(format_table([(s.name, s.format, _sizes(s)) for s in shapes],
                           ("shape", "format", "sizes")))
        return 0
    backend = _backend(args.device)
    shapes = _runnable(args, shapes, backend)
    if args.tokens and any(shape.is_edge for shape in shapes):
        args.refuse("--tokens means nothing for edges.")
    shapes = _behind(args, shapes)
    cases = [(shape, tokens) for shape in shapes
             for tokens in args.tokens or shape.tokens(backend)]
    options = _C.KernelBenchOptions(
        backend=backend, is_hot=args.hot, activations=args.activations
    )
    command = shlex.join(args.command_line)
    results: list[KernelResult] = []
    try:
        failed = _measure(args, cases, options, results)
    finally:  # whatever ends it, what was measured counts
        if not args.json and results:
            _print_results(results)
            print(f"repeat: {command}")
    wrong = [result.case for result in results if not result.is_correct]
    if wrong:
        note(f"mimo-rt: error: wrong results, not timed: {', '.join(wrong)}")
    if failed:
        note(f"mimo-rt: error: failed, not timed: {', '.join(failed)}")
    return int(bool(wrong or failed))


def _measure(
    args: argparse.Namespace, cases: list[tuple[Shape, int]], options: Any,
    results: list[KernelResult],
) -> list[str]:
    """Adds to ``results``; names of cases that failed: they keep nothing from the others."""
    failed: list[str] = []
    for index, (shape, tokens) in enumerate(cases):
        note(f"{index + 1} of {len(cases)}: {shape.name}, {tokens} tokens")
        more = {**machine_record(), "repeat": _repeat(shape, tokens, args)}
        try:
            result = measure_kernel(shape, tokens, options, args.seconds,
                                    with_baseline=not args.no_baseline)
        except UnavailableError as error:  # of a kernel that this GPU or this build does not have
            if shape.op in args.kernels or not (results or failed or args.behind):
                raise
            note(f"skipped {shape.name}, {tokens} tokens: {error}")
        except MimoRtError as error:
            failed.append(case_name(shape, tokens, options))
            note(f"mimo-rt: error: {failed[-1]}: {error}")
            if args.json:
                print_json({"case": failed[-1], "error": str(error), "backend": options.backend,
                            **more})
            if isinstance(error, DeviceLostError):  # for this process
                if shape is not cases[-1][0]:
                    note(f"not measured: what follows. To measure it: --after {shape.op}")
                break
        else:
            results.append(result)
            if args.json:
                print_json({**result.record(), **more})
    return failed


def _behind(args: argparse.Namespace, shapes: list[Shape]) -> list[Shape]:
    """Shapes after that of ``--after``; none after the last one."""
    ops = [shape.op for shape in shapes]
    if args.behind is None:
        return shapes
    if args.behind not in ops:
        raise ValueError(f"--after: expected one of {', '.join(ops)}, got '{args.behind}'.")
    following = shapes[ops.index(args.behind) + 1:]
    if not following:
        note(f"no kernel follows {args.behind}.")
    return following


def _backend(device: str) -> str:
    """A CPU backend by name; "cuda" as it is: its kernels run without an engine."""
    return device if device == "cuda" else _C.resolve_backend(device)


def _runnable(args: argparse.Namespace, shapes: list[Shape], backend: str) -> list[Shape]:
    """Shapes that the backend has kernels for; an error if there is none."""
    usable = [shape for shape in shapes if shape.is_on(backend)]
    is_int8 = args.activations == "int8"
    if is_int8:
        usable = [shape for shape in usable if shape.takes_int8(backend)]
    if args.hot:
        usable = [shape for shape in usable
                  if backend != "cuda" and not shape.is_attention and not shape.is_edge]
    if not usable:
        raise ValueError(
            f"kbench: '{backend}' has no {'hot ' if args.hot else ''}"
            f"{'int8 ' if is_int8 else ''}kernel for "
            f"{', '.join(shape.name for shape in shapes)}."
        )
    return [_with_workers(shape, args) for shape in usable]


def _with_workers(shape: Shape, args: argparse.Namespace) -> Shape:
    if args.workers is None:
        return shape
    num_workers = as_int("--workers", args.workers, 1, 4096, "kbench")
    if not shape.is_edge:
        raise ValueError(f"--workers: expected edges alone, got {shape.name} as well.")
    return replace(shape, fields={"num_workers": num_workers})


def _compare(args: argparse.Namespace) -> int:
    if len(args.kernels) != 3:
        args.refuse("compare: expected two files, A.jsonl and B.jsonl.")
    args.before, args.after = map(Path, args.kernels[1:])
    args.fail_on_slower = True
    records = [r for r in read_records(args.after) if "case" in r]
    wrong = [str(r["case"]) for r in records if r.get("correct") is False]
    failed = [str(r["case"]) for r in records if r.get("error")]
    for names, what in ((wrong, "wrong results"), (failed, "failed")):  # first: there may be nothing to compare
        if names:
            note(f"mimo-rt: error: {what} in {args.after}: {', '.join(names)}")
    return run_compare(args) or int(bool(wrong or failed))


def _repeat(shape: Shape, tokens: int, args: argparse.Namespace) -> str:
    """The command for this case alone."""
    parts = ["mimo-rt", "kbench"]
    if shape.model == "custom":
        parts += [shape.format, "--shape", shape.op]
    else:
        parts += ["--shape", shape.name]
    if not shape.is_edge:
        parts += ["--tokens", str(tokens)]
    parts += ["--device", _backend(args.device), "--seconds", f"{args.seconds:g}"]
    parts += ["--activations", "int8"] if args.activations == "int8" else []
    parts += ["--workers", str(args.workers)] if args.workers else []
    return shlex.join([*parts, *(["--hot"] if args.hot else []), "--json"])


def _print_results(results: list[KernelResult]) -> None:
    facts = machine_record()
    commit = facts["commit"] or "no commit"
    num_threads = results[0].measured.num_workers or 1
    threads = "1 thread" if num_threads == 1 else f"{num_threads} threads"
    where = results[0].device or f"{facts['machine']}, {threads}"
    reads = [r.read_gbs for r in results if r.read_gbs]
    read = f", read {max(reads):.2f} GB/s measured" if reads else ""
    if floors := [r.floor_us for r in results if r.floor_us]:
        read += f", an empty kernel {min(floors):.2f} us"
    print(f"mimo_rt kbench {facts['version']} ({commit}{'+' if facts['dirty'] else ''})  "
          f"{results[0].backend}  {where}{read}  {facts['date']}")
    if edges := [_edge_row(r) for r in results if r.num_hops]:
        header = ("case", "workers", "hops", "ns per hop", "p10..p90", "n", "token")
        print(format_table(edges, header))
    if rows := [_row(r) for r in results if not r.num_hops]:
        print(format_table(rows, ("case", "median us", "p10..p90", "n", "MB", "GB/s", "%read",
                                  "GFLOP/s", "%peak", "error/bound", "rms error", "x baseline")))
    if names := sorted({r.baseline for r in results if r.baseline}):
        print(f"baseline: {'; '.join(names)} (linear and bmm: of weights dequantised beforehand)")
    for text in sorted({r.baseline_note for r in results if r.baseline_note}):
        print(f"baseline: {text}")


def _edge_row(result: KernelResult) -> tuple[str, ...]:
    facts = (result.case, str(result.measured.num_workers), str(result.num_hops))
    m = result.measurement
    if m is None:
        return (*facts, "-", "-", "-", "WRONG")
    median, low, high = (1e9 * s / result.num_hops for s in (m.median_s, *m.quantiles_s()))
    return (*facts, f"{median:.1f}", f"{low:.1f}..{high:.1f}", str(len(m.times_s)), "right")


def _row(result: KernelResult) -> tuple[str, ...]:
    m = result.measurement
    error = f"{result.error_over_bound:.3g}"
    if m is None:
        return (result.case, "-", "-", "-", "-", "-", "-", "-", "-", f"{error} WRONG", "-", "-")
    low, high = m.quantiles_s()
    ratio = result.times_baseline
    gflops = m.num_flops / m.median_s / 1e9
    return (
        result.case, f"{m.median_s * 1e6:.1f}", f"{low * 1e6:.1f}..{high * 1e6:.1f}",
        str(len(m.times_s)), f"{m.num_bytes / 1e6:.2f}", f"{m.gbs:.2f}",
        f"{100 * m.gbs / result.read_gbs:.1f}", f"{gflops:.1f}",
        f"{100 * gflops / result.peak[0]:.1f}" if result.peak else "-", error,
        f"{result.relative_error:.2g}" if result.relative_error else "-",
        f"{ratio:.2f}" if ratio else "-",
    )


def _sizes(shape: Shape) -> str:
    fields = shape.cuda or shape.fields
    return ", ".join(f"{name} {value}" for name, value in fields.items() if name != "kernel")


def _token_list(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdigit() and 1 <= int(part) <= 4096 for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers in 1..4096 like 1,8,64, got '{text}'")
    return tuple(dict.fromkeys(map(int, parts)))
