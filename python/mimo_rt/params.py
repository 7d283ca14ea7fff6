"""Sampling parameters, under the names that vLLM uses, and the defaults a model recommends."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _C
from .errors import unknown_name
from .model_files import is_there
from .value_checks import SAMPLING_CHECKS, invalid_value

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
        logit_bias: {token id: number in [-100, 100]} to add to logits, before everything else;
            kept as sorted pairs. logprobs are reported without it.
        seed: 0 .. 2**64-1; None: a fresh random one, recorded in the result.
        stop: up to 16 strings of 1..1024 bytes; output ends before the first that appears.
        stop_token_ids: added to the model's end tokens.
        ignore_eos: the model's end tokens do not stop.
        logprobs: None: off; n in 0..20: the chosen token and the n most likely ones.
        include_stop_str_in_output: keep the stop string at the end of the text.
        draft_mode: where the session drafts: "off" decodes plainly, "fixed" verifies num_draft_tokens
            in every round (looked up in the text: where there are any), "adaptive" as many as pay.
            Never changes what the text is drawn from.
        num_draft_tokens: at most this many per round, 1..15; None: a whole block.
        draft_proposal: "argmax" or "sampled", how a draft model proposes when temperature > 0. With
            "argmax" the output is that of plain decoding with the same seed, token for token;
            with "sampled" a seed repeats it only when draft_mode is "fixed".
        want_rounds: keep what every round drafted and accepted, in ``result.stats.draft``.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    include_stop_str_in_output: bool = False
    draft_mode: str = "adaptive"
    num_draft_tokens: int | None = None
    draft_proposal: str = "argmax"
    want_rounds: bool = False

    def __init__(self, **arguments: Any) -> None:
        values = {field.name: field.default for field in dataclasses.fields(SamplingParams)}
        values |= resolve_names("SamplingParams", arguments, values)
        for name, value in values.items():
            object.__setattr__(self, name, SAMPLING_CHECKS[name](name, value))

    def replace(self, **arguments: Any) -> SamplingParams:
        """A copy with some fields changed; same names and errors as the constructor."""
        return SamplingParams(**{**vars(self), **resolve_names("SamplingParams", arguments)})


@dataclass(frozen=True)
class GenerationDefaults:
    """The sampling fields of generation_config.json. Its end tokens are part of `ModelConfig`."""

    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def chosen(cls, model_dir: Path, generation_config: str) -> GenerationDefaults:
        """As the session's argument ``generation_config`` says: "auto" or "none"."""
        if generation_config not in ("auto", "none"):
            raise invalid_value(
                "generation_config", "'auto' or 'none'", generation_config, "Session"
            )
        return cls() if generation_config == "none" else cls.from_directory(model_dir)

    @classmethod
    def from_directory(cls, model_dir: Path) -> GenerationDefaults:
        """Read the file if there is one.

        ``do_sample: false`` means temperature 0. Fields that mimo_rt has no counterpart for are
        ignored: the file is written for several engines.

        Raises:
            BadFormatError: not JSON, or a value outside its range; names the field.
            IoError: a link that leads nowhere.
        """
        path = model_dir / "generation_config.json"
        if not is_there(path):
            return cls()
        fields = read_json_object(path)
        sampling = {name: fields[name] for name in _NEUTRAL if fields.get(name) is not None}
        if fields.get("do_sample") is False:
            sampling["temperature"] = 0.0
        try:
            SamplingParams(**sampling)
        except _C.MimoRtError as error:
            raise _C.BadFormatError(f"[{path}] {error}") from None
        return cls(sampling)


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
        raise invalid_value("params", "a SamplingParams", params, where)
    return (params or SamplingParams()).replace(**resolve_names(where, arguments))


def core_options(
    params: SamplingParams, defaults: GenerationDefaults, seed: int, eos_token_ids: Iterable[int]
) -> Any:
    """The extension module's GenerateOptions. ``eos_token_ids``: those the engine does not know."""
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
        logit_bias=[_C.TokenBias(token_id, bias) for token_id, bias in params.logit_bias],
    )
    draft = _C.DraftOptions(
        mode=_C.DraftOptions.Mode.__members__[params.draft_mode],
        num_draft_tokens=params.num_draft_tokens or 0,
        proposal=_C.DraftOptions.Proposal.__members__[params.draft_proposal],
    )
    return _C.GenerateOptions(
        sampling=sampling,
        draft=draft,
        max_tokens=params.max_tokens or 0,
        min_tokens=params.min_tokens,
        stop_token_ids=[*params.stop_token_ids, *eos_token_ids],
        ignore_eos=params.ignore_eos,
        stop=list(params.stop),
        include_stop_str_in_output=params.include_stop_str_in_output,
        want_rounds=params.want_rounds,
    )


def fresh_seed() -> int:
    """53 bits, so that a JSON reader which keeps numbers as doubles gets the exact seed."""
    return int.from_bytes(os.urandom(7), "little") >> 3


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
