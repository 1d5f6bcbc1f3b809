"""Preflight: one small request of every kind a run makes, where its work will be done, before any work.

A missing bucket, a wrong region, credentials that are missing, expired or not allowed to write, and an endpoint that
does not answer each become one sentence that says what to change.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from vbp.errors import StorageError, UsageError
from vbp.pipeline.config import RunConfig
from vbp.pipeline.prepare import NAMED_WEIGHTS
from vbp.storage.files import Folder, read_uri
from vbp.storage.listing import one_image
from vbp.storage.manifestfile import is_manifest
from vbp.storage.options import CREDENTIALS, family_of

PROBE = "_run/preflight"
"""Where the probes lie, each under a name of its own."""
LOOK_SECONDS = 30
"""So long may a shared disk take to show on one node what was written on another."""
NODE_SECONDS = 60
"""So long may a node take to start a worker that looks."""


def preflight(source: str, output: str, options: Mapping[str, Any], where: str) -> None:
    """List one and read one of INPUT; write, read back and delete in OUTPUT. Local places are left to the run itself.

    Args:
        source: INPUT.
        output: OUTPUT.
        options: non-secret options by URL prefix.
        where: which machine this is, for the message.

    Raises:
        UsageError: one of them is impossible; says which, why, and what to do.
    """
    if "://" in source:
        with _told("INPUT", source, where):
            _read_one(source, options)
    if "://" in output:
        with _told("OUTPUT", output, where):
            _write_one(output, options)


def preflight_on_a_worker(source: str, output: str, options: Mapping[str, Any]) -> None:
    """The same from a task of Ray: workers may have other credentials, networks and packages than this process."""
    if "://" not in source and "://" not in output:
        return  # nothing is asked for, and a worker takes seconds to start
    import ray

    try:
        ray.get(ray.remote(num_cpus=0)(preflight).remote(source, output, options, "from a Ray worker"))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, UsageError) else error from None


def preflight_on_all_nodes(config: RunConfig) -> None:
    """Refuse a local folder or file that another node of the cluster does not have: it must be on a shared disk.

    A probe is written to OUTPUT here and looked for on each node that works, and so are the other local places.

    Raises:
        UsageError: a node does not see one of them.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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
            with contextlib.suppress(ray.exceptions.RayError):  # a node that is lost just now needs no refusal
                for name in ray.get(answer):
                    raise UsageError(
                        f"{name} (={places[name][0]}) is of one machine, and node {asked[answer]} does not see what "
                        "is there: use a bucket, or a file system that all nodes share under the same path."
                    )


def _other_nodes() -> dict[str, str]:
    """Address of each node that takes work, but for that of this process, by its id."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and {"CPU", "GPU"} & node["Resources"].keys()
    }


def unseen(places: Mapping[str, tuple[str, str]], seconds: float) -> list[str]:
    """Names of the places whose probe is not here.

    Args:
        places: name -> the place as it was given, and the path to look for.
        seconds: so long a shared disk may take to show what was written elsewhere.
    """
    until = time.monotonic() + seconds
    while True:
        missing = [name for name, (_, path) in places.items() if not os.path.exists(path)]
        if not missing or time.monotonic() > until:
            return missing
        time.sleep(0.5)


@contextlib.contextmanager
def _local_places(config: RunConfig) -> Iterator[dict[str, tuple[str, str]]]:
    """What of a configuration lies on a disk, and for each a path that is there now; of OUTPUT a probe, which goes."""
    weights = None if config.weights in NAMED_WEIGHTS else config.weights
    given = {"INPUT": config.input, "--weights": weights, "--classes": config.class_file}
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


def _read_one(source: str, options: Mapping[str, Any]) -> None:
    if is_manifest(source):
        read_uri(source, options)
        return
    folder = Folder(source, options)
    if one_image(folder) is not None:
        folder.read("")
        return
    first = folder.first()
    if first is not None:  # an input without images is refused where it is listed
        folder.read(first.path)


def _write_one(output: str, options: Mapping[str, Any]) -> None:
    folder, path = Folder(output, options), f"{PROBE}-{uuid.uuid4().hex}"
    data = path.encode()
    folder.write(path, data)
    if folder.read(path) != data:
        raise StorageError("what was written comes back changed")
    folder.delete(path)


@contextlib.contextmanager
def _told(name: str, url: str, where: str) -> Any:
    try:
        yield
    except (StorageError, OSError) as error:
        remedy = _remedy(str(error), error, url)
        raise UsageError(f"{name} (={url}) cannot be used {where}: {error}. {remedy}") from error


def _remedy(text: str, error: Exception, url: str) -> str:
    low = text.lower()
    if "region" in low or "permanentredirect" in low:
        return "Set AWS_REGION on every node, or region in --storage-options."
    if "bucket" in low and ("not exist" in low or "nosuchbucket" in low):
        return "Check the bucket's name, the endpoint and the region."
    if "container" in low and "not exist" in low:
        return "Check the container's name and the storage account."
    if "tls" in low or "certificate" in low or "ssl" in low:
        return "Check endpoint_url in --storage-options, http or https among it, and the node's certificates."
    causes = (error, error.__cause__)
    if any(isinstance(cause, PermissionError) for cause in causes) or "credentials" in low:
        variables = CREDENTIALS.get(family_of(url), "its credentials")
        if "aws sso login" in low:
            return "Every node needs credentials of its own, or the node's identity."
        if any(word in low for word in ("expired", "invalidtoken", "no credentials", "signature", "invalidaccesskey")):
            return f"Renew or set the credentials on every node: {variables}, or the node's own identity."
        return "The credentials are valid but lack the right to do this; grant list and read on INPUT, all on OUTPUT."
    if isinstance(error, FileNotFoundError):
        return "Check the URL."
    return "Check endpoint_url in --storage-options and the network of every node."
