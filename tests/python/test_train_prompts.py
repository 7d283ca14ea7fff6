"""Training prompts share nothing with the evaluation prompts, and composed tasks are right."""

import json
import random
import re

import pytest

from mimo_rt.train import prompts, prompts_functions

RUN = 8  # words


def text_of(raw):
    return raw.get("text") or " ".join(message["content"] for message in raw["messages"])


def runs(text):
    """All runs of RUN words, without case and punctuation."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


@pytest.fixture(scope="module")
def evaluation(root):
    """Every run of words of the evaluation prompts."""
    found = set()
    for path in sorted((root / "bench" / "prompts").glob("*.jsonl")):
        for raw in prompts.read_prompt_file(path):
            found |= runs(text_of(raw))
    assert len(found) > 10000
    return found


def shared(raws, evaluation):
    return sum(bool(runs(text_of(raw)) & evaluation) for raw in raws)


def test_no_training_prompt_shares_a_run_of_words(evaluation, root):
    """Planted evaluation prompts are all found."""
    raws = prompts.built_in_prompts(list(prompts.SETS), 400, 0)
    assert shared(raws, evaluation) == 0
    planted = prompts.read_prompt_file(root / "bench" / "prompts" / "math.jsonl")
    assert shared(planted, evaluation) == len(planted)


def test_evaluation_prompts_are_complete(root):
    counts = {path.stem: len(prompts.read_prompt_file(path)) for path in (root / "bench" / "prompts").glob("*.jsonl")}
    assert counts == {"coding": 164, "math": 10, "agent": 64, "chat": 60}


def test_examples_of_composed_tasks_are_right():
    """A reader's own evaluation of one family; the others are computed by the same code."""
    rng = random.Random(0)
    texts = {prompts_functions.function_prompt(rng) for _ in range(2000)}
    assert len(texts) > 1500
    for text in texts:
        compile(text + "    pass\n", "task", "exec")
    sums = [m for text in texts for m in re.findall(r">>> sum_of_even\((\[.*\])\)\n    (-?\d+)", text)]
    assert len(sums) >= 10
    assert all(sum(x for x in json.loads(numbers) if x % 2 == 0) == int(value) for numbers, value in sums)
