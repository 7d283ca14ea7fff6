"""Makes `mimo_rt.train` importable from the source tree on a machine where the C++ core is not built.

Training needs of the core its exceptions alone, and building it would cost minutes of a GPU machine's time. So here
the package is its folder without `__init__.py`, which opens the engine, and `mimo_rt._C` are exceptions by the names of
`include/mimo_rt/error.h`. Only for programs that use nothing but training: whatever needs the engine fails by name.
"""

from __future__ import annotations

import pathlib
import sys
import types

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "python" / "mimo_rt"
ERRORS = ("BadFormatError", "CapacityError", "InvalidArgumentError", "IoError", "MissingTensorError",
          "ShapeMismatchError", "UnavailableError")


def use_source_package() -> None:
    """Before the first import of mimo_rt; an installed one is not looked at."""
    package = types.ModuleType("mimo_rt")
    package.__path__ = [str(PACKAGE)]
    core = types.ModuleType("mimo_rt._C")
    core.MimoRtError = type("MimoRtError", (Exception,), {})
    for name in ERRORS:
        setattr(core, name, type(name, (core.MimoRtError,), {}))
    package._C = core
    sys.modules.update({"mimo_rt": package, "mimo_rt._C": core})
