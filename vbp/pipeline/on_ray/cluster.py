"""Start Ray or join a cluster, without Ray's log lines, and keep the program's own signal handlers."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, cast
from urllib.parse import urlsplit

from vbp.errors import InterruptedRunError, UsageError
from vbp.pipeline.hardware import Hardware, look
from vbp.pipeline.resources import Node, Resources, fits, shortage

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # otherwise Ray's C++ core prints an error line for every actor pool
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

STARTS = 3
ANSWER_SECONDS = 10
"""Time limit for a head node to accept a connection."""
LOOK_SECONDS, FIRST_SECONDS = 60, 540
"""Time limit for all nodes to report their hardware, and the further time for a first one if none has by then."""
LOOK_GPUS = 0.001
"""Share of a GPU that a task claims to look at it, so that it fits beside the workers of other runs."""
TOKEN = (
    "Set RAY_AUTH_MODE=token and put the cluster's token into RAY_AUTH_TOKEN, into the file that RAY_AUTH_TOKEN_PATH "
    "names, or into ~/.ray/auth_token."
)


@contextmanager
def connected(store_bytes: int | None = None) -> Iterator[None]:
    """Join the cluster that ``RAY_ADDRESS`` names (as under ``ray job submit``), or start one on this machine.

    An existing connection is used and left open.  Ray's ``init`` replaces the handler of SIGTERM; our handler is
    put back, so that a stopped job ends with its own exit code.

    Args:
        store_bytes: of the object store, if Ray is started here; None: Ray chooses.

    Raises:
        UsageError: the cluster cannot be joined; says why.
        InterruptedRunError: Ray cannot be started here.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("RAY_ADDRESS"):
        # A cluster that ends with this process listens only on this machine, and needs no token file.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # Under `uv run` Ray would pack the working folder with its data, though the workers have this environment.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    address = os.environ.get("RAY_ADDRESS") or "local"
    with _held_back_stderr() as said:
        if address == "local":
            _start(**({} if store_bytes is None else {"object_store_memory": store_bytes}))
        else:
            _join(address, said)
    if main_thread:
        signal.signal(signal.SIGTERM, handler)
    _silence_ray_data()
    try:
        yield
    finally:
        ray.shutdown()


def _start(**options: int) -> None:
    """Start Ray here, with retries: on a very busy machine a start takes longer than Ray's limit of 30 s.

    Raises:
        UsageError: Ray cannot start with its present folders or settings.
        InterruptedRunError: Ray cannot start its processes here.
    """
    for tries_left in reversed(range(STARTS)):
        try:
            _init("local", **options)
            return
        except Exception as error:
            if lasting := _why_never(str(error)):
                raise UsageError(lasting) from error
            passes = isinstance(error, OSError) or "timed out during startup" in str(error)
            if not passes:
                raise
            if not tries_left:
                raise InterruptedRunError(
                    f"Ray could not be started on this machine ({' '.join(str(error).split())}); is it very busy, or "
                    "its temporary folder full? Run the same command again, or with --runner local."
                ) from error


def _why_never(message: str) -> str | None:
    """A sentence on an error of Ray that a retry cannot mend; None for other errors."""
    long = re.search(r"AF_UNIX path length cannot exceed (\d+) bytes: (\S+)", message)
    if long:
        name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "RAY_TMPDIR")
        return (
            f"Ray's temporary folder, named by {name} (={os.environ.get(name, '')}), is too long: the name of a socket "
            f"in there, {long[2]}, may have {long[1]} bytes. Set RAY_TMPDIR to a short path, such as /tmp/me."
        )
    large = re.search(r"size \(([^)]+)\) exceeds the maximum size of ([\d.]+\s?\w+)", message)
    if large:
        return (
            f"The working folder {os.getcwd()} would travel to Ray's workers, as `uv run`, --working-dir or a runtime "
            f"environment asks, and is too large: {large[1]} of at most {large[2]}. Name what is to stay, data above "
            "all, in a file .rayignore in there (written like .gitignore), or start from a folder without it."
        )
    return None


