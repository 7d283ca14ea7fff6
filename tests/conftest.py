"""Builds the C++ test programs and lists each of their TEST_CASEs as a pytest test.

The build directory is kept between runs (build/tests-<sanitizers>), so only changed files are compiled again.
Tests in C++ are built and run in the background, beside those in Python; programs with sanitizers are built at the
lowest priority all the while.
"""

import collections
import concurrent.futures
import functools
import importlib.util
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


# What `device="auto"` means to the tests in Python: the fastest CPU backend, or "cuda", for tests of sessions
# (bench/gate_sessions.py).
DEVICE = os.environ.get("MIMO_RT_TEST_DEVICE", "cpu")

_ENVIRONMENT = dict(os.environ)  # tests in Python change theirs while those in C++ run
_APART = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
_running: set[subprocess.Popen] = set()
_has_ended = threading.Event()
_in_build_directory: dict[pathlib.Path, threading.Lock] = collections.defaultdict(threading.Lock)


def _run(command: list, *, niceness: int = 0, timeout: float | None = None) -> tuple[int, str]:
    """Exit status and output of a command, which a run that ends early does not leave behind."""
    if _has_ended.is_set():
        pytest.fail("the run has ended", pytrace=False)
    process = subprocess.Popen(["nice", "-n", str(niceness), *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, env=_ENVIRONMENT, cwd=ROOT, **_APART)
    _running.add(process)
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        _end(process)
        _running.discard(process)
    return process.returncode, output


def _end(process: subprocess.Popen):
    """Ends a command with all that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)


@functools.cache
def _built_objects() -> str:
    """CMakeFiles of the wheel's build, if the library's objects there are made of the files as they are, else "".

    In CI only: elsewhere files change, and programs would be linked now with these objects, now with their own.
    """
    if not os.environ.get("CI"):
        return ""
    for build in sorted((ROOT / "build").glob(f"cp{sys.version_info.major}{sys.version_info.minor}-*")):
        objects = [path.relative_to(build) for path in (build / "CMakeFiles").glob("mimo_rt_*.dir/**/*.cpp.o")]
        _, output = _run(["ninja", "-C", str(build), "-t", "deps", *map(str, objects)])
        headers = dict(re.findall(r"^(\S+): #deps \d+, .*\(VALID\)\n((?:    .*\n)*)", output, re.MULTILINE))
        if objects and all(_is_current(build, path, headers.get(str(path))) for path in objects):
            return str(build / "CMakeFiles")
    return ""


def _is_current(build: pathlib.Path, made: pathlib.Path, sources: str | None) -> bool:
    """Whether a file of a build is younger than those of this repository that it is made of. Compilers are as they were."""
    if sources is None:
        return False
    ours = [path for path in (build / line.strip() for line in sources.splitlines()) if ROOT in path.resolve().parents]
    made_at = (build / made).stat().st_mtime_ns
    return bool(ours) and all(path.is_file() and path.stat().st_mtime_ns < made_at for path in ours)


def build_cpp(targets: list[str], *, sanitize: str = "", niceness: int = 0,
              options: tuple[str, ...] = ()) -> pathlib.Path:
    """Configures, with CMake `options`, and builds C++ targets; returns the directory that holds the programs."""
    build = ROOT / "build" / f"tests-{(sanitize or 'release').replace(',', '-')}"
    for tool in ("cmake", "ninja"):
        if not shutil.which(tool, path=_ENVIRONMENT.get("PATH")):
            pytest.fail(f"{tool} not found: pip install '.[test]'")
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        "-DMIMO_RT_BUILD_TESTS=ON", "-DMIMO_RT_PRECOMPILE=ON",
        f"-DMIMO_RT_CUDA={'OFF' if sanitize else 'AUTO'}", "-DMIMO_RT_CUDA_ARCHITECTURES=90a-virtual",  # without ptxas
        f"-DMIMO_RT_REQUIRE_SIMDE={'ON' if os.environ.get('CI') else 'OFF'}",
        f"-DMIMO_RT_WERROR={'ON' if os.environ.get('CI') else 'OFF'}",
        f"-DMIMO_RT_SANITIZE={sanitize}", f"-DPython_EXECUTABLE={sys.executable}",
        "-DMIMO_RT_CUDA_OBJECTS=", f"-DMIMO_RT_BUILT_OBJECTS={'' if sanitize == 'thread' else _built_objects()}", *options,
    ]
    with _in_build_directory[build]:
        for command in (configure, ["cmake", "--build", str(build), "--target", *targets]):
            status, output = _run(command, niceness=niceness)
            if status:
                pytest.fail(f"{' '.join(command)}\n{output[-16000:]}", pytrace=False)
    return build / "tests" / "cpp"


def _with_sanitizers(item: pytest.Item) -> bool:
    return item.path.name == "test_sanitizers.py"


def pytest_collection_modifyitems(items):
    """pytest's hook: tests in Python come first, those that wait for a build last, those with sanitizers at the end."""
    items.sort(key=lambda item: (_with_sanitizers(item), isinstance(item, CppItem),
                                 "cpp_builder" in getattr(item, "fixturenames", ())))


_sanitized: dict[str, concurrent.futures.Future] = {}


def pytest_collection_finish(session):
    """pytest's hook: begins with the tests in C++ and to build the programs with sanitizers, if any test wants them."""
    if session.config.option.collectonly:
        return
    cases = [item for item in session.items if isinstance(item, CppItem)]
    if cases:
        CppItem.lane = CppLane(cases)
    wanting = next((item for item in session.items if _with_sanitizers(item)), None)
    if wanting is not None:
        builder = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        for sanitize, programs in wanting.module.PROGRAMS.items():
            _sanitized[sanitize] = builder.submit(build_cpp, programs, sanitize=sanitize, niceness=19)


def pytest_sessionfinish():
    """pytest's hook: a run that ends early leaves no build and no test behind."""
    if CppItem.lane:
        CppItem.lane.cancel()
    for future in _sanitized.values():
        future.cancel()
    _has_ended.set()
    for process in list(_running):
        _end(process)


class CppFile(pytest.File):
    """tests/cpp/test_x.cpp: one item per TEST_CASE."""

    def collect(self):
        for name in test_case_names(self.path.read_text()):
            yield CppItem.from_parent(self, name=name)


def test_case_names(source: str) -> list[str]:
    """Names of the TEST_CASEs of a C++ file; a name may be split into several literals."""
    cases = re.findall(r'^TEST_CASE\(\s*((?:"[^"]*"\s*)+)\)', source, re.MULTILINE)
    return ["".join(re.findall(r'"([^"]*)"', literals)) for literals in cases]


test_case_names.__test__ = False


class CppItem(pytest.Item):
    """One TEST_CASE of a C++ test program."""

    lane: "CppLane | None" = None

    def runtest(self):
        status, output = self.lane.result(self)
        if status:
            raise CppFailure(output)

    def repr_failure(self, excinfo):
        if isinstance(excinfo.value, CppFailure):
            return f"{excinfo.value}\nrepeat: build/tests-release/tests/cpp/{self.path.stem} '{self.name}'"
        return super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, 0, f"{self.path.stem}: {self.name}"


class CppFailure(Exception):
    """Output of a failed C++ test."""


class CppLane:
    """Runs the tests in C++ in the background, from the last to the first, until pytest comes to them."""

    def __init__(self, items: list[CppItem]):
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._programs = self._pool.submit(_build_programs)
        self._results = {item.nodeid: self._pool.submit(self._run, item) for item in reversed(items)}
        self._has_told = False

    def result(self, item: CppItem) -> tuple[int, str]:
        """Exit status and output of a test; one that has not begun runs now."""
        if self._programs.exception():
            if self._has_told:  # not for each of a thousand tests
                pytest.fail("the test programs are not there: see the first test in C++", pytrace=False)
            self._has_told = True
        future = self._results[item.nodeid]
        return self._run(item) if future.cancel() else future.result()

    def _run(self, item: CppItem) -> tuple[int, str]:
        return _run([self._programs.result() / item.path.stem, item.name], timeout=600)

    def cancel(self):
        """Lets no further test begin."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _build_programs() -> pathlib.Path:
    sources = sorted((ROOT / "tests" / "cpp").glob("test_*.cpp"))
    programs = build_cpp([path.stem for path in sources], niceness=5)
    for path in sources:  # no TEST_CASE may escape the collection
        _, listed = _run([programs / path.stem, "--list"])
        assert listed.splitlines() == test_case_names(path.read_text()), path
    return programs


def pytest_collect_file(parent, file_path):
    """pytest's hook: C++ test files are collected too."""
    if file_path.suffix == ".cpp" and file_path.name.startswith("test_"):
        return CppFile.from_parent(parent, path=file_path)
    return None


@pytest.fixture(scope="session")
def cpp_builder():
    """`build_cpp` for tests that look at other targets than the test programs."""
    return build_cpp


@pytest.fixture(scope="session")
def library_objects(cpp_builder):
    """`library_objects(target)`: the folder of an object library's objects, those that the test programs are linked with."""
    def folder(target: str) -> pathlib.Path:
        built = _built_objects()
        files = pathlib.Path(built) if built else cpp_builder([target]).parents[1] / "CMakeFiles"
        return files / f"{target}.dir"
    return folder


@pytest.fixture(scope="session")
def sanitized():
    """`sanitized(name)`: waits for the programs built with a sanitizer; returns their directory."""
    return lambda sanitize: _sanitized[sanitize].result()


def pytest_runtest_setup(item):
    """pytest's hook: leaves out what is about CPUs alone."""
    marker = item.get_closest_marker("cpu_only")
    if marker and DEVICE == "cuda":
        pytest.skip(f"not on a GPU: {marker.kwargs['reason']}")


@pytest.fixture(scope="session")
def device() -> str:
    """The device under test: what `device="auto"` means."""
    return DEVICE


@pytest.fixture(scope="session")
def write_model():
    """`write_model(path, **fields)`: writes a tiny model that every device takes, the CUDA engine among them."""
    from mimo_rt import _C
    from mimo_rt.checkpoints import write_tiny_checkpoint

    def write(path: pathlib.Path, **fields) -> pathlib.Path:
        model_dir = write_tiny_checkpoint(path, **{"preset": "multiples_of_32"} | fields)
        assert _C.cuda_weight_bytes(model_dir) > 0
        return model_dir

    return write


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="module")
def one_torch_thread():
    """torch computes on one thread: small products gain nothing from more, and other tests need the cores."""
    torch = pytest.importorskip("torch")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def load_bench_script():
    """`load_bench_script(name)`: the module bench/<name>.py, made anew."""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(autouse=True, scope="session")
def _clean_environment():
    """Settings of who runs the tests are not theirs, but for the cache and the device that "auto" means."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("MIMO_RT_") and name != "MIMO_RT_CACHE":
                patch.delenv(name)
        if DEVICE != "cpu":
            patch.setenv("MIMO_RT_BACKEND", DEVICE)
        yield
