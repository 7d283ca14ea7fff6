"""Where the wheel keeps what C++ programs need."""

from pathlib import Path

from . import _C

# Not __file__ of this module: in an editable install the Python files stay in the source tree,
# while CMake's files lie beside the extension module.
_ROOT = Path(_C.__file__).resolve().parent


def build_answer(arguments: list[str]) -> str | None:
    """The answer to ``mimo-rt --cmake-dir`` and its kin; None when anything else is asked."""
    answers = {
        "--cmake-dir": get_cmake_dir(),
        "--include-dir": get_include(),
        "--lib-dir": get_lib_dir(),
        "--cflags": f"-std=c++20 -I{get_include()}",
        "--ldflags": f"-L{get_lib_dir()} -lmimo_rt -Wl,-rpath,{get_lib_dir()}",
    }
    if not arguments or any(argument not in answers for argument in arguments):
        return None
    return " ".join(answers[argument] for argument in arguments)


def get_include() -> str:
    """Directory to pass to the compiler with ``-I``."""
    return str(_ROOT / "include")


def get_lib_dir() -> str:
    """Directory of ``libmimo_rt.so``."""
    return str(_ROOT / "lib")


def get_cmake_dir() -> str:
    """Directory of ``mimo_rtConfig.cmake``, for ``-Dmimo_rt_DIR=``."""
    return str(_ROOT / "share" / "cmake" / "mimo_rt")
