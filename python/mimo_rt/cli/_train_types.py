"""Argument types of ``mimo-rt train``."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
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
    frequent, random = (int(part) for part in text.split(","))
    return frequent, random


def part(text: str) -> tuple[int, int]:
    index, count = (int(part) for part in text.split("/"))
    return index, count
