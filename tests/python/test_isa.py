"""No code path may hit an illegal instruction: ISA code stays in its objects, and the forced ISA is the one that runs."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import mimo_rt._C as core
from mimo_rt.checkpoints.tiny import write_tiny_checkpoint

CPU_BACKENDS = [b.name for b in core.list_backends() if b.available and b.name.startswith("cpu")]


def symbols(path: pathlib.Path) -> str:
    """`nm` of an object file."""
    return subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout


# What each set of kernels is called -> (CMake target, folder of csrc/cpu).
COMPILED = {
    "avx2": ("mimo_rt_objects", "avx2"),
    "avx512": ("mimo_rt_objects", "avx512"),
    "avx512_bf16": ("mimo_rt_avx512_bf16", "avx512"),
}


def isa_objects(library_objects, isa: str) -> list[pathlib.Path]:
    target, folder = COMPILED[isa]
    return sorted((library_objects(target) / "csrc" / "cpu" / folder).glob("*.o"))


@pytest.mark.parametrize("isa", COMPILED)
def test_isa_objects_export_no_weak_symbol(library_objects, root, isa):
    """A weak symbol compiled with AVX flags could replace the baseline one at link time (build notes, ODR trap)."""
    objects = isa_objects(library_objects, isa)
    names = sorted(p.stem for p in (root / "csrc" / "cpu" / COMPILED[isa][1]).glob("*.cpp"))
    assert sorted(o.name.removesuffix(".cpp.o") for o in objects) == names and names
    lines = [line for o in objects for line in symbols(o).splitlines()]
    assert not [line for line in lines if re.search(r" [WVu] ", line)]
    exported = [line for line in lines if " T " in line]
    own = re.compile(rf"::{isa}::|kernels_{isa}(_int8)?\(\)")
    assert exported and all(own.search(line) for line in exported)


@pytest.mark.parametrize("isa", ["avx512", "avx512_bf16"])
def test_bf16_vbmi_and_vnni_stay_where_they_are_asked_for(library_objects, isa):
    """`cpu-avx512` also runs on processors that lack them."""
    found = set()
    for path in isa_objects(library_objects, isa):
        code = subprocess.run(["objdump", "-d", path], capture_output=True, text=True, check=True).stdout
        assert "%zmm" in code or path.name == "table.cpp.o"
        found |= set(re.findall(r"\b(vdpbf16ps|vcvtne2?ps2bf16|vpermb|vpermi2b|vpermt2b|vpmultishiftqb|vpdpbusds?)\b", code))
    if isa == "avx512":
        assert not found
    else:
        # The search sees them where they are.
        assert {"vdpbf16ps", "vpdpbusd"} <= found and found & {"vpermi2b", "vpermt2b"}


def test_isa_folders_hold_the_same_files(root):
    listing = {isa: {p.name for p in (root / "csrc" / "cpu" / isa).glob("*.cpp")} for isa in ("generic", "avx2", "avx512")}
    own = {"prepare_mxfp4.cpp", "gemm_mxfp4_many.cpp"}  # only AVX2 multiplies MXFP4 in integers
    assert listing["generic"] == listing["avx2"] - own == listing["avx512"]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_the_forced_backend_is_the_one_that_runs(tmp_path, backend):
    """The engine names the kernel table that it holds; `auto` follows the environment variable."""
    write_tiny_checkpoint(tmp_path / "m", seed=1)
    engine = core.Engine.open(tmp_path / "m", core.EngineOptions(device=backend, num_threads=1))
    assert engine.backend == backend
    script = f"import mimo_rt._C as c; print(c.Engine.open({str(tmp_path / 'm')!r}).backend)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                          env=os.environ | {"MIMO_RT_BACKEND": backend})
    assert done.stdout.strip() == backend


def test_backends_differ_in_rounding_only(tmp_path):
    """Different kernels ran: sums in another order give other bits, but close ones.

    A hundred tokens: of twenty-four AVX2 and generic make the same sums, but for what BF16 rounds away.
    """
    write_tiny_checkpoint(tmp_path / "m", seed=1)
    tokens = np.arange(100, dtype=np.int32)
    found = {}
    for backend in CPU_BACKENDS:
        engine = core.Engine.open(tmp_path / "m", core.EngineOptions(device=backend, num_threads=1))
        found[backend] = core.Session(engine, max_context=128).logits(tokens)
    reference = found.pop("cpu-generic")
    for logits in found.values():
        assert np.abs(logits - reference).max() < 0.05 * np.abs(reference).max()
        assert logits.tobytes() != reference.tobytes()


def test_an_impossible_backend_is_refused(tmp_path):
    write_tiny_checkpoint(tmp_path / "m", seed=1)
    for backend in core.list_backends():
        if not backend.available:
            with pytest.raises(core.UnavailableError, match="not built|lacks|driver|device|version"):
                core.Engine.open(tmp_path / "m", core.EngineOptions(device=backend.name))
    with pytest.raises(core.InvalidArgumentError, match="cpu-mmx"):
        core.Engine.open(tmp_path / "m", core.EngineOptions(device="cpu-mmx"))
