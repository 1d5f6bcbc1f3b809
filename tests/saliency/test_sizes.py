"""Networks that compute with the sizes of their data: the geometry at any size is the gradient of a network of ones."""

import math
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vbp.errors import ImageError, ModelError
from vbp.saliency import VisualBackProp
from vbp.saliency.export import export
from vbp.saliency.trace import trace

from .conftest import randomise

SIZES = [(16, 16), (17, 22), (31, 12), (16, 16)]


def convolution(kernel, stride=1, dilation=1, padding=0):
    """All weights 1, so that for positive images the network is linear, and its gradient an all-ones deconvolution."""
    layer = nn.Conv2d(1, 1, kernel, stride, padding, dilation, bias=False)
    nn.init.ones_(layer.weight)
    return layer


def same_padded(x, kernel, stride, dilation=1):
    """TensorFlow's "same": the output has the length of the input over the stride, rounded up."""
    needed = [
        max((math.ceil(length / stride) - 1) * stride + dilation * (kernel - 1) + 1 - length, 0)
        for length in x.shape[-2:]
    ]
    rows, columns = needed
    return F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])


class Net(nn.Module):
    def __init__(self, forward, *layers):
        super().__init__()
        self.layers, self.rest = nn.ModuleList(layers), forward

    def forward(self, x):
        return F.relu(self.rest(x, *self.layers))


