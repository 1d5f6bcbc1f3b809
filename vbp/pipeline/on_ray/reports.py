"""The steps carried out by Ray, and what goes wrong there in our own words."""

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
    """Work on `units` with the workers of `given`; yields a report for every part that was committed.

    Args:
        steps: what to do.
        units: numbers that the source of `steps` opens.
        given: the workers, and what each of them has.
        images: that are left in `units`, for the metrics.

    Raises:
        InterruptedRunError: the cluster lacks something or does not answer; says what to do.
        VBPError: of our own, as a step raised it.
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
    """Of Ray's message the sentence that says why: our own, where a worker could not start, else the first line."""
    own = re.findall(r"^vbp\.errors\.\w+: (.+)$", text, re.MULTILINE)
    node = re.search(r"\bip=([\w.:]+)", text)
    return f"on node {node[1]}: {own[-1]}" if own and node else text.splitlines()[0]


def _cause(error: Exception) -> Exception:
    """Our own exception, freed of Ray's wrapper and of the advice that Ray adds to its message; else `error`."""
    cause: object = getattr(error, "cause", None)
    if not isinstance(cause, (VBPError, OSError)):
        return error
    own = type(cause)(str(cause).partition("\nFailed to apply UDF transform")[0])
    own.__dict__.update(cause.__dict__)
    return own
