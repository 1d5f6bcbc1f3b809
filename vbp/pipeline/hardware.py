"""What the network runs on, looked at where the work is done, and the precision that all of it can compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vbp.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What one machine offers to the network, as the torch of that machine sees it."""

    node: str = "this machine"
    """Its address in the cluster."""
    device: str
    """cpu or cuda."""
    processor: str
    """Name of the GPU, or the vector instructions that torch uses on the CPU."""
    bfloat16: bool
    """Whether it multiplies bfloat16 in hardware."""
    available: bool = True
    """Whether torch can use the device there at all."""


def look(device: str, node: str = "this machine") -> Hardware:
    """Look at the machine that this process runs on.

    Args:
        device: cpu or cuda.
        node: what to call the machine.
    """
    import torch

    from vbp.saliency.engine import resolve_precision

    if device == "cuda" and not torch.cuda.is_available():
        return Hardware(node=node, device=device, processor="no GPU", bfloat16=False, available=False)
    if device == "cuda":
        processor = torch.cuda.get_device_name()
    else:
        processor = f"CPU with {torch.backends.cpu.get_cpu_capability()}"
    bfloat16 = resolve_precision("auto", device) == "bfloat16"
    return Hardware(node=node, device=device, processor=processor, bfloat16=bfloat16)


def refuse_missing_gpus(found: Sequence[Hardware]) -> None:
    """Ray counts the GPUs that somebody stated; torch must see them too.

    Raises:
        UsageError: it does not; names the nodes.
    """
    without = [each.node for each in found if not each.available]
    if without:
        raise UsageError(
            f"Ray counts GPUs on node {', '.join(without)}, but torch sees none there: check the driver and that torch "
            "is a CUDA build, or start the node without --num-gpus; --device cpu uses the CPUs."
        )


def common_precision(asked: str, before: str | None, found: Sequence[Hardware]) -> str:
    """float32 or bfloat16: as asked, else as the run that is continued, else the fastest that all machines compute.

    Args:
        asked: ``--precision``.
        before: of the run that is continued; None for a new one.
        found: the machines of the workers.
    """
    if asked != "auto":
        return asked
    return before or ("bfloat16" if all(each.bfloat16 for each in found) else "float32")


def slow_machines(precision: str, found: Sequence[Hardware]) -> str | None:
    """A sentence on the machines that have no hardware for `precision`, and so compute it slowly; None if all have."""
    slow = [each for each in found if precision == "bfloat16" and not each.bfloat16]
    if not slow:
        return None
    names = ", ".join(f"{each.node} ({each.processor})" for each in slow[:5])
    more = f" and {len(slow) - 5} more" if len(slow) > 5 else ""
    return f"No hardware for bfloat16 on {names}{more}: the network is slower there than in float32."


def kinds(found: Sequence[Hardware]) -> list[str]:
    """The different processors, sorted."""
    return sorted({each.processor for each in found})
