"""Chat templates: messages to prompt text, by Jinja2 in a sandbox.

A template comes with the model, so it is treated as foreign code: it reaches no attribute of
Python objects beyond the harmless ones, changes nothing, and its `range` loops, its repeated or
padded strings and its output are limited. That keeps it from the machine and stops the usual
runaways; it is no complete guard against a template that is made to waste time or memory.
Whitespace rules, filters and globals are those of transformers: its templates render alike.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import _C
from .model_files import is_there
from .params import read_json_object
from .value_checks import as_list

MAX_MESSAGES = 4096
MAX_OUTPUT_CHARS = 16 << 20
MAX_RANGE_ITEMS = 100_000
_MAX_TEMPLATE_BYTES = 1 << 20
_MAX_REPEATED_ITEMS = 1 << 20
_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
_RESERVED_NAMES = frozenset({"messages", "tools", "add_generation_prompt", "range"})
_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str, source_name: str, tokens: Mapping[str, str]) -> None:
        self.source_name = source_name
        self._tokens = dict(tokens)
        self._template = _compile(source, source_name)

    @classmethod
    def from_directory(cls, model_dir: Path, *, has_tools: bool = False) -> ChatTemplate | None:
        """The template of a model, or None when it has none.

        Looks for chat_template.jinja, then the field `chat_template` of tokenizer_config.json,
        then chat_template.json. Of several named templates it takes "tool_use" when there are
        tools, else "default".
        """
        config_path = model_dir / "tokenizer_config.json"
        config = read_json_object(config_path) if is_there(config_path) else {}
        found = _find_source(model_dir, config)
        if found is None:
            return None
        source, source_name = found
        if isinstance(source, list):
            source = _named_template(source, source_name, has_tools)
        if not isinstance(source, str):
            raise _C.BadFormatError(
                f"[{source_name}] chat_template: expected a string, got {type(source).__name__}."
            )
        if len(source) > _MAX_TEMPLATE_BYTES:
            raise _C.BadFormatError(
                f"[{source_name}] chat_template: expected at most {_MAX_TEMPLATE_BYTES} "
                f"characters, got {len(source)}."
            )
        return cls(source, source_name, special_tokens(config))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text for ``messages``, each a dict with "role" and usually "content".

        Raises:
            InvalidArgumentError: bad messages or tools, or the template refused them.
            CapacityError: the output or a loop is too long.
        """
        check_messages(messages)
        values = {
            **self._tokens,
            **variables,
            "messages": [dict(message) for message in messages],
            "tools": as_list("tools", tools, "chat") if tools else None,
            "add_generation_prompt": add_generation_prompt,
            "range": _limited_range(),
        }
        return self._run(values)

    def _run(self, values: dict[str, Any]) -> str:
        from jinja2.exceptions import TemplateError

        parts: list[str] = []
        num_chars = 0
        try:
            for part in self._template.generate(values):
                num_chars += len(part)
                if num_chars > MAX_OUTPUT_CHARS:
                    raise _C.CapacityError(
                        f"[{self.source_name}] output: expected at most {MAX_OUTPUT_CHARS} "
                        "characters, got more."
                    )
                parts.append(part)
        except _C.MimoRtError:
            raise
        except TemplateError as error:
            raise _C.InvalidArgumentError(f"[{self.source_name}] {error.message}") from None
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError,
                RecursionError) as error:
            # What a template does with messages of a shape that it does not expect.
            raise _C.InvalidArgumentError(
                f"[{self.source_name}] the template failed on these messages: {error}"
            ) from None
        return "".join(parts)


def check_messages(messages: Any) -> None:
    """Raise InvalidArgumentError unless ``messages`` is a list of dicts with a "role" each."""
    is_list = isinstance(messages, Sequence) and not isinstance(messages, (str, bytes))
    if not is_list or not messages:
        found = f"an empty {type(messages).__name__}" if is_list else type(messages).__name__
        raise _C.InvalidArgumentError(
            f"[chat] messages: expected a list of at least one dict, got {found}."
        )
    if len(messages) > MAX_MESSAGES:
        raise _C.InvalidArgumentError(
            f"[chat] messages: expected at most {MAX_MESSAGES}, got {len(messages)}."
        )
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise _C.InvalidArgumentError(
                f"[chat] messages[{index}]: expected a dict with a string 'role', got {message!r}."
            )


