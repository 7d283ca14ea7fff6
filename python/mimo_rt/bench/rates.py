"""How fast the matrix products of a traced step were: GB/s and GFLOP/s of each kind of task."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .breakdown import Breakdown
from .measurement import Roofs
from .work import KindWork

EXPERT_KINDS = ("expert_gate_up", "expert_down")


@dataclass(frozen=True)
class TracedStep:
    """A step of ``num_rows`` tokens: where its time goes, and what its matrix products do.

    Time of a kind is the mean of the workers' inside its tasks, waits for weights included and
    waits for each other not: the rates are those of all workers together.
    """

    num_rows: int
    breakdown: Breakdown
    work: Mapping[str, KindWork]

    def product_us(self, kind: str) -> float:
        workers = range(len(self.breakdown.steps[0].workers))
        return statistics.fmean(
            self.breakdown.mean("busy", kind, w) + self.breakdown.mean("weights", kind, w)
            for w in workers
        )

    def rates(self, kind: str) -> tuple[float | None, float | None]:
        """(GB/s, GFLOP/s); None where not known."""
        work, us = self.work.get(kind), self.product_us(kind)
        if work is None or not us:
            return None, None
        gbs = None if work.num_bytes is None else work.num_bytes / us / 1e3
        return gbs, work.num_flops / us / 1e3

    @property
    def products_us(self) -> float:
        """Time of all matrix products."""
        return sum(map(self.product_us, self.work))

    @property
    def products_share(self) -> float:
        """Of the step's time."""
        return self.products_us / self.breakdown.step_us

    @property
    def products_gflops(self) -> float:
        """GFLOP/s of the matrix products in their own time."""
        return sum(work.num_flops for work in self.work.values()) / self.products_us / 1e3

    def record(self, roofs: Roofs) -> dict[str, Any]:
        """`Breakdown.record` and the rates."""
        rates = {kind: self.rates(kind) for kind in self.work}
        record = {
            **self.breakdown.record(),
            "kind_gbs": {kind: round(gbs, 3) for kind, (gbs, _) in rates.items() if gbs},
            "kind_gflops": {kind: round(gflops, 3) for kind, (_, gflops) in rates.items() if gflops},
            "products_share": round(self.products_share, 4),
            "products_gflops": round(self.products_gflops, 3),
        }
        if roofs.peak_gflops:
            record["products_peak_fraction"] = round(self.products_gflops / roofs.peak_gflops, 4)
        return record


@dataclass(frozen=True)
class DenseCost:
    """What a step of several tokens costs in one-token steps, without experts and attention.

    1 where bytes alone are the limit: every token uses the same weights.
    """

    num_rows: int
    of_kind: dict[str, float]
    total: float

    def record(self) -> dict[str, Any]:
        return {"dense_cost_of_one": round(self.total, 4),
                "dense_kind_cost_of_one": {k: round(x, 4) for k, x in self.of_kind.items()}}

    def text(self) -> str:
        kinds = ", ".join(f"{kind} {cost:.2f}" for kind, cost in self.of_kind.items())
        return f"dense products, {self.num_rows} tokens over 1: {self.total:.2f} x ({kinds})"


def dense_cost(one: TracedStep, several: TracedStep) -> DenseCost:
    """Of two steps of one engine."""
    kinds = [kind for kind in one.work if kind not in EXPERT_KINDS and one.product_us(kind)]
    of_kind = {kind: several.product_us(kind) / one.product_us(kind) for kind in kinds}
    total = sum(map(several.product_us, kinds)) / sum(map(one.product_us, kinds))
    return DenseCost(several.num_rows, of_kind, total)
