"""``mimo-rt train``: answers for training, a DFlash draft, MXFP4 experts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .. import _C, __version__
from ..loading import ProgressLine
from ..session import Session
from ._options import add_engine_options, engine_arguments
from ._output import note
from ._train_types import (
    count,
    count_from_zero,
    decay,
    id_counts,
    layer_ids,
    minutes,
    numbers,
    part,
    positive,
    seed,
)

_ALL_SETS = "coding,math,agent,chat"


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "train", help="train a draft or MXFP4 experts", allow_abbrev=False,
        description="Self-distillation: 'generate' lets the model answer prompts, 'draft' trains a "
        "DFlash draft on the answers, 'experts' trains MXFP4 experts towards the unquantised "
        "model. Every command goes on where it was interrupted. draft and experts need torch: "
        "pip install 'mimo_rt[train]'.",
    )
    commands = parser.add_subparsers(dest="train_command", metavar="WHAT", required=True)
    _add_generate(commands, common)
    _add_draft(commands, common)
    _add_experts(commands, common)


# -- generate


def _add_generate(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "generate", parents=[common], help="let the model answer prompts", allow_abbrev=False,
        description="Answers go to DATA as JSON lines, with prompts and seeds. Several processes "
        "may share the work with --part.",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint directory")
    parser.add_argument("data", metavar="DATA", type=Path, help="directory of the answers")
    parser.add_argument("--prompts", metavar="SETS", default=_ALL_SETS,
                        help=f"built-in sets (default {_ALL_SETS})")
    parser.add_argument("--per-set", type=count, default=250, metavar="N",
                        help="prompts of each set (default 250)")
    parser.add_argument("--prompt-file", type=Path, metavar="FILE.jsonl",
                        help="prompts of a file instead: name, and text or messages")
    parser.add_argument("--temperatures", type=numbers, default=(0.0, 0.8), metavar="LIST",
                        help="one answer at each (default 0,0.8)")
    parser.add_argument("--max-tokens", type=count, default=256, metavar="N",
                        help="tokens of an answer (default 256)")
    parser.add_argument("--max-prompt-tokens", type=count, default=512, metavar="N",
                        help="longer prompts are left out (default 512)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of prompts and answers")
    parser.add_argument("--streams", type=count, metavar="N",
                        help="answers at the same time (default 8 where sessions share steps: on the "
                        "CPU without a draft; else 1)")
    parser.add_argument("--part", type=part, default=(0, 1), metavar="I/N",
                        help="make the I-th of N equal parts (from 0)")
    add_engine_options(parser)
    parser.set_defaults(run=_run_generate)


def _run_generate(args: argparse.Namespace) -> int:
    from ..train import answers_meta, generations, prompts

    options = generations.GenerateOptions(
        temperatures=args.temperatures, max_tokens=args.max_tokens, seed=args.seed, part=args.part
    )
    if args.prompt_file:
        raws = prompts.read_prompt_file(args.prompt_file)
        source = args.prompt_file.name
    else:
        raws = prompts.built_in_prompts(args.prompts.split(","), args.per_set, args.seed)
        source = f"{args.prompts} x {args.per_set}"
    encoded, num_long = prompts.encode_prompts(
        Path(args.model), raws, max_tokens=args.max_prompt_tokens
    )
    if not encoded:
        raise _C.InvalidArgumentError("[train] expected prompts, got none that is short enough.")
    if num_long:
        note(f"{num_long} of {len(raws)} prompts are too long and are left out.")
    meta = {"model": Path(args.model).resolve().name, "prompts": source,
            "max_prompt_tokens": args.max_prompt_tokens, "mimo_rt": __version__,
            "activations": args.activations, "window_tokens": args.window_tokens,
            "checkpoint_digest": answers_meta.checkpoint_digest(Path(args.model)),
            "end_tokens_digest": answers_meta.end_tokens_digest(Path(args.model)),
            "prompts_digest": answers_meta.prompts_digest(encoded)}
    has_meta = (args.data / answers_meta.META_FILE).exists()
    if not has_meta and any(args.data.glob("part-*.jsonl")):
        note(f"{args.data} has answers, but no meta.json: they are taken as this model's own, "
             "made with these options.")
    max_context = args.max_prompt_tokens + args.max_tokens + 1
    line, progress = _Line(), generations.GenerationProgress()
    with Session(args.model, **engine_arguments(args), max_context=max_context) as session:
        num_streams = args.streams or (8 if session.engine.joins_steps else 1)
        sessions = [session, *(session.new_session() for _ in range(num_streams - 1))]
        num_new = generations.make_generations(
            sessions, encoded, args.data, options, meta=meta,
            progress=lambda *numbers: line(progress.text(*numbers)),
        )
    line.close()
    note(f"{num_new} new answers in {args.data}.")
    return 0


# -- draft


def _add_draft(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "draft", parents=[common], help="train a DFlash draft", allow_abbrev=False,
        description="The finished draft is RUN/dflash; copy it to MODEL/dflash to use it.",
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="checkpoint directory")
    parser.add_argument("data", metavar="DATA", type=Path, help="answers of 'train generate'")
    _add_run_options(parser, steps=1500, sequences=8, lr=2e-3, max_tokens=1024)
    group = parser.add_argument_group("draft")
    group.add_argument("--layers", type=count, default=3, metavar="N", help="default 3")
    group.add_argument("--target-layers", type=layer_ids, default=(), metavar="LIST",
                       help="captured layers (default: 5, evenly spread)")
    group.add_argument("--block-size", type=count, default=8, metavar="N",
                       help="anchor and masks (default 8)")
    group.add_argument("--window", type=count, default=1024, metavar="N",
                       help="context tokens that a row sees (default 1024)")
    group.add_argument("--intermediate-size", type=count_from_zero, default=0, metavar="N",
                       help="MLP width (default: the target's)")
    group.add_argument("--gamma", type=positive, default=4.0, metavar="X",
                       help="slot k weighs exp(-(k-1)/X) in the loss (default 4)")
    group.add_argument("--anchors", type=count, default=64, metavar="N",
                       help="blocks per sequence and step (default 64)")
    group.add_argument("--ema", type=decay, default=0.0, metavar="X",
                       help="export a running average of this decay, e.g. 0.99")
    vocabulary = group.add_mutually_exclusive_group()
    vocabulary.add_argument("--softmax-ids", type=id_counts, default=(0, 0), metavar="F,R",
                            help="estimate the softmax by the F most frequent and R random ids")
    vocabulary.add_argument("--draft-vocab-size", type=count_from_zero, default=0, metavar="N",
                            help="propose the N most frequent ids of the answers only")
    group.add_argument("--start", type=Path, metavar="DRAFT",
                       help="start at a finished draft (default: random weights)")
    group.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                       help="of matrix products (default auto: bf16 where it is faster)")
    group.add_argument("--no-feature-cache", action="store_true",
                       help="on a CPU: run the target in every epoch instead of keeping features")
    parser.set_defaults(run=_run_draft)


def _run_draft(args: argparse.Namespace) -> int:
    from ..train import require_torch

    require_torch()
    from ..train.draft_run import DraftSizes, train_draft
    from ..train.draft_trainer import DraftTrainingOptions

    sizes = DraftSizes(
        num_layers=args.layers, target_layer_ids=args.target_layers, block_size=args.block_size,
        window_tokens=args.window, intermediate_size=args.intermediate_size,
        loss_decay_gamma=args.gamma, draft_vocab_size=args.draft_vocab_size,
    )
    options = DraftTrainingOptions(
        num_steps=args.steps, sequences_per_step=args.sequences,
        anchors_per_sequence=args.anchors, lr=args.lr, ema_decay=args.ema,
        num_frequent_ids=args.softmax_ids[0], num_random_ids=args.softmax_ids[1],
        max_sequence_tokens=args.max_sequence_tokens, seed=args.seed,
    )
    line = _Line()
    draft_dir = train_draft(
        args.model, args.data, args.run_dir, sizes=sizes, options=options, run=_run_options(args),
        num_validation=args.validation, device=args.torch_device,
        precision=args.precision, start_dir=args.start,
        cache_features=not args.no_feature_cache, report=line,
    )
    line.close()
    return _finish(draft_dir, args)


# -- experts


def _add_experts(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "experts", parents=[common], help="train MXFP4 experts", allow_abbrev=False,
        description="The finished model is RUN/model: MODEL with other expert weights.",
    )
    parser.add_argument("teacher", metavar="TEACHER", type=Path, help="the unquantised model")
    parser.add_argument("model", metavar="MODEL", type=Path,
                        help="the same model with MXFP4 experts")
    parser.add_argument("data", metavar="DATA", type=Path, help="answers of 'train generate'")
    _add_run_options(parser, steps=200, sequences=4, lr=3e-5, max_tokens=512)
    parser.add_argument("--gptq-tokens", type=count_from_zero, default=32768, metavar="N",
                        help="tokens that GPTQ looks at for the start (default 32768); 0 starts at "
                        "the teacher's weights")
    parser.set_defaults(run=_run_experts)


def _run_experts(args: argparse.Namespace) -> int:
    from ..train import require_torch

    require_torch()
    from ..train.expert_run import train_experts
    from ..train.experts import ExpertTrainingOptions

    options = ExpertTrainingOptions(
        num_steps=args.steps, sequences_per_step=args.sequences, lr=args.lr,
        max_sequence_tokens=args.max_sequence_tokens, gptq_tokens=args.gptq_tokens, seed=args.seed,
    )
    line = _Line()
    model_dir = train_experts(
        args.teacher, args.model, args.data, args.run_dir, options=options,
        run=_run_options(args), num_validation=args.validation, device=args.torch_device,
        report=line,
    )
    line.close()
    return _finish(model_dir, args)


# -- shared


def _add_run_options(
    parser: argparse.ArgumentParser, *, steps: int, sequences: int, lr: float, max_tokens: int
) -> None:
    parser.add_argument("run_dir", metavar="RUN", type=Path,
                        help="directory of checkpoints, log, curve and result")
    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=count, default=steps, metavar="N", help=f"default {steps}")
    group.add_argument("--sequences", type=count, default=sequences, metavar="N",
                       help=f"sequences per step (default {sequences})")
    group.add_argument("--lr", type=positive, default=lr, metavar="X",
                       help=f"peak learning rate (default {lr:g})")
    group.add_argument("--max-sequence-tokens", type=count, default=max_tokens, metavar="N",
                       help=f"longer sequences are cut (default {max_tokens})")
    group.add_argument("--validation", type=count, default=16, metavar="N",
                       help="prompts held out (default 16)")
    group.add_argument("--eval-every", type=count, default=200, metavar="N",
                       help="steps between evaluations (default 200)")
    group.add_argument("--checkpoint-minutes", type=minutes, default=5.0, metavar="X",
                       help="work that an interruption may cost (default 5)")
    group.add_argument("--max-minutes", type=minutes, default=0.0, metavar="X",
                       help="stop after this time; the same command goes on later")
    group.add_argument("--torch-device", default="cpu", metavar="NAME", help="cpu or cuda")
    group.add_argument("--seed", type=seed, default=0, metavar="N", help="of the whole training")


def _run_options(args: argparse.Namespace) -> Any:
    from ..train.run import RunOptions

    return RunOptions(args.steps, args.eval_every, args.checkpoint_minutes, args.max_minutes)


def _finish(result: Path | None, args: argparse.Namespace) -> int:
    if result is None:
        note(f"Out of time; the same command goes on from {args.run_dir}.")
    else:
        note(f"Finished: {result}")
    return 0


class _Line(ProgressLine):
    """A progress line with any text; without a terminal a plain line from time to time."""

    _SECONDS = 60.0

    def __init__(self) -> None:
        super().__init__("")
        self._last_text = ""

    def __call__(self, text: str) -> None:  # type: ignore[override]
        import time

        now = time.monotonic()
        self._last_text = text
        if now < self._next_time:
            return
        if self._is_terminal:
            self._next_time = now + 0.1
            self._write(text)
        else:
            self._next_time = now + self._SECONDS
            note(text)

    def close(self) -> None:
        super().close()
        if self._last_text:
            print(self._last_text, file=sys.stderr, flush=True)
