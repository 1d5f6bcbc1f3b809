"""The preflight from a worker of Ray and on each node, because the work will be done there."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vbp.choices import NAMED_WEIGHTS
from vbp.errors import UsageError
from vbp.networks.names import code_of, is_file, source_of
from vbp.networks.owncode import OwnCode
from vbp.pipeline.config import RunConfig
from vbp.pipeline.preflight import PROBE, preflight
from vbp.storage.files import Folder

LOOK_SECONDS = 30
"""Time limit for a shared disk to show on one node a file that was written on another."""
NODE_SECONDS = 60
"""Time limit for a node to start the worker that looks."""


def preflight_on_a_worker(source: str, output: str, options: Mapping[str, Any]) -> None:
    """`preflight` in a task of Ray: workers may have other credentials, networks and packages than this process."""
    if "://" not in source and "://" not in output:
        return  # there is nothing to try, and a worker takes seconds to start
    try:
        ray.get(ray.remote(num_cpus=0)(preflight).remote(source, output, options, "from a Ray worker"))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, UsageError) else error from None


def preflight_on_all_nodes(config: RunConfig) -> None:
    """Refuse a local folder or file that another node of the cluster does not see: it must be on a shared disk.

    A probe is written to OUTPUT here.  Each node that takes work then looks for it and for the other local places.

    Raises:
        UsageError: a node does not see one of these places.
    """
    others = _other_nodes()
    if not others:
        return
    with _local_places(config) as places:
        look = ray.remote(num_cpus=0, max_retries=0)(unseen)
        asked = {
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                places, LOOK_SECONDS
            ): address
            for node, address in others.items()
        }
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_SECONDS + NODE_SECONDS)
        for answer in answered:
            with contextlib.suppress(ray.exceptions.RayError):  # a node that is lost just now is no reason to refuse
                for name in ray.get(answer):
                    raise UsageError(
                        f"{name} (={places[name][0]}) is of one machine, and node {asked[answer]} does not see what "
                        "is there: use a bucket, or a file system that all nodes share under the same path."
                    )


def preflight_networks(configs: Sequence[RunConfig]) -> None:
    """Try on each node that takes work whether it can make the networks that are not torchvision's.

    Raises:
        UsageError: a node cannot; says which, and why.
    """
    models = {each.model: code_of(each.model) for each in configs if source_of(each.model) != "torchvision"}
    if not models:
        return
    look = ray.remote(num_cpus=0, max_retries=0)(unmade)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(models): address
        for node, address in _nodes().items()
    }
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=2 * NODE_SECONDS)
    for answer in answered:
        with contextlib.suppress(ray.exceptions.RayError):  # as above
            for reason in ray.get(answer):
                raise UsageError(f"Node {asked[answer]} cannot make the network: {reason}")


def unmade(models: Mapping[str, OwnCode | None]) -> list[str]:
    """Why this machine cannot make these networks; empty if it can."""
    from vbp.networks.models import check_source

    reasons = []
    for model, code in models.items():
        try:
            check_source(model, code)
        except UsageError as error:
            reasons.append(str(error))
    return reasons


def _nodes() -> dict[str, str]:
    """Address by id of each node that takes work."""
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and {"CPU", "GPU"} & node["Resources"].keys()
    }


def _other_nodes() -> dict[str, str]:
    """Address by id of each node that takes work, without the node of this process."""
    here = ray.get_runtime_context().get_node_id()
    return {node: address for node, address in _nodes().items() if node != here}


def unseen(places: Mapping[str, tuple[str, str]], seconds: float) -> list[str]:
    """Names of the places whose path does not exist on this node.

    Args:
        places: name -> the place as the user gave it, and the path to look for.
        seconds: time limit for a shared disk to show a file that was written on another node.
    """
    until = time.monotonic() + seconds
    while True:
        missing = [name for name, (_, path) in places.items() if not os.path.exists(path)]
        if not missing or time.monotonic() > until:
            return missing
        time.sleep(0.5)


@contextlib.contextmanager
def _local_places(config: RunConfig) -> Iterator[dict[str, tuple[str, str]]]:
    """The local places of a configuration, each with an existing path; for OUTPUT a probe, deleted at the end."""
    weights = None if config.weights in NAMED_WEIGHTS else config.weights
    given = {"INPUT": config.input, "--weights": weights, "--classes": config.class_file, "--truth": config.truth}
    given["--model"] = config.model if is_file(config.model) else None
    places = {name: (place, place) for name, place in given.items() if place is not None and "://" not in place}
    if "://" in config.output:
        yield places
        return
    folder, probe = Folder(config.output), f"{PROBE}-{uuid.uuid4().hex}"
    folder.write(probe, b"")
    try:
        yield places | {"OUTPUT": (config.output, folder.uri(probe))}
    finally:
        folder.delete(probe)
