"""Coding and agent prompts from the function headers of the Python standard library."""

from __future__ import annotations

import ast
import json
import random
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .prompts_functions import function_prompt

_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages",
            "__pycache__", "ensurepip", "pydoc_data", "distutils"}
_MAX_FILES = 2000
_MIN_DOC, _MAX_DOC = 40, 600  # characters

_ASK_FOR_CODE = (
    "Write a Python function `{header}`. {doc}",
    "Implement the following Python function and explain how it works.\n\n"
    "```python\n{code}\n```",
    "Please complete this Python function:\n\n```python\n{code}\n```",
    "I need a Python function called `{name}`. It should do this: {doc}\n"
    "Show the code and a short example of how to call it.",
    "Write unit tests for a Python function `{header}` with this description: {doc}",
    "How would you write `{name}` in Python? Description: {doc}",
)
_SYSTEM_TOOLS = (
    "You are an assistant that can call functions. Answer with the JSON of one or more function "
    'calls of the form {{"name": ..., "arguments": {{...}}}} and nothing else. '
    "If no function fits, say so.\n\nAvailable functions:\n{tools}"
)
_ASK_FOR_CALL = (
    "I would like to {task}. Use {values}.",
    "Please {task} with {values}.",
    "Can you {task}? The values are {values}.",
    "{task}, {values}. Then tell me what you did.",
)
_VALUES = ('"report.txt"', "42", '"Berlin"', "3.5", "true", '"https://example.org/a"', "[1, 2, 3]",
           '"2024-05-17"', '"alice@example.org"', "1000", '"hello world"', '{"limit": 10}')


@dataclass(frozen=True)
class Function:
    """A function of the standard library: its header and what its docstring says."""

    module: str
    name: str
    arguments: tuple[str, ...]
    doc: str

    @property
    def header(self) -> str:
        return f"{self.name}({', '.join(self.arguments)})"

    @property
    def code(self) -> str:
        doc = self.doc.replace("\n", "\n    ")
        return f'def {self.header}:\n    """{doc}\n    """\n'

    @property
    def summary(self) -> str:
        return self.doc.split("\n\n")[0].replace("\n", " ").strip()


def library_paths() -> list[Path]:
    """Source files of the standard library, without its tests and what is installed beside it."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(p for p in root.rglob("*.py") if not _SKIPPED & set(p.relative_to(root).parts))
    return paths[:_MAX_FILES]


@cache
def library_functions() -> tuple[Function, ...]:
    """Public functions with a docstring of moderate length, in the order of their files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, Function] = {}
    for path in library_paths():
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (function := _function(module, node)):
                found.setdefault(function.code, function)
    return tuple(found.values())


def _function(module: str, node: ast.FunctionDef) -> Function | None:
    doc = ast.get_docstring(node)
    if node.name.startswith("_") or doc is None or not _MIN_DOC <= len(doc) <= _MAX_DOC:
        return None
    if not doc.isascii() or '"""' in doc or "\\" in doc:
        return None
    arguments = [a for a in node.args.args if a.arg not in ("self", "cls")]
    names = tuple(ast.unparse(argument) for argument in arguments)
    return Function(module, node.name, names, doc.strip())


def _shuffled(seed: int, label: str) -> tuple[list[Function], random.Random]:
    rng = random.Random(f"{seed}/{label}")
    functions = list(library_functions())
    rng.shuffle(functions)
    return functions, rng


def coding_prompts(count: int, seed: int) -> list[dict[str, Any]]:
    """In turn: a small task as plain text, a request in a chat, a library header as plain text."""
    functions, rng = _shuffled(seed, "coding")
    headers = [f for f in functions if f.arguments]
    prompts: list[dict[str, Any]] = []
    for index in range(count):
        raw: dict[str, Any] = {"name": f"coding/{seed}/{index}"}
        if index % 3 == 0:
            raw["text"] = function_prompt(rng)
        elif index % 3 == 1:
            function = functions[index % len(functions)]
            request = rng.choice(_ASK_FOR_CODE).format(
                header=function.header,
                doc=function.summary,
                code=function.code,
                name=function.name,
            )
            raw["messages"] = [{"role": "user", "content": request}]
        else:
            raw["text"] = headers[index % len(headers)].code
        prompts.append(raw)
    return prompts


def agent_prompts(count: int, seed: int) -> list[dict[str, Any]]:
    """A list of functions as JSON in the system message, and a request that one of them serves."""
    functions, rng = _shuffled(seed, "agent")
    functions = [f for f in functions if 1 <= len(f.arguments) <= 5]
    prompts = []
    for index in range(count):
        chosen = rng.sample(functions, rng.randint(1, 3))
        tools = json.dumps([_schema(f) for f in chosen], indent=rng.choice([None, 2]))
        wanted = rng.choice(chosen)
        task = wanted.summary.rstrip(".")
        task = task[:1].lower() + task[1:]
        values = ", ".join(f"{a.split(':')[0]} = {rng.choice(_VALUES)}" for a in wanted.arguments)
        request = rng.choice(_ASK_FOR_CALL).format(task=task, values=values)
        messages = [
            {"role": "system", "content": _SYSTEM_TOOLS.format(tools=tools)},
            {"role": "user", "content": request},
        ]
        prompts.append({"name": f"agent/{seed}/{index}", "messages": messages})
    return prompts


def _schema(function: Function) -> dict[str, Any]:
    names = [argument.split(":")[0].strip() for argument in function.arguments]
    return {
        "name": f"{function.module}.{function.name}",
        "description": function.summary,
        "parameters": {
            "type": "object",
            "properties": {name: {"type": "string"} for name in names},
            "required": names,
        },
    }
