"""Argument types of ``mimo-rt train``."""

from __future__ import annotations

import argparse
import math


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
    return value


def count_from_zero(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("expected at least 0")
    return value


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError("expected a number in (0, 1e6]")
    return value


def minutes(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError("expected a number of minutes from 0")
    return value


def decay(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError("expected a number in [0, 1)")
    return value


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError("expected a number in 0..2**63-1")
    return value


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def layer_ids(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def id_counts(text: str) -> tuple[int, int]:
    frequent, random = (count_from_zero(part) for part in text.split(","))
    return frequent, random


def part(text: str) -> tuple[int, int]:
    index, count = (int(part) for part in text.split("/"))
    return index, count