def _join(address: str, said: Callable[[], str]) -> None:
    if address == "auto":
        _check_head(_found_here())
    _check_head(address)
    try:
        _init(address)
    except Exception as error:
        raise UsageError(_why_not_joined(address, str(error), said())) from error


def _found_here() -> str:
    """The address that Ray takes for ``auto``.

    Raises:
        UsageError: no cluster runs here.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die("auto"))
    except (ConnectionError, ValueError) as error:
        raise UsageError(
            "RAY_ADDRESS (=auto) asks for the cluster of this machine, and none runs here: start one with ray start "
            "--head, name the head's address (HOST:6379), or unset RAY_ADDRESS."
        ) from error


def _init(address: str, **options: int) -> None:
    import ray

    ray.init(address, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, **options)


def _check_head(address: str) -> None:
    """Refuse an address where no head node answers; Ray would try for minutes without a word.

    Raises:
        UsageError: nothing answers there, or the port is not a head node's.
    """
    if address.startswith(("http://", "https://")):
        raise UsageError(_is_for_jobs(address))
    if address.startswith("ray://"):
        raise UsageError(
            f"RAY_ADDRESS (={address}) is for Ray's client, through which datasets do not run: give --address with the "
            "URL of the job API (http://HEAD:8265), or the head's own address (HEAD:6379) on a machine of the cluster."
        )
    if address == "auto":
        return
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise UsageError(
            f"RAY_ADDRESS (={address}) is no address of a cluster: give the head's address and port, like HEAD:6379, "
            "auto for the cluster of this machine, or unset it."
        )
    try:
        with socket.create_connection((host, port), ANSWER_SECONDS) as connection:
            connection.sendall(b"GET /api/version HTTP/1.0\r\n\r\n")
            connection.settimeout(ANSWER_SECONDS)
            answer = b""
            with suppress(ConnectionError):  # a head node speaks another protocol and closes the connection
                answer = connection.recv(5)
    except OSError as error:
        raise UsageError(
            f"RAY_ADDRESS (={address}) cannot be reached: {error}. Give the head's address and port (6379 unless it "
            "was started with another), or unset RAY_ADDRESS to run on this machine."
        ) from error
    if answer == b"HTTP/":
        raise UsageError(_is_for_jobs(f"http://{address}"))


def _is_for_jobs(url: str) -> str:
    return (
        f"RAY_ADDRESS names {url}, where jobs are submitted, not the head's own port: unset RAY_ADDRESS and give "
        f"--address {url}."
    )


def _why_not_joined(address: str, message: str, said: str) -> str:
    """A sentence on a cluster that answers but cannot be joined.

    Args:
        address: ``RAY_ADDRESS``.
        message: text of Ray's exception.
        said: output of Ray's C++ core on standard error.
    """
    if lasting := _why_never(message):
        return lasting
    if "InvalidAuthToken" in said + message or "authentication token" in message:
        given = "this process has none" if "no authentication token was found" in message else "this is not it, or none"
        return f"The cluster at RAY_ADDRESS (={address}) asks for a token, and {given}. {TOKEN}"
    versions = re.findall(r"(Ray|Python): ([\w.+-]+)", message)
    if "ersion mismatch" in message and len(versions) == 4:
        theirs, ours = (" and ".join(" ".join(pair) for pair in pairs) for pairs in (versions[:2], versions[2:]))
        return (
            f"The cluster at RAY_ADDRESS (={address}) runs {theirs}, and this process {ours}: they must be the same. "
            "Use the cluster's own environment, or submit with --address, which asks for less."
        )
    return f"The cluster at RAY_ADDRESS (={address}) cannot be joined: {' '.join(message.split())}"


@contextmanager
def _held_back_stderr() -> Iterator[Callable[[], str]]:
    """Hold back standard error, where Ray's C++ core prints its log level; show it only after an unexpected error.

    Yields a function that returns the output so far.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:

        def said() -> bytes:
            held.seek(0)
            return held.read()

        os.dup2(held.fileno(), 2)
        try:
            yield lambda: said().decode(errors="replace")
        except UsageError:
            raise  # its message says enough
        except BaseException:
            os.write(terminal, said())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def _silence_ray_data() -> None:
    """Silence Ray Data on the console: our own messages report errors, and Ray's session log keeps everything."""
    import ray.data  # noqa: F401  (its loggers exist after the import)

    for handler in logging.getLogger("ray.data").handlers:
        if type(handler).__name__ == "PlainRayHandler":
            handler.setLevel(logging.CRITICAL)


