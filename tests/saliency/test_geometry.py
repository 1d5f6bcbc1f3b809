"""The way down through every kind of step against loops, written-out chains and autograd, for random geometry."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests import reference
from vbp.errors import ModelError
from vbp.saliency.geometry import Branches, Resampling, Stage, Strand, Window, map_sizes

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


def test_crop_is_negative_padding():
    window = Window((1, 1), stride=(1, 2), before=(-1, 0), after=(-2, 0))
    whole = torch.arange(35.0).view(1, 1, 5, 7)
    cut = whole[:, :, 1:-2, ::2]
    assert window.output_size((5, 7)) == cut.shape[2:]
    expected = torch.zeros_like(whole)
    expected[:, :, 1:-2, ::2] = cut
    assert torch.equal(window.deconvolve(cut, (5, 7)), expected)


@pytest.mark.parametrize("settings", [{"scale_factor": (2.0, 1.5)}, {"size": (7, 20)}, {"size": (3, 5)}])
@pytest.mark.parametrize(
    ("mode", "align_corners"), [("nearest", None), ("nearest-exact", None), ("bilinear", False), ("bilinear", True)]
)
def test_upsampling_leads_down_with_the_weights_that_it_led_up(settings, mode, align_corners):
    below = torch.rand(2, 1, 5, 8, generator=torch.Generator().manual_seed(2), requires_grad=True)
    above = F.interpolate(below, **settings, mode=mode, align_corners=align_corners)
    mask = torch.rand(above.shape, generator=torch.Generator().manual_seed(3))
    (expected,) = torch.autograd.grad(above, below, mask)
    name = "linear" if mode == "bilinear" else mode
    size, scale = settings.get("size", (None, None)), settings.get("scale_factor", (1.0, 1.0))
    step = Resampling(name, size, scale, align_corners)
    assert step.output_size((5, 8)) == above.shape[2:]
    torch.testing.assert_close(step.deconvolve(mask, (5, 8)), expected, rtol=1e-5, atol=1e-6)


def test_autocast_does_not_round_upsampling():
    step = Resampling("linear", scale=(2.0, 2.0), align_corners=False)
    mask = torch.rand(1, 1, 6, 8, generator=torch.Generator().manual_seed(7))
    with torch.autocast("cpu", torch.bfloat16):
        found = step.deconvolve(mask, (3, 4))
    assert torch.equal(found, step.deconvolve(mask, (3, 4)))


@pytest.mark.parametrize("size", [(2, 3), (5, None), (None, 1), (7, 11)])
def test_adaptive_pooling_spreads_over_its_windows(size):
    step = Resampling("adaptive", size)
    rows, columns = step.output_size((5, 8))
    assert (rows, columns) == F.adaptive_avg_pool2d(torch.ones(1, 1, 5, 8), size).shape[2:]
    mask = np.random.default_rng(4).random((rows, columns))
    expected = np.zeros((5, 8))
    for y in range(rows):
        for x in range(columns):
            top, bottom = y * 5 // rows, -(-(y + 1) * 5 // rows)
            left, right = x * 8 // columns, -(-(x + 1) * 8 // columns)
            expected[top:bottom, left:right] += mask[y, x]
    found = step.deconvolve(torch.from_numpy(mask)[None, None].float(), (5, 8))
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5)


CONVOLUTION = Window((3, 3), before=(1, 1), after=(1, 1))
STRIDED = Window((3, 3), (2, 2), (1, 1), (1, 1))


def test_branches_are_averaged():
    """Down-sampling block: a 3x3/2 and a 3x3 convolution beside a 1x1/2 one."""
    shortcut = Window((1, 1), (2, 2))
    branches = Branches((Strand((0,), (STRIDED, CONVOLUTION)), Strand((0,), (shortcut,)), Strand((1, 2))))
    assert branches.output_size((9, 12)) == (5, 6)
    mask = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(5))
    ones, point = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1)
    long = F.conv_transpose2d(F.conv_transpose2d(mask, ones, padding=1), ones, None, 2, 1, (0, 1))
    short = F.conv_transpose2d(mask, point, None, 2, 0, (0, 1))
    torch.testing.assert_close(branches.deconvolve(mask, (9, 12)), (long + short) / 2, rtol=1e-6, atol=0)


def test_dense_and_nested_branches_are_averages_of_averages():
    """Strand 3 begins where the split and strands 1 and 2 are joined; strand 4 joins all."""
    strands = (
        Strand((0,), (CONVOLUTION,)),
        Strand((0, 1), (CONVOLUTION,)),
        Strand((0, 1, 2), (CONVOLUTION,)),
        Strand((3, 0)),
    )
    mask = torch.rand(1, 1, 6, 5, generator=torch.Generator().manual_seed(6))
    spread = CONVOLUTION.deconvolve(torch.eye(30).view(30, 1, 6, 5), (6, 5)).view(30, 30)
    one = torch.eye(30)
    first = spread
    second = spread @ (one + first) / 2
    third = spread @ (one + first + second) / 3
    expected = mask.view(1, 30) @ (third + one) / 2
    found = Branches(strands).deconvolve(mask, (6, 5))
    torch.testing.assert_close(found.view(1, 30), expected, rtol=1e-5, atol=0)


def test_input_too_small_for_one_branch_has_no_output():
    branches = Branches((Strand((0,), (Window((5, 5)),)), Strand((0,), (Window((3, 3)),)), Strand((1, 2))))
    assert branches.output_size((4, 9)) == (0, 0)


def test_branches_of_unequal_size_are_named():
    branches = Branches((Strand((0,), (Window((2, 2)),)), Strand((0, 1))))
    with pytest.raises(ModelError, match=r"joins maps of unequal sizes \[\(3, 4\), \(4, 5\)\]"):
        branches.deconvolve(torch.ones(1, 1, 4, 5), (4, 5))