def check_template_variables(variables: Any) -> dict[str, Any]:
    """``chat_template_kwargs`` as a dict, without names that have arguments of their own."""
    if variables is None:
        return {}
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        raise _C.InvalidArgumentError(
            "[chat] chat_template_kwargs: expected a dict with string keys, "
            f"got {type(variables).__name__}."
        )
    if taken := sorted(_RESERVED_NAMES & set(variables)):
        raise _C.InvalidArgumentError(
            f"[chat] chat_template_kwargs: expected no reserved name, got {', '.join(taken)}."
        )
    return dict(variables)


def _find_source(model_dir: Path, config: Mapping[str, Any]) -> tuple[Any, str] | None:
    path = model_dir / "chat_template.jinja"
    if is_there(path):
        if (size := path.stat().st_size) > _MAX_TEMPLATE_BYTES:
            raise _C.BadFormatError(
                f"[{path}] expected at most {_MAX_TEMPLATE_BYTES} bytes, got {size}."
            )
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except UnicodeDecodeError as error:
            raise _C.BadFormatError(f"[{path}] not UTF-8: {error}") from None
    if config.get("chat_template") is not None:
        return config["chat_template"], str(model_dir / "tokenizer_config.json")
    path = model_dir / "chat_template.json"
    if is_there(path) and (source := read_json_object(path).get("chat_template")) is not None:
        return source, str(path)
    return None


def _named_template(entries: list[Any], source_name: str, has_tools: bool) -> Any:
    named = {
        entry.get("name"): entry.get("template") for entry in entries if isinstance(entry, dict)
    }
    if has_tools and "tool_use" in named:
        return named["tool_use"]
    if "default" not in named:
        raise _C.BadFormatError(
            f"[{source_name}] chat_template: expected one named 'default', "
            f"got {sorted(map(str, named))}."
        )
    return named["default"]


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The texts of tokenizer_config.json's special tokens."""
    tokens = {}
    for name in _TOKEN_NAMES:
        value = config.get(name)
        if isinstance(value, dict):  # older files store an AddedToken
            value = value.get("content")
        # A template that names a token which the model lacks gets "", as from transformers.
        tokens[name] = value if isinstance(value, str) else ""
    return tokens


def _compile(source: str, source_name: str) -> Any:
    from jinja2.exceptions import TemplateSyntaxError

    try:
        return _environment().from_string(source)
    except TemplateSyntaxError as error:
        raise _C.BadFormatError(f"[{source_name}] line {error.lineno}: {error.message}") from None
    except RecursionError:
        raise _C.BadFormatError(f"[{source_name}] the template is nested too deeply.") from None


@functools.cache
def _environment() -> Any:
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def too_large(what: str) -> SecurityError:
        return SecurityError(f"{what}: expected at most {_MAX_REPEATED_ITEMS}, got more.")

    class Environment(ImmutableSandboxedEnvironment):
        # These two can make a huge value from a short template.
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**":
                raise SecurityError("the operator ** is not allowed in chat templates.")
            for value, count in ((left, right), (right, left)):
                is_sequence = isinstance(value, (str, bytes, list, tuple))
                if is_sequence and isinstance(count, int):
                    if len(value) * count > _MAX_REPEATED_ITEMS:
                        raise too_large("repeated sequence")
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            name = getattr(__obj, "__name__", "")
            if name in _PADDING_METHODS and isinstance(getattr(__obj, "__self__", None), str):
                numbers = [value for value in args if isinstance(value, int)]
                if any(value > _MAX_REPEATED_ITEMS for value in numbers):
                    raise too_large(f"argument of {name}()")
            return super().call(__context, __obj, *args, **kwargs)

    class Generation(Extension):
        """``{% generation %}`` marks the assistant's text for training; its body is kept."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _to_json
    for name in ("center", "format"):  # their width argument makes huge strings
        del environment.filters[name]
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers: no HTML escapes, which Jinja's own filter makes."""
    if indent is not None and indent > 16:
        raise ValueError(f"tojson: indent: expected at most 16, got {indent}.")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _limited_range() -> Any:
    """`range` with one allowance for the whole rendering: nested loops share it."""
    left = MAX_RANGE_ITEMS

    def limited(*arguments: int) -> range:
        nonlocal left
        items = range(*arguments)
        left -= len(items)
        if left < 0:
            raise _C.CapacityError(
                f"[chat template] range: expected at most {MAX_RANGE_ITEMS} iterations in all, "
                "got more."
            )
        return items

    return limited
