"""The exceptions of mimo_rt: one class per error code of ``mimo_rt/error.h``.

All derive from `MimoRtError` and carry the code's name in ``.code``. Where a builtin exception
means the same (ValueError, OSError, MemoryError …) the class derives from that one too.
"""

from collections.abc import Iterable

from . import _C

MimoRtError = _C.MimoRtError

# The list of codes lives in C++; a class appears here as soon as it exists there.
_CLASSES = {
    name: value
    for name, value in vars(_C).items()
    if isinstance(value, type) and issubclass(value, MimoRtError)
}
globals().update(_CLASSES)

__all__ = sorted(_CLASSES)


def unknown_name(where: str, name: str, known: Iterable[str]) -> TypeError:
    """The error for an argument that does not exist; names the closest one that does."""
    import difflib  # importing mimo_rt should not wait for it

    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(names)}."
    return TypeError(f"[{where}] unknown argument '{name}'. {hint}")
