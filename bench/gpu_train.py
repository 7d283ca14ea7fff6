"""Trains the demo model's draft on a machine with a GPU, without a network, in calls of a few minutes.

    python bench/gpu_train.py --collect DIR                  here, without a GPU: checkpoint, prompts, answers as pieces
    python bench/gpu_train.py --pieces DIR --work WORK --minutes 5 --out OUT        on the GPU machine, again and again
    python bench/gpu_train.py --join OUT DRAFT               back here: the draft, for MODEL/dflash

The GPU machine needs Python, torch, numpy and safetensors: this package need not be built there (source_package.py).
What travels are pieces below 16 MiB, to it in folders DIR/part-1, … of at most 38 MB (102 MB in all for the demo), back
two for a draft of three layers, the curve and result.jsonl. A call stops in time; the next one with the same WORK goes
on: answers batch by batch, then training from its last checkpoint. Where WORK is lost, `--start DRAFT` begins at what
came back. OUT has the best draft so far from the first evaluation on, so that a call that is cut off or fails leaves
it; one that SIGTERM ends while it trains leaves a checkpoint as well.
Exit codes: 0 all steps done, 1 it failed or was ended, 2 wrong usage or something is missing, 3 no GPU, 4 out of time, call again.

Stages: `answers` (train/batch_answers.py: the target answers further prompts; the answers in the repo alone are learnt
by heart), `features` (of all answers, kept on the GPU), `train` (as many steps as fit into the time, by measured steps;
the cosine of the learning rate ends with them), `out` (the draft that was best on held-out answers of the engine, that
of --start included).

Prediction (no GPU has run it) for an H200: 4 TB/s; BF16 products of these sizes 300 TFLOP/s, FP32 40; a kernel launch
6 us. Sizes as in train_demo.py: 3 layers, hidden 576, 8192 ids, contexts filled up to 512 tokens.
  answers    2048 at a time: 0.5 TFLOP, lm_head in FP32, 25 GB of keys and values per step of one token each, 3000
             launches: 20 ms by the launches; 175 of 256 steps are used: 70,000 tokens/s, 4 M in a fifth of 5 minutes
  features   0.2 GFLOP and 10 MB per token, of which attention scores 4: 8 M tokens with prompts in 35 s, 47 GB in BF16
  train      per block 0.73 GFLOP, and 0.11 for its part of the context; 11 MB for scores (3 layers x 9 heads x 8 rows x
             520 keys x 100 bytes: a dozen passes), 2 for logits, 13 for norms, rotations and casts
             128 sequences x 64 blocks: 6.9 TFLOP in 23 ms, 213 GB in 53 ms, Muon 0.17 TFLOP but 550 launches: 5 ms
             12 steps/s, 100,000 blocks/s; 150 s of 5 minutes are left: 1850 steps, 15 M blocks, four for each token of
             the answers. Two CPU cores make 307,000 in 76 minutes
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
import time

import pieces
from demo_answers import demo_answers
from source_package import use_source_package

PROMPTS = pathlib.Path(__file__).resolve().parent / "prompts"  # of evaluation
SETS = "coding,math,agent,chat"
RUN = 8  # words in a row that no training prompt shares with them
FOLDER_BYTES = 38_000_000
MISSING = 2


def collect(args: argparse.Namespace) -> None:
    """Checkpoint, prompts, and the engine's answers to some of them."""
    from mimo_rt import _C
    from mimo_rt.checkpoints import ensure_demo_model
    from mimo_rt.text import ModelText

    directory = args.collect
    model = args.model or ensure_demo_model()
    checkpoint = [model / "config.json", *sorted(model.glob("tokenizer*.json")), *sorted(model.glob("*.safetensors*"))]
    files = {path.name: path.read_bytes() for path in checkpoint}
    files["prompts.jsonl"] = "".join(json.dumps(line) + "\n" for line in encoded_prompts(model, args)).encode()
    stop_ids = ModelText(model).end_token_ids(_C.ModelConfig.from_directory(str(model)))
    files["stop_ids.json"] = json.dumps(stop_ids).encode()
    files |= collected_answers(model, args.answers)
    manifest = pieces.cut(files, directory, FOLDER_BYTES)
    total = sum(piece["num_bytes"] for piece in manifest["pieces"])
    folders = sorted({piece["folder"] for piece in manifest["pieces"]})
    print(f"{directory}: {len(manifest['pieces'])} pieces, {total / 1e6:.1f} MB in {', '.join(folders)}")


def collected_answers(model: pathlib.Path, directory: pathlib.Path | None) -> dict[str, bytes]:
    """A directory of answers of this model; by default of those in the repo, if it is the demo."""
    from mimo_rt.train.answers_meta import META_FILE, check_target, checkpoint_digest

    digest = checkpoint_digest(model)
    if directory is None:
        return demo_answers(model) | {META_FILE: json.dumps({"checkpoint_digest": digest}).encode()}
    check_target(directory, digest)
    return {path.name: path.read_bytes() for path in (directory / META_FILE, *sorted(directory.glob("part-*.jsonl")))}


