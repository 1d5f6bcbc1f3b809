"""Runner: does the work in this process, or with workers of Ray once they are needed."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from vbp.choices import Runner as RunnerChoice
from vbp.pipeline.config import RunConfig
from vbp.pipeline.observer import Observer
from vbp.pipeline.resources import Resources
from vbp.storage.spreading import Spread, here

if TYPE_CHECKING:
    from vbp.pipeline.recipe import Steps

LOCAL_IMAGES = 500
"""``--runner auto`` uses Ray above this number of images: they take about a minute, and Ray takes 10 s to start."""


def is_for_ray(config: RunConfig, images: int = 0) -> bool:
    """Whether Ray does the work: it is chosen, it is running already, or there are many images.

    Args:
        config: has the choice of the runner.
        images: listed images of all runs together; 0 before the listing, after which the answer may change.
    """
    if config.runner != "auto":
        return config.runner == "ray"
    if config.device == "mps":
        return False
    return bool(os.environ.get("RAY_ADDRESS")) or images > LOCAL_IMAGES


@contextmanager
def spreading(runner: RunnerChoice, is_large: bool) -> Iterator[Spread]:
    """Spread work that needs no network: over Ray, or here.

    Args:
        runner: auto takes Ray for large work where ``RAY_ADDRESS`` names a cluster.
        is_large: whether the work has several pieces.

    Raises:
        UsageError: the cluster cannot be joined.
        InterruptedRunError: Ray cannot be started here.
    """
    if runner == "local" or (runner == "auto" and not (is_large and os.environ.get("RAY_ADDRESS"))):
        yield here
        return
    from vbp.pipeline.on_ray.spread import joined

    with joined() as spread:
        yield spread


class Runner:
    """The workers of one drive.

    Args:
        configs: configurations of all runs, which share the runner.
        stack: closes the connection to Ray.
        observer: receives notes about Ray.

    Attributes:
        given: resources from Ray; None for work in this process.
    """

    def __init__(self, configs: Sequence[RunConfig], stack: ExitStack, observer: Observer) -> None:
        self._configs, self._stack, self._observer = configs, stack, observer
        self.given: Resources | None = None

    def join(self, images: int = 0) -> None:
        """Start or join Ray, if Ray does the work and is not joined yet; errors as for `workers`.

        Args:
            images: as for `is_for_ray`.
        """
        if self.given is None and self._configs and is_for_ray(self._configs[0], images):
            from vbp.pipeline.on_ray.workers import workers

            joins = bool(os.environ.get("RAY_ADDRESS"))
            self._observer.note("Joining Ray." if joins else "Starting Ray.")
            self._observer.doing("joining Ray" if joins else "starting Ray")
            self.given = self._stack.enter_context(workers(self._configs))

    @property
    def spread(self) -> Spread:
        """Carries out functions here or on Ray, while no images are worked on."""
        if self.given is None:
            return here
        from vbp.pipeline.on_ray.spread import spread_by

        return spread_by(self.given)

    def reports(self, steps: Steps, units: Sequence[int], images: int) -> Generator[dict[str, Any]]:
        """Work on `units`, which have `images` images, here or on Ray; yields a report for each committed part."""
        if not units:
            return
        if self.given is None:
            from vbp.pipeline import local

            yield from local.reports(steps, units)
        else:
            from vbp.pipeline.on_ray import reports as on_ray

            yield from on_ray.reports(steps, units, self.given, images)