def nodes() -> list[Node]:
    """The nodes that are alive."""
    import ray

    return [_node(node["Resources"], node["Labels"]) for node in ray.nodes() if node["Alive"]]


def hardware(given: Resources) -> tuple[Hardware, ...]:
    """The hardware of the workers' nodes; a task on each node looks, and sees what a worker there would see.

    This process may run on a head node without a GPU, so its own torch says nothing about the workers.
    A node that is busy with other jobs may not answer in time and is left out.  If an autoscaler has no node yet,
    the task makes it start the first one.

    Args:
        given: resources of the workers.

    Raises:
        UsageError: a node cannot run vbp and torch.
        InterruptedRunError: no node answers.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    device, claimed = ("cuda", LOOK_GPUS) if given.num_gpus else ("cpu", 0)
    at_work = {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"]
        and node["Resources"].get("GPU" if claimed else "CPU", 0)
        and fits(node["Labels"], given.labels)
    }
    here = ray.get_runtime_context().get_node_id()
    if not claimed and list(at_work) == [here]:
        return (look(device, at_work[here]),)
    task = ray.remote(num_cpus=0, num_gpus=claimed, max_calls=1, max_retries=0)(look)  # each ends and frees its GPU
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            device, address
        ): address
        for node, address in at_work.items()
    }
    if not asked:
        first = task.options(num_gpus=given.num_gpus, num_cpus=given.num_cpus, label_selector=dict(given.labels))
        asked = {first.remote(device, "that the autoscaler has started"): "that the autoscaler has started"}
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_SECONDS)
    if not answered:
        answered, _ = ray.wait(list(asked), timeout=FIRST_SECONDS)
    for unanswered in asked.keys() - set(answered):
        ray.cancel(unanswered, force=True)
    if not answered:
        raise InterruptedRunError(
            f"No worker has started within {LOOK_SECONDS + FIRST_SECONDS} s: {shortage(given, nodes(), free())}. Free "
            "some or add nodes, and run the same command again."
        )
    return tuple(_seen(answer, asked[answer]) for answer in answered)


def _seen(answer: Any, address: str) -> Hardware:
    import ray

    try:
        return cast(Hardware, ray.get(answer))
    except ray.exceptions.RayTaskError as error:
        raise UsageError(f"Node {address} cannot run the network: {error.cause!r}.") from error
    except ray.exceptions.RayError as error:
        lines = str(error).splitlines()
        raise InterruptedRunError(f"Node {address} was lost: {lines[0]} Run the same command again.") from error


def free() -> Node:
    """The CPUs and GPUs that are unclaimed now, on all nodes together."""
    import ray

    return _node(ray.available_resources(), {})


def _node(has: Mapping[str, float], labels: Mapping[str, str]) -> Node:
    return Node(cpus=has.get("CPU", 0), gpus=has.get("GPU", 0), store=has.get("object_store_memory", 0), labels=labels)


def grows() -> bool:
    """Whether an autoscaler starts nodes when work waits.

    Ray does not say how far it can scale (``get_cluster_config`` is always empty in 2.60).  But its status, as ``ray
    status`` shows it, names the group of each node; without an autoscaler it shows the node's id instead.
    """
    names: list[str] = []
    with suppress(Exception):  # the status has no stable form; if it cannot be read, no autoscaler is assumed
        names = _groups()
    return any(not name.startswith("node_") for name in names)


def _groups() -> list[str]:
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.experimental.internal_kv import _internal_kv_get

    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    if int(status.stats.autoscaler_version or 0) > 0:
        return [node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes)]
    first = json.loads(_internal_kv_get(b"__autoscaling_status") or "{}")  # version 1 of the autoscaler
    return list(first["autoscaler_report"]["node_type_mapping"].values())
