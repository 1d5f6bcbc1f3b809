"""Every window's all-ones deconvolution against loops, for random geometry."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests import reference
from vbp.saliency.geometry import Stage, Window, map_sizes

pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731


@settings(max_examples=150, deadline=None)
@given(pair(1, 5), pair(1, 4), pair(0, 3), pair(1, 3), pair(3, 17), st.booleans(), st.integers(0, 2**31))
def test_deconvolve_equals_loops(kernel, stride, padding, dilation, size, ceil_mode, seed):
    # Only pooling has ceil_mode, and no pooling pads by more than half its kernel.
    ceil_mode = ceil_mode and all(2 * pad <= length for pad, length in zip(padding, kernel, strict=True))
    layer = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    window = Window(kernel, stride, padding, padding, dilation, ceil_mode)
    small = reference.output_size(size, layer)
    assume(min(small) > 0)
    assert window.output_size(size) == small
    planes = np.random.default_rng(seed).random((2, *small))
    found = window.deconvolve(torch.from_numpy(planes)[:, None].float(), size)
    assert found.shape == (2, 1, *size)
    for plane, result in zip(planes, found[:, 0].double().numpy(), strict=True):
        np.testing.assert_allclose(result, reference.spread(plane, layer, size), rtol=1e-6, atol=1e-30)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.integers(1, 3), pair(3, 20), st.booleans())
def test_output_size_is_pytorchs(kernel, stride, padding, dilation, size, ceil_mode):
    assume(padding <= kernel // 2)
    window = Window((kernel,) * 2, (stride,) * 2, (padding,) * 2, (padding,) * 2, (dilation,) * 2, ceil_mode)
    assume(min(window.output_size(size)) > 0)
    pooled = F.max_pool2d(torch.zeros(1, 1, *size), kernel, stride, padding, dilation, ceil_mode)
    assert window.output_size(size) == pooled.shape[2:]


def test_too_small_an_input_has_no_output():
    assert min(Window((5, 5), (2, 2)).output_size((3, 9))) < 1


def test_pool_and_convolution_equal_their_merged_kernel():
    """2x2/2 pooling below a padded 3x3 convolution is one deconvolution of 6x6, stride 2, padding 2."""
    stage = Stage("relu", (Window((2, 2), (2, 2)), Window((3, 3), before=(1, 1), after=(1, 1))))
    mask = torch.rand(1, 1, 5, 7, generator=torch.Generator().manual_seed(0))
    merged = F.conv_transpose2d(mask, torch.ones(1, 1, 6, 6), stride=2, padding=2)
    torch.testing.assert_close(stage.deconvolve(mask, (10, 14)), merged, rtol=1e-6, atol=0)


def test_pixels_that_no_window_reaches_stay_zero():
    found = Window((1, 1), (3, 3)).deconvolve(torch.ones(1, 1, 2, 2), (6, 5))
    assert found[0, 0].tolist() == [[1, 0, 0, 1, 0]] + [[0] * 5] * 2 + [[1, 0, 0, 1, 0]] + [[0] * 5] * 2


def test_map_sizes_follow_every_step():
    convolution, pool = Window((3, 3)), Window((2, 2), (2, 2), ceil_mode=True)
    stages = [Stage("a", (convolution,)), Stage("b", (pool, convolution))]
    assert map_sizes(stages, (11, 8)) == [(9, 6), (3, 1)]


@pytest.mark.parametrize("batch", [1, 3])
def test_an_image_of_a_batch_is_spread_alone(batch):
    planes = torch.rand(batch, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    window = Window((3, 3), (2, 2), (1, 1), (1, 1))
    alone = torch.cat([window.deconvolve(plane[None], (11, 11)) for plane in planes])
    assert torch.equal(window.deconvolve(planes, (11, 11)), alone)
