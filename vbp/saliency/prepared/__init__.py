"""The same forward pass, made fast for its device."""

from __future__ import annotations

import torch

from vbp.saliency.forward import ForwardPass
from vbp.saliency.prepared.cpu import packed
from vbp.saliency.prepared.cuda import fewer_kernels
from vbp.saliency.prepared.int8 import Scales, quantised
from vbp.saliency.prepared.switches import Switches


def prepare(
    forward: ForwardPass,
    device: torch.device,
    precision: str,
    scales: Scales | None = None,
    switches: Switches | None = None,
) -> ForwardPass:
    """A pass with the results of `forward`, to be run many times without gradients before the last tap.

    Args:
        forward: a pass whose network is on the device, in the precision's type, trained, and in evaluation mode.
        device: the device on which it runs.
        precision: the network's precision.
        scales: scales for int8; None for other precisions.
        switches: what is done on CUDA; None: everything.
    """
    if scales is not None:
        forward = quantised(forward, scales)
    if device.type == "cuda":
        return fewer_kernels(forward, device, switches or Switches())
    return packed(forward) if device.type == "cpu" else forward
