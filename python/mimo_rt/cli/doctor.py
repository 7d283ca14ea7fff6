"""``mimo-rt doctor``: what this machine can run, and a self-test; made to be pasted into issues."""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import _C, __version__
from . import _draft_check, _machine
from ._options import add_backend_options
from .cache import cache_summary
from ._output import format_bytes

# Largest relative difference of logits (L2) between the serial reference and the kernels. Both
# round activations to BF16 (2**-8); a sum in another precision flips some of these roundings. A
# sound build shows 1.6e-3 on the tiny model, one key less in the windows 2.8e-2, one wrong FP8
# block scale 0.11.
_MAX_RELATIVE_ERROR = 2.0**-7


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "doctor", parents=[common], help="check this machine and a model", allow_abbrev=False,
        description="Describe the environment, run a self-test on a tiny random model and, "
        "if given, check a checkpoint. Exit code 1 when a check fails.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="checkpoint directory")
    parser.add_argument("--draft", type=Path, metavar="DIR",
                        help="check this DFlash draft for MODEL (default: MODEL/dflash)")
    add_backend_options(parser)
    parser.set_defaults(run=run, refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    if args.draft is not None and not args.model:
        args.refuse("--draft needs MODEL, the model that it drafts for.")
    report = _Report()
    _environment()
    report.section("backends")
    for backend in _C.list_backends():
        state = "available" if backend.available else "not available"
        report.line(backend.name, f"{state}: {backend.reason}")
    report.section("checks")
    report.check("backend", lambda: _C.resolve_backend(args.device))
    report.check("self-test", lambda: _self_test(args))
    if args.model:
        _check_model(report, args)
    print(f"\n{report.summary()}")
    return 0 if report.num_failed == 0 else 1


def _check_model(report: _Report, args: argparse.Namespace) -> None:
    model = args.model
    checks = {"tensors": _check_tensors, "text files": _check_text, "memory": _check_memory}
    if any(backend.name == "cuda" and backend.available for backend in _C.list_backends()):
        checks["GPU memory"] = functools.partial(_check_gpu_memory, args=args)
    if not report.check("config", lambda: _check_config(model)):
        for name in checks:  # each needs the config: it would only repeat the message
            report.line(name, "skipped: no config")
        return
    sound = [report.check(name, functools.partial(check, model)) for name, check in checks.items()]
    draft = _draft_check.draft_directory(args)
    if draft is None:
        report.line("draft", "no model (MODEL/dflash); drafts are looked up in the text")
        return
    is_sound = report.check("draft", lambda: _draft_check.check_draft_config(model, draft))
    if is_sound and all(sound):
        for name, check in (("draft logits", _draft_check.check_draft_logits),
                            ("acceptance", _draft_check.check_acceptance)):
            report.check(name, functools.partial(check, model, draft, args))


class _Report:
    """Prints lines as the checks go, and remembers what did not pass."""

    def __init__(self) -> None:
        self._failed: list[str] = []
        self._remarks: list[str] = []

    def section(self, name: str) -> None:
        print(f"\n{name}")

    def line(self, name: str, text: str) -> None:
        print(f"  {name:<18}{text}", flush=True)

    def check(self, name: str, call: Callable[[], str | _draft_check.Remark]) -> bool:
        try:
            outcome = call()
            if isinstance(outcome, str):
                self.line(name, f"ok: {outcome}")
            else:
                self.line(name, f"{outcome.state}: {outcome.text}")
                self._remarks.append(f"{outcome.state}: {name}")
            return True
        except Exception as error:  # every failure belongs into the report
            self._failed.append(name)
            kind = getattr(error, "code", "") or type(error).__name__
            self.line(name, f"FAILED ({kind}): {' '.join(str(error).split())}")
            return False

    @property
    def num_failed(self) -> int:
        return len(self._failed)

    def summary(self) -> str:
        if self._failed:
            return f"FAILED: {', '.join(self._failed)}"
        if self._remarks:
            return f"no check failed; {', '.join(self._remarks)}"
        return "all checks passed"


def _environment() -> None:
    facts = _machine.machine_record()
    memory = format_bytes(facts["memory_bytes"])
    available = _machine.available_memory_bytes()
    if available is not None:
        memory += f", {format_bytes(available)} available"
    lines = {
        "mimo_rt": f"{__version__}, commit {facts['commit'] or 'unknown'}"
        f"{' (changed)' if facts['dirty'] else ''}",
        "python": facts["python"],
        "packages": ", ".join(f"{name} {_package(name)}" for name in
                              ("numpy", "tokenizers", "jinja2", "gguf")),
        "kernel": facts["kernel"],
        "processor": facts["machine"],
        "usable cores": f"{facts['num_usable_cores']} (cgroup: {_machine.cgroup_cpu_limit()})",
        "memory": f"{memory} (cgroup: {_machine.cgroup_memory_limit()})",
        "huge pages": _machine.huge_pages(),
        "packed cache": _packed_cache(),
    }
    print("environment")
    for name, text in lines.items():
        print(f"  {name:<18}{text}")


def _packed_cache() -> str:
    directory = _C.packed_cache_directory("auto")
    try:
        return f"{cache_summary(_C.list_packed_cache(directory))} ({directory})"
    except _C.IoError as error:
        return str(error)


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _self_test(args: argparse.Namespace) -> str:
    """The tiny model on the float64 reference and on the chosen backend must agree."""
    import numpy as np

    from ..checkpoints import write_tiny_checkpoint
    from ..session import Session

    ids = list(range(1, 25))
    with tempfile.TemporaryDirectory(prefix="mimo_rt-doctor-") as parent:
        preset = "multiples_of_32" if _C.resolve_backend(args.device) == "cuda" else "pro_fp4"
        model_dir = write_tiny_checkpoint(Path(parent) / "tiny", preset=preset, seed=1)
        with Session(model_dir, device="ref", num_threads=1,
                     activations=args.activations) as reference:
            expected = reference.logits(ids)
        with Session(model_dir, device=args.device, num_threads=args.threads,
                     pin_threads=not args.no_pin, activations=args.activations,
                     use_mmap=False if args.no_mmap else None) as session:
            logits = session.logits(ids)
            backend = session.backend
            if args.activations != "bf16":
                backend += f" with {args.activations} activations"
            result = session.generate(ids, max_tokens=8, temperature=0.0, ignore_eos=True)
            notes = "".join(f"; note: {text}" for text in session.notes)
    if not np.isfinite(logits).all():
        raise _C.InternalError(f"[doctor] {backend}: expected finite logits, got NaN or infinity.")
    error = float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))
    if error > _MAX_RELATIVE_ERROR:
        raise _C.InternalError(
            f"[doctor] {backend} against ref: expected a relative error of at most "
            f"{_MAX_RELATIVE_ERROR:.3g}, got {error:.3g}."
        )
    num_tokens = result.usage.completion_tokens
    if backend.startswith("ref"):  # an error of 0 would only say that it repeats itself
        return f"ref repeats itself (no other backend was compared); {num_tokens} tokens generated"
    return (
        f"{backend} against ref: relative error {error:.1e}; {num_tokens} tokens generated{notes}"
    )


