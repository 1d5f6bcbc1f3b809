"""The same work by one process and by a fleet of Ray's workers: how it is measured, and told.

Workers on the driver's machine share its cores, so the time by the clock says little of a cluster.  The seconds of CPU
say more: those of the workers are divided among them, those of the driver are not.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

from vbp.evidence.scale import figure
from vbp.evidence.timing import Figure
from vbp.evidence.watch import Watched
from vbp.pipeline.resources import divide
from vbp.storage.spreading import Spread

IMAGES = 100_000_000
"""Of the estimates."""
WORKERS = (1, 2)


class Took(NamedTuple):
    """When some work began and ended, by the clock of `Look`, and the driver's own seconds of CPU in between."""

    began: float
    ended: float
    cpu: float
    behind: float = 0.0
    """Those of them since others list."""


def workers_at_once(stack: ExitStack, workers: int) -> Spread:
    """So many tasks of Ray at a time, as long as the stack is open."""
    from vbp.pipeline.on_ray import cluster, spread

    spread.AT_ONCE = workers
    stack.enter_context(cluster.connected())
    return spread.spread_by(divide(cluster.nodes(), "cpu", None))


def most_at_once() -> int:
    """Tasks that a run gives to Ray at a time, whatever the cluster's size."""
    from vbp.pipeline.on_ray.spread import AT_ONCE

    return AT_ONCE


def rate(name: str, found: Watched, count: int, unit: str) -> Figure:
    """How many a second, and what it took; `found` has the value `Took`."""
    told = (
        f"{seconds(found):.1f} s, {cpu(found):.1f} s of CPU, {found.value.cpu:.1f} of it the driver's; "
        f"{found.own:.0f} MB, the largest other process {found.workers:.0f} MB"
    )
    return figure(name, count / seconds(found), unit, detail=told)


def seconds(found: Watched) -> float:
    """By the clock."""
    return float(found.value.ended - found.value.began)


def cpu(found: Watched) -> float:
    """Seconds of CPU of all processes while the work was done, Ray's own included."""
    return found.cores(found.value.began, found.value.ended) * seconds(found)
