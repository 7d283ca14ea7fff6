"""Importing the package is quick, silent and light; C++ programs find what they need."""

import ast
import inspect
import pathlib
import pickle
import re
import subprocess
import sys
import time

import mimo_rt
from mimo_rt import _C

# What an import must not bring: they are heavy, and most uses do not need them.
HEAVY = ("torch", "tokenizers", "jinja2", "numpy", "transformers", "gguf", "asyncio.runners")

PROBE = """
import sys, threading, time
begin = time.perf_counter()
import mimo_rt
seconds = time.perf_counter() - begin
print([seconds, threading.active_count(), len(__import__('os').listdir('/proc/self/task')),
       sorted(set({heavy}) & set(sys.modules))])
"""


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options
    )


def test_the_module_names_the_commit_it_was_built_from(root):
    assert re.fullmatch(r"[0-9a-f]{12,40}\+?" if (root / ".git").exists() else "", _C.__commit__)


def test_import_is_quick_silent_and_starts_no_thread():
    runs = [python("-c", PROBE.format(heavy=set(HEAVY))) for _ in range(3)]
    for run in runs:
        assert run.returncode == 0, run.stderr
        assert run.stderr == "" and run.stdout.count("\n") == 1
    results = [ast.literal_eval(run.stdout) for run in runs]
    assert min(result[0] for result in results) < 0.5
    for _, num_python_threads, num_threads, heavy in results:
        assert num_python_threads == num_threads == 1
        assert heavy == []


def test_the_probe_sees_a_heavy_module():
    control = PROBE.format(heavy=set(HEAVY)).replace("import mimo_rt", "import jinja2")
    assert ast.literal_eval(python("-c", control).stdout)[3] == ["jinja2"]


def test_public_names_exist():
    for name in mimo_rt.__all__:
        assert getattr(mimo_rt, name) is not None
    assert mimo_rt.__version__ == _C.__version__
    results = {"ScoreResult", "SessionStats", "TokenLogprob", "TokenLogprobs", "TokenStream"}
    assert results | {"EngineOptions"} <= set(mimo_rt.__all__)


def test_public_classes_and_properties_have_docstrings():
    for name in mimo_rt.__all__:
        value = getattr(mimo_rt, name)
        if not isinstance(value, type):
            continue
        assert value.__doc__, name
        if value.__module__.startswith("mimo_rt._C"):
            continue
        for member, content in inspect.getmembers(value):
            if not member.startswith("_") and (isinstance(content, property) or callable(content)):
                assert content.__doc__, f"{name}.{member}"


def test_every_error_of_the_core_is_a_class_of_the_package():
    in_core = {
        name
        for name, value in vars(_C).items()
        if isinstance(value, type) and issubclass(value, _C.MimoRtError)
    }
    assert in_core == set(mimo_rt.errors.__all__) and len(in_core) > 10
    for name in in_core - {"MimoRtError"}:
        error = getattr(mimo_rt.errors, name)
        assert error.code and issubclass(error, mimo_rt.MimoRtError)
        assert str(error("text")) == "text"
        again = pickle.loads(pickle.dumps(error("text")))
        assert type(again) is error and again.args == ("text",)


def test_backends_say_why_they_are_not_available():
    backends = {backend.name: backend for backend in mimo_rt.list_backends()}
    assert backends["ref"].available
    assert "cuda" in backends
    for backend in backends.values():
        assert backend.reason, f"{backend.name} has no reason or description"


def test_paths_for_cpp_builds():
    answer = python("-m", "mimo_rt", "--cmake-dir", "--include-dir").stdout.split()
    assert answer == [mimo_rt.get_cmake_dir(), mimo_rt.get_include()]
    flags = python("-m", "mimo_rt", "--cflags", "--ldflags").stdout
    assert f"-I{mimo_rt.get_include()}" in flags and f"-L{mimo_rt.get_lib_dir()}" in flags
    # What the answers point to is checked by building a program, in the test of the wheel.
    assert pathlib.Path(mimo_rt.get_include()).parent == pathlib.Path(_C.__file__).resolve().parent


def test_module_runs_the_command_line_tool():
    begin = time.perf_counter()
    run = python("-m", "mimo_rt", "--version")
    assert run.stdout == f"mimo-rt {mimo_rt.__version__}\n"
    assert time.perf_counter() - begin < 5
