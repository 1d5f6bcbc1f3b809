"""Carry out the steps on Ray."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from vbp.errors import InterruptedRunError
from vbp.pipeline.on_ray import cluster, dataset
from vbp.pipeline.on_ray.faults import cause_of, interrupted
from vbp.pipeline.on_ray.metrics import Metrics
from vbp.pipeline.resources import Resources, shortage

if TYPE_CHECKING:
    from vbp.pipeline.recipe import Steps

LOG = logging.getLogger(__name__)


def reports(steps: Steps, units: Sequence[int], given: Resources, images: int) -> Iterator[dict[str, Any]]:
    """Work on `units` with workers of Ray; yields a report for every committed part.

    Args:
        steps: the source of rows, and the steps.
        units: numbers that the source of `steps` opens.
        given: number and resources of the workers.
        images: number of images that are left in `units`.

    Raises:
        InterruptedRunError: the cluster lacks something or does not answer; says what to do.
        VBPError: an error of vbp, as a step raised it.
    """

    def lacking() -> str:
        return shortage(given, cluster.nodes(), cluster.free())

    metrics, told = Metrics(images), set[str]()
    try:
        for report in dataset.plan(steps, units, given, images=images).iter_rows():
            for text in report.pop(dataset.WARNED, "").splitlines():
                if text not in told:  # once, not by each worker
                    told.add(text)
                    LOG.warning("%s", text)
            metrics.add(report)
            yield report
    except RayTaskError as error:
        raise cause_of(error) from error
    except GetTimeoutError as error:
        raise InterruptedRunError(
            f"The workers did not all start within {dataset.START_SECONDS} s: {lacking()}. Free some, add "
            "nodes, or ask for fewer --workers, and run the same command again."
        ) from error
    except ExecutionTimeoutError as error:
        raise InterruptedRunError(
            f"Nothing was finished for {dataset.IDLE_SECONDS} s: {lacking()}. If that is enough, a worker "
            "hangs or dies again and again, and Ray's logs say more. Run the same command again to continue."
        ) from error
    except RayError as error:
        raise interrupted(error) from error
