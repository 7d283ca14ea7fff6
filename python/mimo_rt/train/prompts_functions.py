"""Small programming tasks with type hints and examples, composed from parts and checked by running.

The style is that of documented Python: a header, a description, and examples whose results are
computed here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Part:
    name: str
    words: str
    run: Callable[..., Any]


# Filters of integers; {k} is filled in with a number.
_FILTERS = (
    _Part("even", "the even numbers", lambda x, k: x % 2 == 0),
    _Part("odd", "the odd numbers", lambda x, k: x % 2 == 1),
    _Part("positive", "the numbers above zero", lambda x, k: x > 0),
    _Part("negative", "the numbers below zero", lambda x, k: x < 0),
    _Part("multiples_of_{k}", "the multiples of {k}", lambda x, k: x % k == 0),
    _Part("above_{k}", "the numbers greater than {k}", lambda x, k: x > k),
    _Part("two_digit", "the numbers with exactly two digits", lambda x, k: 10 <= abs(x) <= 99),
)
# What becomes of the filtered list, with its type.
_FOLDS = (
    (_Part("sum_of", "the sum of", sum), "int"),
    (_Part("count", "the number of times that the list holds", len), "int"),
    (_Part("largest", "the largest of", lambda v: max(v, default=None)), "Optional[int]"),
    (_Part("smallest", "the smallest of", lambda v: min(v, default=None)), "Optional[int]"),
    (_Part("squares_of", "the squares of", lambda v: [x * x for x in v]), "List[int]"),
    (_Part("sorted", "in ascending order", sorted), "List[int]"),
    (_Part("reversed", "in reverse order", lambda v: v[::-1]), "List[int]"),
    (_Part("running_totals_of", "the running totals of",
           lambda v: [sum(v[: i + 1]) for i in range(len(v))]), "List[int]"),
    (_Part("distinct", "without repetitions, in order of first appearance,",
           lambda v: list(dict.fromkeys(v))), "List[int]"),
)
_TEXT_STEPS = (
    _Part("uppercase", "in upper case", lambda s, k: s.upper()),
    _Part("reverse_words", "with its words in reverse order",
          lambda s, k: " ".join(s.split()[::-1])),
    _Part("reverse_each_word", "with the letters of every word reversed",
          lambda s, k: " ".join(w[::-1] for w in s.split())),
    _Part("drop_short_words", "without words shorter than {k} letters",
          lambda s, k: " ".join(w for w in s.split() if len(w) >= k)),
    _Part("initials", "reduced to the first letter of every word",
          lambda s, k: "".join(w[0] for w in s.split())),
    _Part("mask_after", "with every character after the first {k} replaced by a star",
          lambda s, k: s[:k] + "*" * max(len(s) - k, 0)),
    _Part("longest_word", "reduced to its longest word (the first one if there are several)",
          lambda s, k: max(s.split(), key=len)),
    _Part("join_with_dashes", "with dashes instead of spaces", lambda s, k: s.replace(" ", "-")),
    _Part("double_letters", "with every character written twice",
          lambda s, k: "".join(c * 2 for c in s)),
    _Part("rotate_left", "rotated to the left by {k} characters", lambda s, k: s[k:] + s[:k]),
)
_WORDS = ("river", "stone", "light", "a", "blue", "garden", "of", "window", "paper", "in", "night",
          "small", "engine", "summer", "to", "bridge")
_IMPORTS = "from typing import List, Optional\n\n\n"


def function_prompt(rng: random.Random) -> str:
    """A header with docstring and examples, ready to be continued."""
    return _number_task(rng) if rng.random() < 0.6 else _text_task(rng)


def _number_task(rng: random.Random) -> str:
    part = rng.choice(_FILTERS)
    fold, result = rng.choice(_FOLDS)
    k = rng.randint(3, 9)
    name = f"{fold.name}_{part.name}".format(k=k)
    words = part.words.format(k=k)
    if fold.words.startswith(("in ", "without ")):
        description = f"Return {words} of the given list {fold.words.rstrip(',')}."
    elif fold.name == "count":
        description = f"Count {words} in the given list."
    else:
        description = f"Return {fold.words} {words} in the given list."
    if result == "Optional[int]":
        description += " If there are none, return None."
    examples = []
    for _ in range(rng.randint(1, 3)):
        numbers = [rng.randint(-20, 120) for _ in range(rng.randint(3, 6))]
        value = fold.run([x for x in numbers if part.run(x, k)])
        examples.append((f"{name}({numbers})", value))
    header = f"def {name}(numbers: List[int]) -> {result}:"
    return _IMPORTS + _render(header, description, examples)


def _text_task(rng: random.Random) -> str:
    step = rng.choice(_TEXT_STEPS)
    k = rng.randint(2, 4)
    description = f"Return the given text {step.words.format(k=k)}."
    examples = []
    for _ in range(rng.randint(1, 3)):
        text = " ".join(rng.sample(_WORDS, rng.randint(2, 4)))
        examples.append((f"{step.name}({text!r})", step.run(text, k)))
    header = f"def {step.name}(text: str) -> str:"
    lead = "" if rng.random() < 0.7 else "\n"
    return lead + _render(header, description, examples)


def _render(header: str, description: str, examples: list[tuple[str, Any]]) -> str:
    lines = [header, f'    """ {description}']
    for call, value in examples:
        lines += [f"    >>> {call}"] + ([] if value is None else [f"    {value!r}"])
    return "\n".join([*lines, '    """', ""])
