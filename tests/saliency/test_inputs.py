"""Images of other kinds than the network takes: explained as the network would, or refused in a sentence."""

import numpy as np
import pytest
import torch
from torch import nn

from vbp.errors import UsageError
from vbp.saliency import VisualBackProp
from vbp.saliency.inputs import refuse_odd

from .conftest import small_vgg

IMAGES = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (IMAGES.numpy(), "not ndarray: pass torch.as_tensor"),
        ([IMAGES[0], IMAGES[1]], "not list: .* torch.stack"),
        (IMAGES[0], r"4 dimensions .* not shape \(3, 24, 32\): one image needs images\[None\]"),
        (IMAGES[None], r"4 dimensions .* not shape \(1, 2, 3, 24, 32\)\.$"),
        ((IMAGES * 50).byte(), "are uint8, the network computes in float32; convert them, normalised"),
        (IMAGES > 0, "are bool, the network computes in float32"),
        (IMAGES.half(), r"are float16, the network computes in float32; convert them\.$"),
        (IMAGES.double(), "are float64, the network computes in float32"),
        (IMAGES[:, :1], r"is \(2, 1, 24, 32\), the first convolution takes 3 channels\.$"),
        (IMAGES.permute(0, 2, 3, 1), r"is \(2, 24, 32, 3\), .* 3 channels; bring .* permute\(0, 3, 1, 2\)"),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"smooth": 1}])
def test_odd_images_are_refused_with_what_is_odd(images, reason, settings):
    with pytest.raises(UsageError, match=reason):
        VisualBackProp(small_vgg(), **settings)(images)


def test_images_elsewhere_than_the_network_are_refused():
    with pytest.raises(UsageError, match="they are on cpu, the network is on meta; move one"):
        refuse_odd(IMAGES, small_vgg().to("meta"))


@pytest.mark.parametrize("settings", [{}, {"smooth": 1, "multiply_input": True}])
def test_layout_and_gradients_make_no_difference(settings):
    vbp = VisualBackProp(small_vgg(), **settings)
    expected = vbp(IMAGES)
    wide = torch.zeros(2, 3, 24, 64)
    wide[..., ::2] = IMAGES
    for images in (
        wide[..., ::2],
        IMAGES.contiguous(memory_format=torch.channels_last),
        IMAGES.clone().requires_grad_(),
    ):
        found = vbp(images)
        assert not found.requires_grad
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"smooth": 1}, {"pooling": "unpool"}, {"preset": "reference"}])
def test_no_image_gives_no_mask(settings):
    for target in (None, 1):
        result = VisualBackProp(small_vgg(), **settings).explain(IMAGES[:0], target=target)
        assert result.mask.shape == (0, 1, 24, 32)
        assert len(result.finite) == len(result.flat) == len(result.log10_max) == 0


class Bytes(nn.Module):
    """Normalises within, as networks of applications do."""

    def __init__(self):
        super().__init__()
        self.layers = small_vgg()

    def forward(self, x):
        return self.layers(x.float() / 255 - 0.5)


def test_network_that_takes_bytes_gets_them():
    pixels = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    vbp = VisualBackProp(Bytes())
    assert torch.equal(vbp(pixels), VisualBackProp(small_vgg())(pixels.float() / 255 - 0.5))
    with pytest.raises(UsageError, match=r"must be floating-point for it, not torch\.uint8"):
        VisualBackProp(Bytes(), smooth=2)(pixels)


def test_fault_of_the_network_is_not_laid_on_its_images():
    network = small_vgg()
    network[-1].in_features, network[-1].weight = 7, nn.Parameter(torch.ones(5, 7))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        VisualBackProp(network).explain(IMAGES)


def test_arrays_are_images_where_the_adapters_take_arrays():
    from vbp.saliency.adapters import explain_func

    assert isinstance(explain_func(small_vgg(), IMAGES.double().numpy(), None), np.ndarray)
