"""Checks of single values that users pass: ranges and types, with errors that name the field."""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Sequence
from typing import Any

from . import _C

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_BYTES = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 100


def invalid_value(name: str, expected: str, value: Any, where: str = "SamplingParams") -> Exception:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return _C.InvalidArgumentError(f"[{where}] {name}: expected {expected}, got {shown}.")


def as_int(name: str, value: Any, low: int, high: int, where: str = "SamplingParams") -> int:
    """``value`` as an int in [low, high]; numpy integers pass, bools and floats do not."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise invalid_value(name, "an integer", value, where) from None
    if not low <= number <= high:
        raise invalid_value(name, f"an integer in {low}..{high}", value, where)
    return number


def as_number(name: str, value: Any, low: float, high: float, where: str) -> float:
    """``value`` as a float in (low, high]."""
    number = _float32(value)
    if not low < number <= high:
        raise invalid_value(name, f"a number in ({low:g}, {high:g}]", value, where)
    return float(value)


def as_list(name: str, value: Any, where: str) -> list[Any]:
    """``value`` as a list; a text or a dict is none."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise invalid_value(name, "a list", value, where)
    return list(value)


def as_flag(name: str, value: Any, where: str = "SamplingParams") -> bool:
    """``value`` if it is True or False; nothing else passes for one."""
    if not isinstance(value, bool):
        raise invalid_value(name, "True or False", value, where)
    return value


def _float32(value: Any) -> float:
    """``value`` as the core will see it; NaN for what is no finite number there."""
    try:
        number = float("nan") if isinstance(value, (bool, str)) else float(value)
        return struct.unpack("f", struct.pack("f", number))[0]
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def _integer(low: int, high: int, optional: bool = False) -> Any:
    def check(name: str, value: Any) -> int | None:
        return None if optional and value is None else as_int(name, value, low, high)

    return check


def _number(text: str, accepts: Any) -> Any:
    def check(name: str, value: Any) -> float | None:
        if value is None:
            return None
        number = _float32(value)
        if not (math.isfinite(number) and accepts(number)):
            raise invalid_value(name, text, value)
        return float(value)

    return check


def _as_tuple(name: str, expected: str, value: Any) -> tuple[Any, ...]:
    try:
        return () if value is None else tuple(value)
    except TypeError:
        raise invalid_value(name, expected, value) from None


def _stops(name: str, value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else _as_tuple(name, "a string or a list", value)
    if len(strings) > MAX_STOP_STRINGS:
        raise invalid_value(name, f"at most {MAX_STOP_STRINGS} strings", len(strings))
    for string in strings:
        if not isinstance(string, str):
            raise invalid_value(name, "strings", string)
        try:
            num_bytes = len(string.encode())
        except UnicodeEncodeError:
            raise invalid_value(name, "valid Unicode", string) from None
        if not 1 <= num_bytes <= MAX_STOP_STRING_BYTES:
            raise invalid_value(name, f"1..{MAX_STOP_STRING_BYTES} bytes", string)
    return strings


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    ids = _as_tuple(name, "a list of token ids", value)
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise invalid_value(name, f"at most {MAX_STOP_TOKEN_IDS} ids", len(ids))
    return tuple(as_int(name, token_id, 0, 2**31 - 1) for token_id in ids)


def _logit_bias(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    try:
        pairs = list(({} if value is None else dict(value)).items())
    except (TypeError, ValueError):
        raise invalid_value(name, "a dict of token id to number", value) from None
    biases = {}
    for token_id, bias in pairs:
        number = _float32(bias)
        if not -MAX_LOGIT_BIAS <= number <= MAX_LOGIT_BIAS:
            expected = f"numbers in {-MAX_LOGIT_BIAS}..{MAX_LOGIT_BIAS}"
            raise invalid_value(name, expected, {token_id: bias})
        biases[as_int(name, token_id, 0, 2**31 - 1)] = float(bias)
    return tuple(sorted(biases.items()))


def _one_of(*choices: str) -> Any:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise invalid_value(name, " or ".join(map(repr, choices)), value)
        return value

    return check


SAMPLING_CHECKS = {
    "max_tokens": _integer(1, 2**31 - 1, optional=True),
    "min_tokens": _integer(0, 2**31 - 1),
    "temperature": _number("a number >= 0", lambda x: x >= 0),
    "top_k": _integer(-1, 2**31 - 1, optional=True),
    "top_p": _number("a number in (0, 1]", lambda x: 0 < x <= 1),
    "min_p": _number("a number in [0, 1)", lambda x: 0 <= x < 1),
    "repetition_penalty": _number("a number > 0", lambda x: x > 0),
    "logit_bias": _logit_bias,
    "seed": _integer(0, 2**64 - 1, optional=True),
    "stop": _stops,
    "stop_token_ids": token_ids,
    "ignore_eos": as_flag,
    "logprobs": _integer(0, 20, optional=True),
    "include_stop_str_in_output": as_flag,
    "draft_mode": _one_of("off", "fixed", "adaptive"),
    "num_draft_tokens": _integer(1, 15, optional=True),
    "draft_proposal": _one_of("argmax", "sampled"),
    "want_rounds": as_flag,
}
