"""Workers of Ray: connect, divide the cluster's resources, and check every place on the workers' nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from vbp.errors import InterruptedRunError
from vbp.pipeline.config import RunConfig
from vbp.pipeline.hardware import refuse_missing_gpus
from vbp.pipeline.on_ray import cluster
from vbp.pipeline.on_ray.preflight import preflight_networks, preflight_on_a_worker, preflight_on_all_nodes
from vbp.pipeline.resources import Resources, divide, parse_labels


@contextmanager
def workers(configs: Sequence[RunConfig]) -> Iterator[Resources]:
    """Start or join Ray, for as long as the context lasts.

    Args:
        configs: configurations of runs that share the workers, with the same settings of workers.

    Raises:
        UsageError: the cluster cannot be joined, lacks requested resources, or does not see a place.
        InterruptedRunError: Ray cannot be started here.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(cluster.connected())
            given = _given(configs[0])
            for config in {config.input: config for config in configs}.values():
                preflight_on_a_worker(config.input, config.output, config.storage_options)
            preflight_on_all_nodes(configs[0])
            preflight_networks(configs)
        except OSError as error:  # an error of Ray, since errors of places have become a UsageError
            raise InterruptedRunError(f"Ray does not work here: {error!r}. Run the same command again.") from error
        yield given


def _given(config: RunConfig) -> Resources:
    given = divide(
        cluster.nodes(),
        config.device,
        config.workers,
        grows=cluster.grows(),
        labels=parse_labels(config.node_labels),
    )
    given = dataclasses.replace(given, hardware=cluster.hardware(given))
    refuse_missing_gpus(given.hardware)
    return given
