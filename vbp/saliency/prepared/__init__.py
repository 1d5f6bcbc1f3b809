"""The same forward pass made fast for where it runs."""

from __future__ import annotations

import torch

from vbp.saliency.forward import ForwardPass
from vbp.saliency.prepared.cpu import packed
from vbp.saliency.prepared.int8 import Scales, quantised


def prepare(forward: ForwardPass, device: torch.device, precision: str, scales: Scales | None = None) -> ForwardPass:
    """A pass that gives what `forward` gives, to be run many times without gradients before the last tap.

    Args:
        forward: whose network lies on the device, in the precision's type, in evaluation mode as good as trained.
        device: where it runs.
        precision: of the network.
        scales: for int8; None for the others.
    """
    if scales is not None:
        forward = quantised(forward, scales)
    return packed(forward) if device.type == "cpu" else forward
