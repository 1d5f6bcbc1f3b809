"""Network and mask as one graph without Python: for ``torch.export``, ``torch.compile`` and ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vbp.errors import UsageError
from vbp.saliency.forward import evaluating
from vbp.saliency.visualbackprop import VisualBackProp


class Explained(nn.Module):
    """A network that returns its mask beside its output: (B, C, H, W) in, the output and (B, 1, H, W) out.

    Args:
        vbp: computes the masks; its network itself, not a copy, becomes part of the module.

    Raises:
        UsageError: `vbp` smooths over noise, which is random in every call.
    """

    def __init__(self, vbp: VisualBackProp):
        super().__init__()
        if samples := vbp.method.smooth:
            raise UsageError(f"smoothing (={samples}) cannot be part of a graph: use a VisualBackProp without it.")
        self.network = vbp.model
        self._vbp = vbp

    def forward(self, images_BCHW: Tensor) -> tuple[Any, Tensor]:
        """The network's output and the class-agnostic masks."""
        explanation = self._vbp.explain(images_BCHW)
        return explanation.output, explanation.mask


def export(vbp: VisualBackProp, images_BCHW: Tensor) -> ExportedProgram:
    """Network and mask as one graph, which runs without vbp.

    Args:
        vbp: what explains.
        images_BCHW: an example. The graph takes any number of images of this size, dtype and device.

    Returns:
        The program, whose ``.module()`` returns output and masks, equal to ``vbp.explain`` to 1e-5. Run it,
        and compile it, without gradients: the graph itself does not switch them off.

    Raises:
        UsageError: `vbp` smooths over noise.
        ModelError: a layer of the network does not do what its settings say.
        ImageError: the images are too small for the network.
    """
    # torch.export assumes that an axis of length 1 always has length 1.
    example = torch.cat([images_BCHW, images_BCHW]) if len(images_BCHW) == 1 else images_BCHW
    explained = Explained(vbp)
    with evaluating(explained):
        program = torch.export.export(explained, (example,), dynamic_shapes=({0: Dim("batch")},))
    # An empty decomposition still resolves the blocks without gradients, which torch.export.load cannot read.
    resolved: ExportedProgram = program.run_decompositions({})
    return resolved


def export_onnx(vbp: VisualBackProp, images_BCHW: Tensor, file: str | Path) -> None:
    """Write network and mask as one ONNX model, with the input `images` and the outputs `output` and `mask`.

    Args:
        vbp: what explains; its network's output must be one tensor.
        images_BCHW: an example, see `export`.
        file: the ``.onnx`` file to write.

    Raises:
        UsageError: the packages of the extra `onnx` are missing, or `vbp` smooths over noise.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError("writing ONNX needs more packages: pip install 'visualbackprop[onnx]'.") from error
    program = export(vbp, images_BCHW)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["output", "mask"]}
    torch.onnx.export(program, (), file, dynamo=True, external_data=False, verbose=False, **names)
