"""Sampling parameters, under the names that vLLM uses, and the defaults a model recommends."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _C
from .errors import unknown_name

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_BYTES = 1024
MAX_STOP_TOKEN_IDS = 1024
_MAX_JSON_BYTES = 1 << 20
_ALIASES = {"max_new_tokens": "max_tokens", "num_logprobs": "logprobs"}
# Fields that generation_config.json may set, with the value that switches each of them off.
_NEUTRAL = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


@dataclass(frozen=True, init=False)
class SamplingParams:
    """How to choose tokens and when to stop. Unknown names are refused.

    A field that is None takes the model's recommendation (generation_config.json), and without
    one the neutral value. `max_new_tokens` is accepted for `max_tokens`.

    Attributes:
        max_tokens: upper limit, >= 1; None: until a stop or the end of the context.
        min_tokens: stop tokens are masked before this many tokens.
        temperature: >= 0; 0 takes the most likely token.
        top_k: keep this many tokens; 0 or -1: all.
        top_p: keep the smallest set of this probability, (0, 1].
        min_p: keep tokens with at least this fraction of the best one's probability, [0, 1).
        repetition_penalty: > 0; 1 is off; applies to prompt and output.
        seed: 0 .. 2**64-1; None: a fresh random one, recorded in the result.
        stop: up to 16 strings of 1..1024 bytes; output ends before the first that appears.
        stop_token_ids: added to the model's end tokens.
        ignore_eos: the model's end tokens do not stop.
        logprobs: None: off; n in 0..20: the chosen token and the n most likely ones.
        include_stop_str_in_output: keep the stop string at the end of the text.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    include_stop_str_in_output: bool = False

    def __init__(self, **arguments: Any) -> None:
        values = {field.name: field.default for field in dataclasses.fields(SamplingParams)}
        values |= resolve_names("SamplingParams", arguments, values)
        for name, value in values.items():
            object.__setattr__(self, name, _CHECKS[name](name, value))

    def replace(self, **arguments: Any) -> SamplingParams:
        """A copy with some fields changed; same names and errors as the constructor."""
        return SamplingParams(**{**vars(self), **resolve_names("SamplingParams", arguments)})


@dataclass(frozen=True)
class GenerationDefaults:
    """What generation_config.json says: sampling fields and the ids that end a text."""

    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_directory(cls, model_dir: Path) -> GenerationDefaults:
        """Read the file if there is one.

        ``do_sample: false`` means temperature 0. Fields that mimo_rt has no counterpart for are
        ignored: the file is written for several engines.

        Raises:
            BadFormatError: not JSON, or a value outside its range; names the field.
        """
        path = model_dir / "generation_config.json"
        if not path.is_file():
            return cls()
        fields = read_json_object(path)
        sampling = {name: fields[name] for name in _NEUTRAL if fields.get(name) is not None}
        if fields.get("do_sample") is False:
            sampling["temperature"] = 0.0
        eos = fields.get("eos_token_id")
        eos_ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
        try:
            SamplingParams(**sampling)
            return cls(sampling, _token_ids("eos_token_id", eos_ids))
        except _C.MimoRtError as error:
            raise _C.BadFormatError(f"[{path}] {error}") from None


