"""Two files of benchmark records, case by case: faster, slower, the same, or undecided.

A change counts when it is larger than ``tolerance`` and the ranges p10..p90 do not touch. Medians
within the tolerance are the same only if the samples are steady enough to have shown a difference;
everything else is undecided.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _C

TOLERANCE = 0.03
MIN_SAMPLES = 3
FASTER, SLOWER, SAME, UNDECIDED = "FASTER", "SLOWER", "SAME", "UNDECIDED"
MISSING = "MISSING"  # of a case that has no second measurement
# Records of equal case are comparable when these agree.
_KEY = ("case", "model", "backend", "num_workers", "activations", "temperature", "max_tokens")
_MACHINE = ("machine", "device", "num_usable_cores", "memory_bytes", "kernel")
_MEASURED = ("median_us", "p10_us", "p90_us", "n", "bandwidth_gbs", "bandwidth_fraction")
_BANDWIDTH_TOLERANCE = 0.1


@dataclass(frozen=True)
class Case:
    """All records of one case in a file, pooled: the widest range, the median of the medians."""

    median_us: float
    p10_us: float
    p90_us: float
    n: int
    bandwidth_fraction: float | None

    @classmethod
    def pool(cls, records: list[dict[str, Any]]) -> Case:
        fractions = [r["bandwidth_fraction"] for r in records if r.get("bandwidth_fraction")]
        return cls(
            median_us=statistics.median(r["median_us"] for r in records),
            p10_us=min(r.get("p10_us") or r["median_us"] for r in records),
            p90_us=max(r.get("p90_us") or r["median_us"] for r in records),
            n=sum(r.get("n") or 1 for r in records),
            bandwidth_fraction=fractions[-1] if fractions else None,
        )

    @property
    def median_error(self) -> float:
        """Standard error of the median relative to it, if the samples were normal."""
        sigma = (self.p90_us - self.p10_us) / 2.563
        return 1.2533 * sigma / math.sqrt(max(self.n, 1)) / self.median_us


@dataclass(frozen=True)
class Comparison:
    """``change``: time after over time before, minus 1; negative is faster."""

    name: str
    before: Case
    after: Case
    change: float
    verdict: str


def read_records(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file.

    Raises:
        IoError: no such file.
        BadFormatError: a line that is no JSON object, or holds what no measurement gives; names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _C.IoError(f"[{path}] cannot read records: {error}.") from None
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise _C.BadFormatError(f"[{path}:{number}] expected a JSON object.")
        _check_record(record, f"{path}:{number}")
        records.append(record)
    return records


def _check_record(record: dict[str, Any], where: str) -> None:
    """Records are edited and joined by hand: what nobody has measured is told, with its place."""

    def expect(is_right: bool, name: str, what: str) -> None:
        if not is_right:
            raise _C.BadFormatError(
                f"[{where}] {name}: expected {what}, got {record.get(name, 'nothing')!r}."
            )

    for name in _KEY:
        is_plain = isinstance(record.get(name), (str, int, float, type(None)))
        expect(is_plain, name, "a string or a number")
    for name in _MEASURED:
        if record.get(name) is not None:
            expect(_is_positive(record[name]), name, "a number above 0")
    if record.get("median_us") is not None:
        expect(isinstance(record.get("case"), str), "case", "a name beside median_us")
        low, high = (record.get(name) or record["median_us"] for name in ("p10_us", "p90_us"))
        expect(low <= record["median_us"], "p10_us", "no more than median_us")
        expect(high >= record["median_us"], "p90_us", "no less than median_us")


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def compare(
    before: list[dict[str, Any]], after: list[dict[str, Any]], tolerance: float = TOLERANCE
) -> list[Comparison]:
    """Every case that both have, in the order of ``before``."""
    old, new = _cases(before), _cases(after)
    names = _short_names(old | new)
    return [_compare(names[key], old[key], new[key], tolerance) for key in old if key in new]


def missing(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Case]:
    """Cases of ``before`` that ``after`` lacks, by name."""
    old, new = _cases(before), _cases(after)
    names = _short_names(old | new)
    return {names[key]: case for key, case in old.items() if key not in new}


def warnings(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    """What makes the numbers less comparable: another machine or GPU, another memory speed, edits."""
    found = []
    for name in _MACHINE:
        values = [_values(records, name) for records in (before, after)]
        if values[0] != values[1]:
            found.append(f"{name} differs: {_shown(values[0])} and {_shown(values[1])}")
    speeds = [max((r["bandwidth_gbs"] for r in records if r.get("bandwidth_gbs")), default=None)
              for records in (before, after)]
    if None not in speeds and abs(speeds[1] / speeds[0] - 1) > _BANDWIDTH_TOLERANCE:
        found.append(
            f"read bandwidth differs: {speeds[0]:.1f} and {speeds[1]:.1f} GB/s; "
            "compare the columns %bandwidth, or measure by turns"
        )
    for side, records in (("first", before), ("second", after)):
        if any(record.get("dirty") for record in records):
            found.append(f"the {side} file was measured with uncommitted changes")
    return found


def judge(before: Case, after: Case, tolerance: float = TOLERANCE) -> str:
    change = after.median_us / before.median_us - 1
    if min(before.n, after.n) < MIN_SAMPLES:
        return UNDECIDED
    if abs(change) > tolerance:
        if change < 0 and after.p90_us < before.p10_us:
            return FASTER
        if change > 0 and after.p10_us > before.p90_us:
            return SLOWER
        return UNDECIDED
    noise = 2 * math.hypot(before.median_error, after.median_error)
    return SAME if noise <= tolerance else UNDECIDED


def _compare(name: str, before: Case, after: Case, tolerance: float) -> Comparison:
    change = after.median_us / before.median_us - 1
    return Comparison(name, before, after, change, judge(before, after, tolerance))


def _cases(records: list[dict[str, Any]]) -> dict[tuple, Case]:
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for record in records:
        if record.get("median_us") is not None:
            groups.setdefault(_key(record), []).append(record)
    return {key: Case.pool(group) for key, group in groups.items()}


def _key(record: dict[str, Any]) -> tuple:
    """Fields of _KEY; None for a default, which older records do not name."""
    values = {name: record.get(name) for name in _KEY}
    if values["activations"] == "bf16":
        values["activations"] = None
    return tuple(values.values())


def _short_names(keys: Collection[tuple]) -> dict[tuple, str]:
    """The case, with model and backend where it alone would be ambiguous in either file."""
    cases = [key[0] for key in keys]
    return {
        key: key[0] if cases.count(key[0]) == 1
        else " ".join(str(part) for part in key if part is not None)
        for key in keys
    }


def _values(records: list[dict[str, Any]], name: str) -> set[str]:
    return {str(record[name]) for record in records if record.get(name) is not None}


def _shown(values: set[str]) -> str:
    return ", ".join(sorted(values)) or "not recorded"
