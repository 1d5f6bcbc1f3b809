"""The hardware of the workers, looked at on their own machines, and the precision that all of them can compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vbp.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One machine's hardware, as torch on that machine sees it."""

    node: str = "this machine"
    """The machine's address in the cluster."""
    device: str
    """cpu, cuda or mps."""
    processor: str
    """Name of the GPU, or the vector instructions that torch uses on the CPU."""
    bfloat16: bool
    """Whether the processor multiplies bfloat16 in hardware."""
    int8: bool = False
    """Whether torch can multiply 8-bit integers on this CPU."""
    available: bool = True
    """Whether torch can use the device on this machine at all."""
    no_jpeg: str | None = None
    """Why the GPU decodes no JPEG; None if it does, or there is no GPU."""


def look(device: str, node: str = "this machine") -> Hardware:
    """Look at the machine that this process runs on.

    Args:
        device: cpu, cuda or mps.
        node: the machine's name or address, for messages.
    """
    import torch

    from vbp.explainer import resolve_precision
    from vbp.images.device_decode import why_not
    from vbp.saliency.prepared.byte_layers import can_quantise

    if device == "cuda" and not torch.cuda.is_available():
        return Hardware(node=node, device=device, processor="no GPU", bfloat16=False, available=False)
    if device == "cuda":
        processor = torch.cuda.get_device_name()
    elif device == "mps":
        processor = "Apple GPU"
    else:
        processor = f"CPU with {torch.backends.cpu.get_cpu_capability()}"
    bfloat16 = resolve_precision("auto", device) == "bfloat16"
    return Hardware(
        node=node,
        device=device,
        processor=processor,
        bfloat16=bfloat16,
        int8=can_quantise(device),
        no_jpeg=why_not(device) if device == "cuda" else None,
    )


def refuse_missing_gpus(found: Sequence[Hardware]) -> None:
    """Refuse nodes whose GPUs torch does not see: Ray counts the GPUs that it was started with, seen or not.

    Raises:
        UsageError: torch sees no GPU there; names the nodes.
    """
    without = [each.node for each in found if not each.available]
    if without:
        raise UsageError(
            f"Ray counts GPUs on node {', '.join(without)}, but torch sees none there: check the driver and that torch "
            "is a CUDA build, or start the node without --num-gpus; --device cpu uses the CPUs."
        )


def refuse_integers(precision: str, found: Sequence[Hardware]) -> None:
    """Refuse int8 on machines that cannot compute it: it needs a CPU and a torch with integer kernels.

    Raises:
        UsageError: a machine cannot compute int8; names it.
    """
    without = [each for each in found if not each.int8]
    if precision != "int8" or not without:
        return
    rest = "give another --precision (a run that was begun in int8 goes on on CPUs alone)"
    if (device := without[0].device) != "cpu":
        raise UsageError(
            f"--precision int8 is for CPUs, and the network would run on {device}: add --device cpu, or {rest}."
        )
    names = ", ".join(f"{each.node} ({each.processor})" for each in without[:5])
    raise UsageError(
        f"--precision int8 needs a torch with oneDNN's integers, which is missing on {names}: choose other nodes by "
        f"--node-labels, or {rest}."
    )


def refuse_decoding(decode: str, found: Sequence[Hardware]) -> None:
    """Refuse ``--decode gpu`` without GPUs, or with some that cannot do it.

    Args:
        decode: ``--decode``.
        found: the machines of the workers.

    Raises:
        UsageError: a machine has no GPU, or no TorchCodec that decodes on it; names it.
    """
    if decode != "gpu":
        return
    if (device := found[0].device) != "cuda":
        raise UsageError(f"--decode gpu needs an NVIDIA GPU, and the network would run on {device}: leave it out.")
    without = [each for each in found if each.no_jpeg]
    if without:
        names = ", ".join(each.node for each in without[:5])
        raise UsageError(
            f"--decode gpu needs TorchCodec with CUDA, which does not work on {names} ({without[0].no_jpeg}): pip "
            "install 'visualbackprop[gpu]' on every node, or leave the option out."
        )


def common_precision(asked: str, before: str | None, found: Sequence[Hardware]) -> str:
    """The precision: ``--precision``, else the resumed run's, else the fastest float type of all machines' hardware.

    Args:
        asked: ``--precision``.
        before: precision of the run that is resumed; None for a new run.
        found: the machines of the workers.
    """
    if asked != "auto":
        return asked
    return before or ("bfloat16" if all(machine.bfloat16 for machine in found) else "float32")


def slow_machines(precision: str, found: Sequence[Hardware]) -> str | None:
    """A sentence on the machines without hardware for `precision`, which compute it slowly; None if all have it."""
    slow = [machine for machine in found if precision == "bfloat16" and not machine.bfloat16]
    if not slow:
        return None
    names = ", ".join(f"{machine.node} ({machine.processor})" for machine in slow[:5])
    more = f" and {len(slow) - 5} more" if len(slow) > 5 else ""
    return f"No hardware for bfloat16 on {names}{more}: the network is slower there than in float32."


def kinds(found: Sequence[Hardware]) -> list[str]:
    """The different processors, sorted."""
    return sorted({each.processor for each in found})
