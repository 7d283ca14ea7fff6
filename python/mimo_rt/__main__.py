"""``python -m mimo_rt``: paths for C++ builds; any other arguments go to the command line tool."""

import sys

from . import _paths


def _cflags() -> str:
    return f"-std=c++20 -I{_paths.get_include()}"


def _ldflags() -> str:
    lib = _paths.get_lib_dir()
    return f"-L{lib} -lmimo_rt -Wl,-rpath,{lib}"


_ANSWERS = {
    "--cmake-dir": _paths.get_cmake_dir,
    "--include-dir": _paths.get_include,
    "--lib-dir": _paths.get_lib_dir,
    "--cflags": _cflags,
    "--ldflags": _ldflags,
}


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and all(argument in _ANSWERS for argument in arguments):
        print(" ".join(_ANSWERS[argument]() for argument in arguments))
        return 0
    from .cli import main as cli_main

    return cli_main(arguments)


if __name__ == "__main__":
    sys.exit(main())
