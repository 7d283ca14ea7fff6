"""Looks for scales that no number can come of. Runs after the core has checked every header."""

from __future__ import annotations

import json
import mmap
import struct
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import _C

_E8M0_NAN = 0xFF


def scan_scales(model_dir: str, tensors: Iterable[Any]) -> int:
    """Number of scale tensors, all of them finite; BadFormatError names the first that is not."""
    by_file: dict[str, list[Any]] = defaultdict(list)
    for tensor in tensors:
        if tensor.name.endswith((".weight_scale", ".weight_scale_inv")):
            by_file[tensor.file_name].append(tensor)
    for file_name, scales in by_file.items():
        _scan_file(Path(model_dir) / file_name, scales)
    return sum(map(len, by_file.values()))


def _scan_file(path: Path, scales: list[Any]) -> None:
    import numpy as np

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as bytes_:
        (header_bytes,) = struct.unpack_from("<Q", bytes_)
        header = json.loads(bytes_[8 : 8 + header_bytes])
        for tensor in scales:
            begin, end = (8 + header_bytes + x for x in header[tensor.name]["data_offsets"])
            raw = np.frombuffer(bytes_[begin:end], dtype=np.uint8)  # a copy: the map is closed
            bad = _first_bad(raw, str(tensor.dtype))
            if bad is not None:
                raise _C.BadFormatError(
                    f"[{path.name}] scale tensor '{tensor.name}': expected finite values, got NaN "
                    f"or infinity at element {bad}."
                )


def _first_bad(raw: Any, dtype: str) -> int | None:
    import numpy as np

    if dtype in ("u8", "e8m0"):
        is_bad = raw == _E8M0_NAN
    elif dtype == "bf16":
        is_bad = (raw.view("<u2") & 0x7F80) == 0x7F80
    else:
        is_bad = ~np.isfinite(raw.view({"f32": "<f4", "f16": "<f2", "f64": "<f8"}[dtype]))
    return int(np.argmax(is_bad)) if is_bad.any() else None
