"""The structure of the source tree: who may include whom, how long files may be, what may not be written."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Folder -> folders it may include from (its own is always allowed). `mimo_rt` are the public headers.
ALLOWED = {
    "core": {"mimo_rt"},
    "checkpoint": {"mimo_rt", "core"},
    "plan": {"mimo_rt", "core", "weights"},
    "weights": {"mimo_rt", "core", "checkpoint"},
    "sampling": {"mimo_rt", "core"},
    "kv": {"mimo_rt", "core"},
    "ref": {"mimo_rt", "core", "plan", "weights", "kv", "sampling", "engine"},
    "cpu": {"mimo_rt", "core", "plan", "weights", "kv", "sampling", "engine"},
    "engine": {"mimo_rt", "core", "checkpoint", "plan", "weights", "kv", "sampling", "cpu", "ref", "cuda"},
    "python": {"mimo_rt"},
    "no_cuda": {"mimo_rt", "core", "cuda"},
    "cuda": {"mimo_rt", "core", "plan", "weights", "kv", "sampling", "engine"},
    "kbench": {"mimo_rt", "core", "plan", "weights", "sampling", "cpu", "cuda"},
}
# Executors see the engine only through the interfaces of a step and of a round.
ENGINE_HEADERS_FOR_EXECUTORS = {"engine/step.h", "engine/round.h"}
# Longer than the limit, each with its reason.
LONG_FILES: dict[str, int] = {}
MAX_LINES = {".cpp": 500, ".cu": 500, ".cuh": 300, ".h": 300, ".py": 300, ".cmake": 250, ".txt": 250}


def sources():
    """All source files: what git knows, or in an unpacked archive whatever is there."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True,
                                text=True, check=True)
        found = [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]
    else:
        found = [p for p in ROOT.rglob("*")
                 if p.is_file() and not {"build", "__pycache__"} & set(p.relative_to(ROOT).parts)]
    assert len(found) > 500  # of none every rule holds
    return found


def illegal_includes(folder: str, text: str) -> list[str]:
    """Includes in a file of csrc/<folder> that the dependency rules forbid."""
    bad = []
    for target in re.findall(r'#include [<"]([^>"]+)[>"]', text):
        first = target.split("/")[0]
        if "/" not in target or first not in ALLOWED and first != "mimo_rt":
            continue
        if first == folder or first in ALLOWED[folder]:
            if not (folder in ("ref", "cpu", "cuda") and first == "engine" and target not in ENGINE_HEADERS_FOR_EXECUTORS):
                continue
        bad.append(target)
    return bad


def test_includes_point_one_way():
    found = {}
    for path in sources():
        parts = path.relative_to(ROOT).parts
        if parts[0] == "csrc" and path.suffix in (".h", ".cpp", ".cu", ".cuh") and len(parts) > 2:
            bad = illegal_includes(parts[1], path.read_text())
            if bad:
                found[str(path.relative_to(ROOT))] = bad
        if parts[0] == "include":
            bad = [t for t in re.findall(r"#include <([^>]+)>", path.read_text()) if "/" in t and not t.startswith("mimo_rt/")]
            if bad:
                found[str(path)] = bad
    assert not found


def test_the_include_rule_sees_a_violation():
    assert illegal_includes("core", '#include "plan/task.h"') == ["plan/task.h"]
    assert illegal_includes("cpu", '#include "engine/engine_impl.h"') == ["engine/engine_impl.h"]
    assert not illegal_includes("cpu", '#include "engine/step.h"')
    assert illegal_includes("cuda", '#include "engine/engine_impl.h"') == ["engine/engine_impl.h"]


def test_files_are_small():
    too_long = {}
    for path in sources():
        limit = MAX_LINES.get(path.suffix)
        if limit and path.relative_to(ROOT).parts[0] in ("csrc", "include", "python", "tests", "bench"):
            lines = len(path.read_text().splitlines())
            if path.relative_to(ROOT).parts[0] == "tests":
                limit = LONG_FILES.get(str(path.relative_to(ROOT)), 500)
            if lines > limit:
                too_long[str(path.relative_to(ROOT))] = lines
    assert not too_long


def test_top_level_holds_only_what_was_agreed():
    allowed = {"CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "csrc", "include",
               "python", "tests", "bench", "third_party"}
    names = {path.relative_to(ROOT).parts[0] for path in sources()}
    assert {name for name in names if not name.startswith(".")} <= allowed


@pytest.mark.parametrize("folder", ["csrc", "include"])
def test_library_never_prints_or_aborts(folder):
    pattern = re.compile(r"std::(cout|cerr|clog)|\b(printf|fprintf|puts|abort|exit|assert)\s*\(")
    found = []
    for path in sources():
        if path.relative_to(ROOT).parts[0] == folder and path.suffix in (".h", ".cpp", ".cu", ".cuh"):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                code = line.split("//")[0].replace("static_assert", "").replace("_exit", "")
                if pattern.search(code):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found


def test_sources_cmake_lists_every_source(root):
    listed = (root / "csrc" / "sources.cmake").read_text()
    missing = [str(p.relative_to(root)) for p in sources()
               if p.suffix in (".cpp", ".cu") and p.relative_to(root).parts[0] == "csrc"
               and p.relative_to(root).parts[1] != "no_cuda"
               and str(p.relative_to(root)) not in listed]
    assert not missing
