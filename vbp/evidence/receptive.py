"""A check of a network's geometry by the network itself: the pixels that change a map's pixel are those in its window.

For every stage, autograd says which pixels of the map below a pixel depends on. Gates and norms over the whole map
depend on all pixels and are no paths of a mask, so gradients do not pass them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node
from typing_extensions import override

from vbp.saliency.dataflow import follow
from vbp.saliency.forward import channels_first
from vbp.saliency.operations import operation_of
from vbp.saliency.shapes import Shapes, Sizes, larger
from vbp.saliency.trace import Trace, channels_of, trace
from vbp.saliency.values import Map

WHOLE_MAP_NORMS = frozenset((nn.GroupNorm, nn.InstanceNorm2d, nn.functional.group_norm, nn.functional.instance_norm))
DRAWS = 3


def enliven(model: nn.Module) -> None:
    """Give weights that begin as 0, such as the scales of residual branches, other values: else nothing passes them."""
    for parameter in model.parameters():
        if not bool(parameter.any()):
            nn.init.uniform_(parameter, 0.5, 1.5)


def problems(model: nn.Module, size: tuple[int, int] = (96, 112), seed: int = 0) -> list[str]:
    """What is wrong with the geometry of a network in evaluation mode, a line a stage; none if nothing is.

    Of every stage two pixels are looked at: one in the middle, and one at a corner.
    """
    channels = channels_of(model)
    found = trace(model, (2, channels, *size))
    generator = torch.Generator().manual_seed(seed)
    seen: dict[tuple[int, str], Tensor] = {}
    allowed: dict[tuple[int, str], Tensor] = {}
    for _ in range(DRAWS):
        ends = _Ends(model, found, (2, channels, *size))
        ends.run(torch.randn(1, channels, *size, generator=generator))
        for number, (below, above) in enumerate(zip([ends.image, *ends.maps], ends.maps, strict=False)):
            for place, gradient_HW in _gradients(below, above, generator).items():
                support = gradient_HW != 0
                seen[number, place] = seen.get((number, place), torch.zeros_like(support)) | support
                allowed[number, place] = _window(found, number, place, above, below)
    lines = []
    for (number, place), support in seen.items():
        window = allowed[number, place]
        name = f"{found.stages[number].name} ({place})"
        if bool((support & ~window).any()):
            lines.append(f"{name} depends on pixels outside its window")
        elif _box(support) != _box(window):
            lines.append(f"{name} depends on {_box(support)}, its window is {_box(window)}")
    return lines


class _Ends(Interpreter):
    """Runs a traced network so that autograd sees each stage alone."""

    def __init__(self, model: nn.Module, found: Trace, shape: tuple[int, int, int, int]):
        super().__init__(model, graph=found.graph)
        sizes = Sizes(Shapes(model, shape), Shapes(model, larger(shape)))
        self._followed: dict[Node, Map] = follow(found.graph, model, sizes)[0]
        self._model, self._found = model, found
        self.image: Tensor = torch.empty(0)
        self.maps: list[tuple[Tensor, Tensor]] = []

    @override
    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op == "output" or not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        if n not in self._followed:
            return result.detach()
        if operation_of(n, self._model) in WHOLE_MAP_NORMS:
            source = self.env[n.all_input_nodes[0]]
            return source * (result / source).detach()
        if n.op == "placeholder":
            self.image = result = result.detach().requires_grad_()
        elif n.name in self._found.taps:
            leaf = result.detach().requires_grad_()
            layout = self._found.layouts.get(n.name, (0, 2, 3))
            self.maps.append((channels_first(result, *layout), leaf))
            result = leaf
        return result.clone() if result.is_leaf else result


def _gradients(below: Any, above: tuple[Tensor, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    leaf = below if isinstance(below, Tensor) else below[1]
    map_1CHW = above[0]
    found = {}
    for place, (row, column) in _places(map_1CHW).items():
        weights_C = torch.randn(map_1CHW.shape[1], generator=generator)
        (gradient,) = torch.autograd.grad((map_1CHW[0, :, row, column] * weights_C).sum(), leaf, retain_graph=True)
        found[place] = gradient
    return {place: _plane(gradient, below) for place, gradient in found.items()}


def _plane(gradient: Tensor, below: Any) -> Tensor:
    """The gradient's size at each pixel, whatever the order of axes."""
    if isinstance(below, Tensor):
        return gradient.abs().sum((0, 1))
    size = below[0].shape[2:]
    order = (0, 2, 3) if gradient.shape[2:] == size else (0, 1, 2)
    return channels_first(gradient, *order).abs().sum((0, 1))


def _places(map_1CHW: Tensor) -> dict[str, tuple[int, int]]:
    rows, columns = map_1CHW.shape[2:]
    return {"middle": (rows // 2, columns // 2), "corner": (rows - 1, 0)}


def _window(found: Trace, number: int, place: str, above: tuple[Tensor, Tensor], below: Any) -> Tensor:
    size = below.shape[2:] if isinstance(below, Tensor) else below[0].shape[2:]
    row, column = _places(above[0])[place]
    one = torch.zeros(1, 1, *above[0].shape[2:])
    one[..., row, column] = 1
    return found.stages[number].deconvolve(one, (size[0], size[1]))[0, 0] != 0


def _box(plane_HW: Tensor) -> tuple[int, int, int, int] | None:
    """First and last row and column that are not empty."""
    if not bool(plane_HW.any()):
        return None
    rows, columns = plane_HW.any(1).nonzero()[:, 0], plane_HW.any(0).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])
