"""Random networks against oracles that share no code with vbp.

Stacks of convolutions and pools, all parameters random: NumPy loops, `conv_transpose2d` written out, and autograd of
the network with all weights 1. Random branching networks: autograd, with cut nodes found by deleting them. Set
VBP_SEED for other networks than the usual ones.
"""

import os
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests import reference
from vbp.saliency import VisualBackProp
from vbp.saliency.trace import trace

from .conftest import randomise

SEED = int(os.environ.get("VBP_SEED", "500"))
STACKS, BATCHES = 600, 6
GRAPHS = 150


def random_window(draw):
    return {
        "kernel_size": (draw.randint(1, 4), draw.randint(1, 4)),
        "stride": (draw.randint(1, 3), draw.randint(1, 3)),
        "dilation": (draw.randint(1, 2), draw.randint(1, 2)),
    }


def random_convolution(draw, inputs, outputs):
    window = random_window(draw)
    if draw.random() < 0.2:
        window |= {"padding": "same", "stride": 1}
    else:
        window["padding"] = (draw.randint(0, 3), draw.randint(0, 3))
    return nn.Conv2d(inputs, outputs, groups=draw.choice([1, 2]), **window)


def random_pool(draw):
    window = random_window(draw)
    window["padding"] = tuple(draw.randint(0, length // 2) for length in window["kernel_size"])
    if draw.random() < 0.5:
        return nn.MaxPool2d(**window, ceil_mode=draw.random() < 0.5)
    del window["dilation"]
    return nn.AvgPool2d(**window)


def random_stack(draw):
    """A network of up to four convolutions with their ReLUs, and an image that passes through it."""
    image = torch.randn(1, 2, draw.randint(3, 15), draw.randint(3, 15))
    modules, value = [], image

    def append(module):
        nonlocal value
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.Conv2d):
            (layer,) = reference.layers_of([module])
            if min(reference.output_size(value.shape[2:], layer)) < 1:
                return False
        with torch.no_grad():
            given = module.eval()(value)
        if not given.isfinite().all():  # the maximum over a window that lies in the padding
            return False
        modules.append(module)
        value = given
        return True

    for _ in range(draw.randint(1, 4)):
        if draw.random() < 0.4:
            append(random_pool(draw))
        if not append(randomise(random_convolution(draw, value.shape[1], draw.choice([2, 4])), draw.randrange(10**6))):
            continue
        if draw.random() < 0.3:
            append(randomise(nn.BatchNorm2d(value.shape[1]), draw.randrange(10**6)))
        if draw.random() < 0.85:
            append(nn.ReLU())
    return (nn.Sequential(*modules, nn.ReLU()), image) if any(isinstance(m, nn.Conv2d) for m in modules) else None


def transposed(mask, layer, size):
    """`conv_transpose2d` without padding, then cropped or filled with zeros to `size`."""
    full = F.conv_transpose2d(
        mask, mask.new_ones(1, 1, *layer["kernel"]), stride=layer["stride"], dilation=layer["dilation"]
    )
    (top, left), (rows, columns) = layer["padding"], full.shape[2:]
    return F.pad(full, (-left, size[1] + left - columns, -top, size[0] + top - rows))


def written_out(maps, ways):
    mask = torch.from_numpy(maps[-1])[None, None]
    for depth in range(len(maps) - 1, -1, -1):
        for layer, size in reversed(ways[depth]):
            mask = transposed(mask, layer, size)
        if depth:
            mask = mask * torch.from_numpy(maps[depth - 1])
    return mask


def linearised(maps, ways, size):
    """The gradient of the network with all weights 1 and its ReLUs replaced by multiplication with their maps."""
    image = torch.zeros(1, 1, *size, dtype=torch.float64, requires_grad=True)
    value = image
    for map_HW, way in zip(maps, ways, strict=True):
        for layer, below in way:
            rows, columns = reference.output_size(below, layer)
            (top, left), far = layer["padding"], 20
            wide = F.pad(value, (left, far, top, far))
            ones = wide.new_ones(1, 1, *layer["kernel"])
            value = F.conv2d(wide, ones, stride=layer["stride"], dilation=layer["dilation"])[..., :rows, :columns]
        value = value * torch.from_numpy(map_HW)
    (gradient,) = torch.autograd.grad(value.sum(), image)
    return gradient


def check(result, product, case):
    """A mask against the product before its normalisation, in units of its maximum."""
    product = np.asarray(product).reshape(result.mask.shape[2:])
    low, high = product.min(), product.max()
    found = result.mask[0, 0].double().numpy() * (high - low) + low
    assert np.abs(found - product).max() <= 1e-5 * high, case
    if high == 0:
        assert result.flat.all(), case
        assert result.log10_max.isneginf().all(), case
    else:
        assert abs(result.log10_max.item() - np.log10(high)) < 1e-5, case


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("batch", [f"VBP_SEED={SEED}, batch {number}" for number in range(BATCHES)])
def test_random_stacks(batch):
    cases = 0
    number = 0
    while cases < STACKS // BATCHES:
        case = f"{batch}, number {number}"
        number += 1
        draw = random.Random(case)
        torch.manual_seed(draw.randrange(10**9))
        if (drawn := random_stack(draw)) is None:
            continue
        model, image = drawn
        result = VisualBackProp(model.eval()).explain(image)
        layers = reference.layers_of(model)
        pixels = image[0].double().numpy()
        maps, ways = reference.forward(layers, pixels)
        assert [tuple(kept.shape[2:]) for kept in result.maps] == [kept.shape for kept in maps], case
        check(result, reference.paper_product(layers, pixels), case)
        check(result, written_out(maps, ways), case)
        check(result, linearised(maps, ways, image.shape[2:]), case)
        cases += 1


class Graph(nn.Module):
    """A random graph of convolutions, pools, ReLUs, additions and concatenations; all maps have one size."""

    def __init__(self, draw):
        super().__init__()
        self.layers = nn.ModuleDict()
        self.program = [("input", ())]
        self.channels = [2]
        self.append(draw, "conv", (0,))
        for _ in range(draw.randint(4, 14)):
            recent = range(max(0, len(self.program) - 4), len(self.program))
            kind = draw.choice(["conv", "conv", "relu", "pool", "add", "cat"])
            count = draw.randint(2, 3) if kind in ("add", "cat") else 1
            sources = tuple(sorted(draw.sample(recent, min(count, len(recent)))))
            if kind == "add":
                sources = tuple(n for n in sources if self.channels[n] == self.channels[sources[-1]])
            if kind not in ("add", "cat") or len(sources) > 1:
                self.append(draw, kind, sources)
        self.append(draw, "conv", (len(self.program) - 1,))
        self.append(draw, "relu", (len(self.program) - 1,))

    def append(self, draw, kind, sources):
        channels = sum(self.channels[n] for n in sources) if kind == "cat" else self.channels[sources[0]]
        if kind == "conv":
            kernel, gap = draw.choice([1, 3, 5]), draw.choice([1, 2])
            layer = nn.Conv2d(channels, 2, kernel, padding=gap * (kernel // 2), dilation=gap)
            self.layers[str(len(self.program))] = randomise(layer, draw.randrange(10**6))
            channels = 2
        self.program.append((kind, sources))
        self.channels.append(channels)

    def forward(self, x):
        return self.values(x)[-1].amax((2, 3))

    def values(self, x):
        values = [x]
        for number, (kind, sources) in enumerate(self.program[1:], 1):
            first, *others = (values[n] for n in sources)
            if kind == "conv":
                first = self.layers[str(number)](first)
            elif kind == "relu":
                first = F.relu(first)
            elif kind == "pool":
                first = F.max_pool2d(first, 3, 1, 1)
            elif kind == "cat":
                first = torch.cat([first, *others], 1)
            for other in others if kind == "add" else ():
                first = first + other
            values.append(first)
        return values

    def between(self, low, high, value):
        """The way from one node up to another with all weights 1, where joins are averages."""
        values = {low: value}
        for number in range(low + 1, high + 1):
            kind, sources = self.program[number][0], self.terms(number)
            known = [values[n] for n in sources if n in values]
            if not known:
                continue
            first = sum(known) / len(known)
            if kind in ("conv", "pool"):
                layer = self.layers[str(number)] if kind == "conv" else nn.MaxPool2d(3, 1, 1)
                kernel, gap = reference.pair(layer.kernel_size), reference.pair(layer.dilation)
                ones = first.new_ones(1, 1, *kernel)
                first = F.conv2d(first, ones, padding=reference.pair(layer.padding), dilation=gap)
            values[number] = first
        return values[high]

    def terms(self, number):
        """What a node is made of; a sum of sums, or a concatenation of such, is one whatever its brackets."""
        kind, sources = self.program[number]
        terms = []
        for source in sources:
            readers = [n for n, (_, others) in enumerate(self.program) if source in others]
            nested = kind in ("add", "cat") and self.program[source][0] == kind and readers == [number]
            terms += self.terms(source) if nested else [source]
        return terms

    def reached(self, without=None):
        """The nodes that a way from the input leads to, if one node is deleted."""
        reached = {0}
        for number, (_, sources) in enumerate(self.program):
            if number != without and reached & set(sources):
                reached.add(number)
        return reached

    def stages(self):
        last = len(self.program) - 1
        alive = {last}
        for number in range(last, 0, -1):
            if number in alive:
                alive |= set(self.program[number][1])
        cuts = [n for n in sorted(alive) if n and (n == last or last not in self.reached(without=n))]
        stages, low = [], 0
        for cut in cuts:
            kind = self.program[cut][0]
            readers = [self.program[n][0] for n in alive if cut in self.program[n][1]]
            ends = kind == "relu" or (kind in ("add", "cat") and readers != ["relu"])
            if ends and any(self.program[n][0] == "conv" for n in alive if low < n <= cut):
                stages.append(cut)
                low = cut
        return stages


@pytest.mark.long
@pytest.mark.parametrize("batch", [f"VBP_SEED={SEED}"])
def test_random_graphs(batch):
    shapes = set()
    for number in range(GRAPHS):
        case = f"{batch}, graph {number}"
        draw = random.Random(case)
        model = Graph(draw).double().eval()
        image = torch.randn(1, 2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        stages = model.stages()
        assert len(trace(model).stages) == len(stages), case
        values = model.values(image)
        maps = [values[n].detach().clamp(min=0).mean(1, keepdim=True) for n in stages]
        mask = maps[-1]
        for depth in range(len(stages) - 1, -1, -1):
            low = stages[depth - 1] if depth else 0
            below = torch.zeros(1, 1, 7, 6, dtype=torch.float64, requires_grad=True)
            (mask,) = torch.autograd.grad(model.between(low, stages[depth], below), below, mask)
            if depth:
                mask = mask * maps[depth - 1]
        check(VisualBackProp(model).explain(image), mask.detach(), case)
        shapes.add(tuple(model.program))
    assert len(shapes) > GRAPHS // 2
