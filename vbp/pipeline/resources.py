"""How a cluster is divided among the workers that hold the network: rules about its nodes, without Ray."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vbp.errors import UsageError
from vbp.pipeline.hardware import Hardware
from vbp.words import counted

CALLS_ON_A_GPU = 3
"""Batches that a GPU worker has in hand: while the GPU computes one, others come from Ray's store or go there."""
CPUS_A_GPU_WORKER = 3
"""CPUs of a GPU worker: one for its own thread, one for a decoding task and one for an encoding task beside it."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """What a node has: the numbers that Ray was started with, or found by itself."""

    cpus: float = 0
    gpus: float = 0
    store: float = 0
    """Bytes of memory for Ray's objects."""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """How many workers hold the network, and what each of them gets."""

    workers: int
    """Workers at the start of the run."""
    at_most: float = 0
    """The most workers when autoscaling; ``inf``: no limit; below `workers` the number of workers is fixed."""
    num_cpus: float
    """Logical CPUs of one worker.  For a GPU worker: 1 if its node has two more CPUs for each worker, else 0."""
    num_gpus: float
    threads: int
    """Threads of the network on the CPU."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Label selector of Ray for the nodes where workers may run; empty: all nodes."""
    calls: int = 1
    """Batches that one worker has in hand at the same time."""
    codec_cpus: float = 0.5
    """Logical CPUs of a task beside GPU workers, which reads and decodes, or encodes and writes."""
    hardware: Sequence[Hardware] = ()
    """Label selector for the nodes where these tasks may run."""

    def __str__(self) -> str:
        on = f"{self.num_gpus:g} GPU" if self.num_gpus else counted(self.threads, "CPU thread")
        labels = ",".join(f"{key}={value}" for key, value in self.labels.items())
        where = f", on nodes with {labels}" if labels else ""
        more = ", more as nodes come" if self.at_most == math.inf else f", up to {self.at_most:g} as nodes come"
        return f"{counted(self.workers, 'worker')} with {on} each{where}{more if self.at_most > self.workers else ''}"


def divide(
    nodes: Sequence[Node],
    device: str,
    workers: int | None,
    *,
    grows: bool = False,
    labels: Mapping[str, str] | None = None,
) -> Resources:
    """Divide the CPUs and GPUs of the cluster among workers.

    Args:
        nodes: the nodes that are alive.
        device: auto, cpu or cuda.
        workers: number of workers; None: one for every GPU, else one for every CPU.
        grows: whether an autoscaler starts nodes when work waits.
        labels: label selector of Ray that the nodes of the workers must match.

    Raises:
        UsageError: the cluster does not have what the options ask for, and will not grow to have it.
    """
    labels = labels or {}
    fitting = [node for node in nodes if fits(node.labels, labels)]
    if not fitting and not grows:
        raise UsageError(_no_node_fits(nodes, labels))
    gpus, cpus = (int(sum(getattr(node, name) for node in fitting)) for name in ("gpus", "cpus"))
    if device == "cuda" or (device == "auto" and gpus > 0):
        return _on_gpus([node for node in fitting if node.gpus], nodes, workers, grows, labels)
    if not cpus and not grows:
        raise UsageError(
            "No node of the Ray cluster has a CPU for work: start a worker node, or the head without --num-cpus=0."
        )
    largest = max([int(node.cpus) for node in fitting], default=0)
    return _on_cpus(max(1, cpus), max(1, largest), workers, grows, labels)


