"""What a sweep would do: a plan of each run, and their sum compared with the budget; writes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vbp.errors import UsageError
from vbp.pipeline.dryrun import Known, Plan, plan
from vbp.pipeline.loading import network_key
from vbp.pipeline.sweep.sweep import hours_spent
from vbp.pipeline.sweep.sweepfile import Budget, Sweep, SweepRun


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a sweep would do."""

    output: str
    budget: Budget
    hours_spent: float
    """Working hours of earlier attempts."""
    runs: tuple[tuple[SweepRun, Plan], ...]

    @property
    def images(self) -> int:
        """Images of all runs; an image of two runs counts twice."""
        return sum(planned.images for _, planned in self.runs)

    @property
    def left(self) -> int:
        """Images that are left to do."""
        return sum(planned.left for _, planned in self.runs)

    @property
    def seconds(self) -> float | None:
        """Seconds of work on images; None if the rate of a run is unknown."""
        total = 0.0
        for _, planned in self.runs:
            if planned.seconds is None:
                return None
            total += planned.seconds
        return total

    @property
    def cost(self) -> float | None:
        """Cost in the currency of the price."""
        if self.budget.price_per_hour is None or self.seconds is None:
            return None
        return self.budget.price_per_hour * self.seconds / 3600

    @property
    def exceeds_budget(self) -> bool | None:
        """Whether the work that is left exceeds the rest of the budget; None if one of them is unknown."""
        if self.budget.hours is None or self.seconds is None:
            return None
        return self.hours_spent + self.seconds / 3600 > self.budget.hours

    def as_json(self) -> dict[str, Any]:
        """JSON values, derived ones included."""
        names = ("output", "images", "left", "seconds", "cost", "hours_spent", "exceeds_budget")
        derived = {name: getattr(self, name) for name in names}
        return {
            **derived,
            "budget": dataclasses.asdict(self.budget),
            "runs": [{"run": r.name} | p.as_json() for r, p in self.runs],
        }


def plan_sweep(asked: Sweep, on_plan: Callable[[str], None] = lambda name: None) -> SweepPlan:
    """Plan each run; runs of the same network follow each other, so that it is loaded and measured once.

    Args:
        asked: the sweep.
        on_plan: called with the name of the next run.

    Raises:
        UsageError: a run would be refused; says which.
    """
    known = Known()
    networks = list(dict.fromkeys(network_key(run.config) for run in asked.runs))
    planned: dict[str, Plan] = {}
    for run in sorted(asked.runs, key=lambda run: networks.index(network_key(run.config))):
        on_plan(run.name)
        try:
            planned[run.name] = plan(run.config, price_per_hour=asked.budget.price_per_hour, known=known)
        except UsageError as error:
            raise UsageError(f"run {run.name}: {error}") from error
    runs = tuple((run, planned[run.name]) for run in asked.runs)
    return SweepPlan(output=asked.output, budget=asked.budget, hours_spent=hours_spent(asked), runs=runs)