def same_by_if(x, a):
    """Pads only where it must, as torch code does that was written for speed."""
    rows = (math.ceil(x.shape[2] / 2) - 1) * 2 + 3 - x.shape[2]
    if rows > 0:
        x = F.pad(x, (0, 0, rows // 2, rows - rows // 2))
    return a(x)


def joined_at_size_of_other(x, a, b):
    deep = b(F.relu(a(x)))
    return (F.interpolate(deep, size=x.shape[-2:], mode="bilinear", align_corners=False) + x) / 2


def cropped_to_other(x, a):
    """U-Net's: the longer map loses what the shorter one does not have."""
    y = a(x)
    rows, columns = x.size(2) - y.size(2), x.size(3) - y.size(3)
    left, top = columns // 2, rows // 2
    return (y + x[:, :, top : top + y.size(2), left : left + y.size(3)]) / 2


def padded_to_other(x, a, up):
    y = up(a(x))
    rows, columns = x.size()[2] - y.size()[2], x.size()[3] - y.size()[3]
    y = F.pad(y, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
    return (y + x) / 2


def clamped(x, a):
    """Large images are all resized to one size."""
    y = F.interpolate(x, [min(length, 18) for length in x.shape[2:]])
    return F.interpolate(a(y), y.shape[2:])


def cropped(x, a):
    """Large images are all cropped to one size."""
    y = x[:, :, :20, :14]
    return F.interpolate(a(y), y.shape[2:], mode="bilinear", align_corners=False)


def transposed(kernel, **settings):
    layer = nn.ConvTranspose2d(1, 1, kernel, bias=False, **settings)
    nn.init.ones_(layer.weight)
    return layer


def apart(x, a):
    """Squares of 2x3 pixels become channels, as TResNet's first layer does."""
    images, channels, rows, columns = x[:, :, :12, :12].shape
    x = x[:, :, :rows, :columns].view(images, channels, rows // 2, 2, columns // 3, 3)
    x = x.permute(0, 3, 5, 1, 2, 4).reshape(images, channels * 6, rows // 2, columns // 3)
    return a(x.sum(1, keepdim=True))


def together(x, a):
    """Channels become squares of 2x3 pixels."""
    x = a(x).expand(-1, 6, -1, -1)
    images, _, rows, columns = x.shape
    x = x.reshape(images, 1, 2, 3, rows, columns).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(images, 1, rows * 2, columns * 3)


NETWORKS = [
    Net(lambda x, a, b: b(a(x)), convolution(3, 2), transposed(3, stride=2)),
    Net(
        lambda x, a, b: b(a(x)),
        convolution(2),
        transposed((3, 2), stride=(3, 1), padding=(1, 2), output_padding=(2, 0), dilation=(1, 3)),
    ),
    Net(lambda x, a: F.conv_transpose2d(x, a.weight, stride=3, padding=2), convolution(4)),
    Net(lambda x, a: F.pixel_shuffle(a(x).expand(-1, 4, -1, -1), 2), convolution(3)),
    Net(lambda x, a: a(F.pixel_unshuffle(x[:, :, :12, :9], 3).sum(1, keepdim=True)), convolution(2)),
    Net(lambda x, a: a(same_padded(x, 3, 2)), convolution(3, 2)),
    Net(lambda x, a: a(same_padded(x, 5, 3)), convolution(5, 3)),
    Net(lambda x, a: a(same_padded(x, 2, 4, 3)), convolution(2, 4, 3)),
    Net(lambda x, a, b: b(same_padded(a(same_padded(x, 3, 2)), 4, 2)), convolution(3, 2), convolution(4, 2)),
    Net(same_by_if, convolution(3, 2)),
    Net(joined_at_size_of_other, convolution(3, 2, padding=1), convolution(3)),
    Net(cropped_to_other, convolution(4)),
    Net(padded_to_other, convolution(3, 2), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
    Net(lambda x, a: F.interpolate(a(x), (x.size(2) // 2, 2 * x.size(-1)), mode="nearest"), convolution(3)),
    Net(lambda x, a: a(x[:, :, -12:, 1:11]), convolution(3)),
    Net(lambda x, a: F.interpolate(a(x), [int(n * 1.5) for n in x.shape[2:]]), convolution(3)),
    Net(clamped, convolution(3)),
    Net(apart, convolution((2, 3))),
    Net(together, convolution(3)),
    Net(cropped, convolution(3)),
]


def gradient(network, image, mask):
    image = image.requires_grad_()
    (found,) = torch.autograd.grad(network(image), image, mask)
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_geometry_is_the_networks_own_at_every_size(network):
    vbp = VisualBackProp(network)
    for number, size in enumerate(SIZES):
        generator = torch.Generator().manual_seed(number)
        image = torch.rand(1, 1, *size, generator=generator)
        above = network(image).shape[2:]
        mask = torch.rand(1, 1, *above, generator=generator)
        stages, _ = vbp._way(image)
        down = mask
        sizes = [image.shape[2:], *(kept.shape[2:] for kept in vbp.explain(image).maps)]
        for stage, below in zip(stages[::-1], sizes[-2::-1], strict=True):
            down = stage.deconvolve(down, tuple(below))
        torch.testing.assert_close(down, gradient(network, image, mask), rtol=1e-5, atol=1e-6)


def test_output_is_the_networks_own_at_every_size_and_number_of_images():
    network = Net(same_by_if, nn.Conv2d(2, 3, 3, 2))
    vbp = VisualBackProp(randomise(network))
    for images, size in ((1, (9, 12)), (3, (10, 7)), (2, (9, 12))):
        image = torch.randn(images, 2, *size, generator=torch.Generator().manual_seed(images))
        assert torch.equal(vbp.explain(image).output, network(image))


def test_only_a_network_that_computes_with_sizes_is_looked_at_again():
    plain = nn.Sequential(convolution(3), nn.ReLU(), nn.Flatten())
    viewed = Net(lambda x, a: a(x).view(x.size(0), 1, -1).relu(), convolution(3))
    assert not trace(plain).sized
    assert not trace(Net(lambda x, a: a(x) * x.mean((2, 3)).view(x.size(0), -1, 1, 1), convolution(3))).sized
    padded = trace(Net(lambda x, a: a(same_padded(x, 3, 2)), convolution(3, 2)))
    assert padded.sized
    assert not padded.choices
    assert trace(Net(same_by_if, convolution(3, 2))).choices
    with pytest.raises(ModelError, match="no activation"):
        trace(viewed)


def test_what_is_decided_by_the_number_of_images_is_refused():
    network = Net(lambda x, a: a(x) if x.shape[0] > 2 else a(x) + x, convolution(3, padding=1))
    with pytest.raises(ModelError, match="decides by the number of images"):
        VisualBackProp(network)


def test_size_that_the_network_refuses_costs_this_image_alone():
    def forward(x, a):
        if x.shape[2] % 2:
            raise ValueError(f"{x.shape[2]} rows are odd")
        return a(x)

    vbp = VisualBackProp(Net(forward, convolution(3, padding=1)))
    assert vbp(torch.rand(1, 1, 8, 9)).shape == (1, 1, 8, 9)
    with pytest.raises(ImageError, match="cannot be explained for an image of 7x9 pixels: .*are odd"):
        vbp(torch.rand(1, 1, 7, 9))


def test_layers_of_the_size_run_while_another_thread_traces():
    """torch.fx replaces methods of every module while it traces; other threads must not notice."""
    network = nn.Sequential(convolution(3), nn.ReLU())
    started, go_on, outputs = threading.Event(), threading.Event(), []

    def forward(x, a):
        started.set()
        assert go_on.wait(20)
        return a(x)

    tracing = threading.Thread(target=trace, args=(Net(forward, convolution(3)),))
    tracing.start()
    assert started.wait(20)
    outputs.append(network(torch.ones(1, 1, 3, 3)))
    go_on.set()
    tracing.join(20)
    assert outputs[0].item() == 9


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_exported_with_the_size_of_the_example():
    network = randomise(Net(lambda x, a: a(same_padded(x, 3, 2)), nn.Conv2d(1, 3, 3, 2)))
    vbp = VisualBackProp(network)
    images = torch.rand(2, 1, 17, 22, generator=torch.Generator().manual_seed(3))
    output, mask = export(vbp, images).module()(images)
    torch.testing.assert_close(mask, vbp(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(output, network(images))