def _check_config(model: str) -> str:
    config = _C.ModelConfig.from_directory(model)
    return f"{config.model_type}, {config.num_layers} layers, hidden {config.hidden_size}"


def _check_tensors(model: str) -> str:
    from ._scan import scan_scales

    checkpoint = _C.Checkpoint.open(model)
    checkpoint.validate(_C.ModelConfig.from_directory(model))
    tensors = checkpoint.tensors
    size = format_bytes(sum(tensor.num_bytes for tensor in tensors))
    return f"{len(tensors)} tensors, {size}, {scan_scales(model, tensors)} scale tensors finite"


def _check_text(model: str) -> str:
    from ..chat_template import ChatTemplate
    from ..params import GenerationDefaults
    from ..tokenizer import Tokenizer

    directory = Path(model)
    GenerationDefaults.from_directory(directory)
    tokenizer = Tokenizer.from_directory(directory)
    if tokenizer is None:
        return "no tokenizer.json: token ids only"
    sample = "Hello, 世界! 123"
    decoded = tokenizer.decode(tokenizer.encode(sample, add_special_tokens=False))
    round_trip = "round trip exact" if decoded == sample else "round trip not exact"
    has_template = ChatTemplate.from_directory(directory) is not None
    return f"tokenizer {round_trip}, chat template {'present' if has_template else 'absent'}"


def _check_memory(model: str) -> str:
    tensors = _C.Checkpoint.open(model).tensors
    # Packing keeps the formats' sizes; only F16 becomes F32, the smallest type that holds it.
    needed = sum(tensor.num_bytes * (2 if tensor.dtype == "f16" else 1) for tensor in tensors)
    available = _machine.usable_memory_bytes()
    if available is not None and needed > available:
        raise _C.OutOfMemoryError(
            f"[doctor] weights: expected at most {format_bytes(available)} of free memory, "
            f"need about {format_bytes(needed)}."
        )
    return f"weights need about {format_bytes(needed)}"


def _check_gpu_memory(model: str, args: argparse.Namespace) -> str | _draft_check.Remark:
    """A GPU that has no room, or a model that it does not take, is a fault where the GPU is asked for."""
    try:
        needed = _C.cuda_weight_bytes(model, "auto" if args.draft is None else str(args.draft))
        free = _C.free_gpu_bytes()
        if needed > free:
            raise _C.OutOfMemoryError(
                f"[doctor] weights: expected at most {format_bytes(free)} of free GPU memory, "
                f"need {format_bytes(needed)}."
            )
    except (_C.OutOfMemoryError, _C.UnsupportedShapeError) as error:
        if _C.resolve_backend(args.device) == "cuda":
            raise
        return _draft_check.Remark("WARNING", f"not for device 'cuda': {error}")
    return (
        f"weights need {format_bytes(needed)} of {format_bytes(free)} that are free; keys and "
        "values of sessions come on top"
    )