def join_collected(directory: pathlib.Path, target: pathlib.Path) -> None:
    """The files that `collect` cut.

    Raises:
        PiecesError: they do not say whose their answers are, and nobody here can.
    """
    from mimo_rt.train.answers_meta import META_FILE

    if META_FILE not in {path.name for path in pieces.join(directory, target)}:
        raise pieces.PiecesError(f"{directory}: pieces without {META_FILE}, of an older version: nothing says whose "
                                 "answers they hold. Collect again.")


def encoded_prompts(model: pathlib.Path, args: argparse.Namespace) -> list[list]:
    """[name, token ids] of the built-in prompts, each text once."""
    from mimo_rt.train.prompts import built_in_prompts, encode_prompts

    raws = built_in_prompts(args.prompts.split(","), args.per_set, 0)
    prompts, _ = encode_prompts(model, without_evaluation(raws))
    names = {}
    for prompt in prompts:
        names.setdefault(prompt.token_ids, prompt.name)
    return [[name, list(token_ids)] for token_ids, name in names.items()]


def without_evaluation(raws: list[dict]) -> list[dict]:
    """Prompts that share no run of RUN words with one of the evaluation prompts."""
    from mimo_rt.train.prompts import read_prompt_file

    found = {run for path in PROMPTS.glob("*.jsonl") for raw in read_prompt_file(path) for run in word_runs(raw)}
    return [raw for raw in raws if not word_runs(raw) & found]


def word_runs(raw: dict) -> set[tuple[str, ...]]:
    """All runs of RUN words of a prompt, without case and punctuation."""
    text = raw.get("text") or " ".join(message["content"] for message in raw["messages"])
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--collect", type=pathlib.Path, metavar="DIR", help="make the pieces and stop")
    what.add_argument("--pieces", type=pathlib.Path, metavar="DIR", help="train; the pieces, or folders with them")
    what.add_argument("--join", type=pathlib.Path, nargs=2, metavar=("OUT", "DRAFT"), help="put the draft together")
    group = parser.add_argument_group("collect")
    group.add_argument("--model", type=pathlib.Path, help="checkpoint (default: the demo model)")
    group.add_argument("--answers", type=pathlib.Path, help="of 'mimo-rt train generate' (default: those in the repo)")
    group.add_argument("--prompts", metavar="SETS", default=SETS, help=f"built-in sets (default {SETS})")
    group.add_argument("--per-set", type=int, default=6000, help="prompts per set (default 6000)")
    group = parser.add_argument_group("train")
    group.add_argument("--work", type=pathlib.Path, help="what calls leave for the next one")
    group.add_argument("--out", type=pathlib.Path, help="what comes back")
    group.add_argument("--minutes", type=float, default=5.0, help="of this call (default 5)")
    group.add_argument("--answer-share", type=float, default=0.2, help="of the minutes, for answers (default 0.2)")
    group.add_argument("--batch", type=int, default=2048, help="answers at a time")
    group.add_argument("--max-tokens", type=int, default=256, help="of an answer")
    group.add_argument("--steps", type=int, default=0, help="default: as many as fit")
    group.add_argument("--sequences", type=int, default=128, help="per step")
    group.add_argument("--anchors", type=int, default=64, help="per sequence and step")
    group.add_argument("--layers", type=int, default=3)
    group.add_argument("--target-layers", type=lambda text: tuple(map(int, text.split(","))), default=(),
                       metavar="LIST", help="captured layers (default: 5, evenly spread)")
    group.add_argument("--block-size", type=int, default=8)
    group.add_argument("--draft-vocab-size", type=int, default=8192, help="0: the whole vocabulary")
    group.add_argument("--gamma", type=float, default=1.5)
    group.add_argument("--lr", type=float, default=2e-3)
    group.add_argument("--validation", type=int, default=32, help="prompts held out")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--start", type=pathlib.Path, metavar="DRAFT", help="a finished draft to start at")
    group.add_argument("--torch-device", default="cuda")
    args = parser.parse_args(argv)
    if args.pieces and not (args.work and args.out):
        parser.error("--pieces needs --work and --out")
    if args.pieces and {path.resolve() for path in pieces.folders(args.pieces)} & {
            path.resolve() for path in pieces.folders(args.out)}:
        parser.error(f"--out {args.out}: results would replace the pieces in {args.pieces}. Use another folder")
    return args


def main(argv: list[str] | None = None) -> int:
    begin = time.monotonic()
    args = parse(argv)
    if not args.collect and "mimo_rt" not in sys.modules:
        use_source_package()
    from mimo_rt import _C

    try:
        if args.collect:
            collect(args)
            return 0
        if args.join:
            pieces.join(*args.join)
            print(f"{args.join[1]}: the draft. To use it: cp -r {args.join[1]} MODEL/dflash")
            return 0
        join_collected(args.pieces, args.work / "input")
        from gpu_train_run import run  # needs torch

        return run(args, begin)
    except (pieces.PiecesError, _C.MimoRtError) as error:
        print(f"gpu_train: {error}", file=sys.stderr)
        return MISSING


if __name__ == "__main__":
    sys.exit(main())