def resolve_names(
    where: str, arguments: Mapping[str, Any], known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """``arguments`` with aliases resolved; TypeError for unknown names and for both of a pair."""
    names = known or {field.name for field in dataclasses.fields(SamplingParams)}
    resolved: dict[str, Any] = {}
    for name, value in arguments.items():
        target = _ALIASES.get(name, name)
        if target not in names:
            raise unknown_name(where, name, [*names, *_ALIASES])
        if target in resolved:
            raise TypeError(f"[{where}] '{target}' was given twice, once under an alias.")
        resolved[target] = value
    return resolved


def resolve_params(
    params: SamplingParams | None, arguments: Mapping[str, Any], where: str
) -> SamplingParams:
    """Keyword arguments win over the fields of ``params``."""
    if params is not None and not isinstance(params, SamplingParams):
        raise _invalid("params", "a SamplingParams", params, where)
    return (params or SamplingParams()).replace(**resolve_names(where, arguments))


def core_options(params: SamplingParams, defaults: GenerationDefaults, seed: int) -> Any:
    """The extension module's GenerateOptions."""
    chosen = {
        name: _first(getattr(params, name), defaults.sampling.get(name), neutral)
        for name, neutral in _NEUTRAL.items()
    }
    sampling = _C.SamplingParams(
        temperature=chosen["temperature"],
        sample_top_k=max(int(chosen["top_k"]), 0),
        sample_top_p=chosen["top_p"],
        min_p=chosen["min_p"],
        repetition_penalty=chosen["repetition_penalty"],
        seed=seed,
        num_logprobs=params.logprobs or 0,
        want_logprob=params.logprobs is not None,
    )
    eos_ids = () if params.ignore_eos else defaults.eos_token_ids
    return _C.GenerateOptions(
        sampling=sampling,
        max_tokens=params.max_tokens or 0,
        min_tokens=params.min_tokens,
        stop_token_ids=[*params.stop_token_ids, *eos_ids],
        ignore_eos=params.ignore_eos,
        stop=list(params.stop),
        include_stop_str_in_output=params.include_stop_str_in_output,
    )


def fresh_seed() -> int:
    """53 bits, so that a JSON reader which keeps numbers as doubles gets the exact seed."""
    return secrets.randbits(53)


def read_json_object(path: Path) -> dict[str, Any]:
    """A small JSON file whose top level is an object; BadFormatError says what is wrong."""
    size = path.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise _C.BadFormatError(f"[{path}] expected at most {_MAX_JSON_BYTES} bytes, got {size}.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _C.BadFormatError(f"[{path}] not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _C.BadFormatError(f"[{path}] expected a JSON object, got {type(value).__name__}.")
    return value


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _invalid(name: str, expected: str, value: Any, where: str = "SamplingParams") -> Exception:
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
        raise _invalid(name, "an integer", value, where) from None
    if not low <= number <= high:
        raise _invalid(name, f"an integer in {low}..{high}", value, where)
    return number


def as_number(name: str, value: Any, low: float, high: float, where: str) -> float:
    """``value`` as a float in (low, high]."""
    number = _float32(value)
    if not low < number <= high:
        raise _invalid(name, f"a number in ({low:g}, {high:g}]", value, where)
    return float(value)


def as_flag(name: str, value: Any, where: str = "SamplingParams") -> bool:
    """``value`` if it is True or False; nothing else passes for one."""
    if not isinstance(value, bool):
        raise _invalid(name, "True or False", value, where)
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
            raise _invalid(name, text, value)
        return float(value)

    return check


def _as_tuple(name: str, expected: str, value: Any) -> tuple[Any, ...]:
    try:
        return () if value is None else tuple(value)
    except TypeError:
        raise _invalid(name, expected, value) from None


def _stops(name: str, value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else _as_tuple(name, "a string or a list", value)
    if len(strings) > MAX_STOP_STRINGS:
        raise _invalid(name, f"at most {MAX_STOP_STRINGS} strings", len(strings))
    for string in strings:
        if not isinstance(string, str):
            raise _invalid(name, "strings", string)
        try:
            num_bytes = len(string.encode())
        except UnicodeEncodeError:
            raise _invalid(name, "valid Unicode", string) from None
        if not 1 <= num_bytes <= MAX_STOP_STRING_BYTES:
            raise _invalid(name, f"1..{MAX_STOP_STRING_BYTES} bytes", string)
    return strings


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    ids = _as_tuple(name, "a list of token ids", value)
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise _invalid(name, f"at most {MAX_STOP_TOKEN_IDS} ids", len(ids))
    return tuple(as_int(name, token_id, 0, 2**31 - 1) for token_id in ids)


_CHECKS = {
    "max_tokens": _integer(1, 2**31 - 1, optional=True),
    "min_tokens": _integer(0, 2**31 - 1),
    "temperature": _number("a number >= 0", lambda x: x >= 0),
    "top_k": _integer(-1, 2**31 - 1, optional=True),
    "top_p": _number("a number in (0, 1]", lambda x: 0 < x <= 1),
    "min_p": _number("a number in [0, 1)", lambda x: 0 <= x < 1),
    "repetition_penalty": _number("a number > 0", lambda x: x > 0),
    "seed": _integer(0, 2**64 - 1, optional=True),
    "stop": _stops,
    "stop_token_ids": _token_ids,
    "ignore_eos": as_flag,
    "logprobs": _integer(0, 20, optional=True),
    "include_stop_str_in_output": as_flag,
}
