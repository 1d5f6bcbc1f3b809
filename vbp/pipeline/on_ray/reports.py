"""Carry out the steps on Ray, and turn Ray's errors into ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from vbp.errors import InterruptedRunError, VBPError
from vbp.pipeline.on_ray import cluster, dataset
from vbp.pipeline.on_ray.metrics import Metrics
from vbp.pipeline.resources import Resources, shortage

if TYPE_CHECKING:
    from vbp.pipeline.recipe import Steps


def reports(steps: Steps, units: Sequence[int], given: Resources, images: int) -> Iterator[dict[str, Any]]:
    """Work on `units` with workers of Ray; yields a report for every committed part.

    Args:
        steps: the source of rows, and the steps.
        units: numbers that the source of `steps` opens.
        given: number and resources of the workers.
        images: number of images that are left in `units`, for the metrics.

    Raises:
        InterruptedRunError: the cluster lacks something or does not answer; says what to do.
        VBPError: an error of vbp, as a step raised it.
    """

    def lacking() -> str:
        return shortage(given, cluster.nodes(), cluster.free())

    metrics = Metrics(images)
    try:
        for report in dataset.plan(steps, units, given).iter_rows():
            metrics.add(report)
            yield report
    except RayTaskError as error:
        raise _cause(error) from error
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
        raise InterruptedRunError(
            f"Ray could not go on: {_said(str(error))} What was finished is kept; run the same command again."
        ) from error


def _said(text: str) -> str:
    """The cause in Ray's message: our own sentence if a worker could not start, else the first line."""
    own = re.findall(r"^vbp\.errors\.\w+: (.+)$", text, re.MULTILINE)
    node = re.search(r"\bip=([\w.:]+)", text)
    return f"on node {node[1]}: {own[-1]}" if own and node else text.splitlines()[0]


def _cause(error: Exception) -> Exception:
    """Our own exception, without Ray's wrapper and the advice that Ray adds to its message; else `error`."""
    cause: object = getattr(error, "cause", None)
    if not isinstance(cause, (VBPError, OSError)):
        return error
    own = type(cause)(str(cause).partition("\nFailed to apply UDF transform")[0])
    own.__dict__.update(cause.__dict__)
    return own