def _on_gpus(
    with_gpus: Sequence[Node], nodes: Sequence[Node], workers: int | None, grows: bool, labels: Mapping[str, str]
) -> Resources:
    gpus = int(sum(node.gpus for node in with_gpus))
    if grows:  # each worker gets a GPU of its own; the first ones get those that are there already
        count, most, share = max(1, min(workers or gpus, gpus)), workers or math.inf, 1.0
    elif not gpus:
        raise UsageError(
            "--device cuda needs a GPU, and no node of the Ray cluster has one"
            + (" and fits --node-labels" if labels else "")
            + "; add a node with one, or use --device cpu or auto."
        )
    elif sum(node.cpus for node in nodes) < 1:
        raise UsageError(
            "The Ray cluster has GPUs but no CPU, and images are read, decoded and written on CPUs: start the nodes "
            "with --num-cpus, or add one without a GPU."
        )
    else:  # a worker cannot use parts of two GPUs, so each GPU takes the same whole number of workers
        count, most = workers or gpus, workers or math.inf
        share = 1 / math.ceil(count / gpus)
    roomy = bool(with_gpus) and all(node.cpus >= CPUS_A_GPU_WORKER * node.gpus / share for node in with_gpus)
    return Resources(
        workers=count,
        at_most=most,
        num_cpus=1 if roomy else 0,
        num_gpus=share,
        threads=0,
        labels=labels,
        calls=CALLS_ON_A_GPU,
        codec_cpus=1 if roomy else 0.5,
    )


def _on_cpus(cpus: int, largest: int, workers: int | None, grows: bool, labels: Mapping[str, str]) -> Resources:
    count = min(workers or cpus, cpus)
    share = min(cpus / count, largest)
    threads = max(1, int(share))
    if grows:  # a lost node is replaced, and workers claim their whole share, so that Ray counts how many fit
        most = workers or math.inf
        return Resources(workers=count, at_most=most, num_cpus=share, num_gpus=0, threads=threads, labels=labels)
    # Each worker claims half of its share, so that the workers of a lost node find room on the other nodes.
    return Resources(workers=count, num_cpus=share / 2, num_gpus=0, threads=threads, labels=labels)


def _no_node_fits(nodes: Sequence[Node], labels: Mapping[str, str]) -> str:
    there = sorted({f"{key}={value}" for node in nodes for key, value in node.labels.items() if key in labels})
    asked = ",".join(f"{key}={value}" for key, value in labels.items())
    has = f"there is {', '.join(there)}" if there else "no node has a label of that name"
    return f"--node-labels (={asked}) fits no node of the Ray cluster: {has}."


def parse_labels(text: str | None) -> dict[str, str]:
    """Parse ``key=value,other=in(a,b)``; Ray knows the values ``x``, ``!x``, ``in(x,y)`` and ``!in(x,y)``.

    Raises:
        UsageError: `text` does not have that form.
    """
    selector = {}
    for part in re.split(r",(?![^(]*\))", text) if text else ():
        match = re.fullmatch(r"\s*([\w./-]+)\s*=\s*(!?in\([\w.,\s-]+\)|!?[\w.-]+)\s*", part)
        if match is None:
            raise UsageError(
                f"--node-labels (={text}) must be labels and values, like ray.io/accelerator-type=A100,zone=in(a,b); a "
                "value behind ! must not be there."
            )
        selector[match[1]] = match[2]
    return selector


def fits(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether Ray would let a node with `labels` match `selector`."""
    for key, wanted in selector.items():
        names = re.findall(r"[\w.-]+", wanted.lstrip("!").removeprefix("in(") if "(" in wanted else wanted.lstrip("!"))
        if (labels.get(key) in names) == wanted.startswith("!"):
            return False
    return True


def shortage(given: Resources, nodes: Sequence[Node], free: Node) -> str:
    """A sentence that compares what a run claims with what the cluster has, for a run that does not get it.

    Args:
        given: what the run's workers claim.
        nodes: the nodes that are alive.
        free: what is unclaimed on all nodes together.
    """
    has = Node(cpus=sum(node.cpus for node in nodes), gpus=sum(node.gpus for node in nodes))
    asked = Node(cpus=given.workers * given.num_cpus, gpus=given.workers * given.num_gpus)
    claim = counted(given.workers, "worker claims", "workers claim")
    return (
        f"{claim} {_amounts(asked)}, and tasks beside them {given.codec_cpus:g} CPU each; "
        f"the cluster has {_amounts(has)}, of which {_amounts(free)} are free"
    )


def _amounts(of: Node) -> str:
    return f"{of.cpus:g} CPUs and {of.gpus:g} GPUs"
