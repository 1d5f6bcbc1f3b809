"""The estimates for GPUs: counted from the layers, and held against what was measured."""

import re

import pytest

from vbp.evidence.expected import CHIPS, Batch, expectations, page

H100, H200 = CHIPS
MAPS = [(64, 224), (64, 224), (128, 112), (128, 112)]
MAPS += [(256, 56)] * 3 + [(512, 28)] * 3 + [(512, 14)] * 3
"""Channels and side of each convolution's map."""
LAUNCHES = [("vgg16", "none", "299", "26.20")]


def test_kernels_that_only_use_memory_take_as_long_as_their_traffic():
    megabytes = sum(128 * 2 * channels * side * side for channels, side in MAPS) / 1e6
    batch = Batch.on(H100)
    assert batch.relu == pytest.approx(2 * megabytes / 2.85)
    assert batch.bias == pytest.approx(2 * megabytes / (0.93 * 2.85))
    averages = sum(128 * 4 * side * side for _, side in MAPS) / 1e6
    assert batch.fused_mean == pytest.approx((megabytes + averages) / 2.85)
    pooled = [MAPS[1], MAPS[3], MAPS[6], MAPS[9], MAPS[12]]
    below, above = (sum(128 * 2 * each[0] * each[1] ** 2 / share for each in pooled) / 1e6 for share in (1, 4))
    assert batch.plain_pooling == pytest.approx((below + above) / 2.85)
    assert batch.pooling == pytest.approx((below + above + 4 * above) / 1.5)  # an index has four times the bytes


def test_convolutions_take_at_least_their_arithmetic():
    inputs = [3, *(channels for channels, _ in MAPS[:-1])]
    teraflop = (
        sum(128 * 2 * 9 * below * channels * side * side for below, (channels, side) in zip(inputs, MAPS, strict=True))
        / 1e12
    )
    assert 1e6 * teraflop / 620 < Batch.on(H100).convolutions < 1e6 * teraflop / 400


def test_more_memory_bandwidth_helps_and_all_optimisations_are_the_sum_of_each():
    slower, faster = Batch.on(H100), Batch.on(H200)
    assert faster.best < slower.best < slower.bare < slower.plain
    assert slower.plain - slower.best == pytest.approx(sum(slower.saved().values()))


def test_the_page_has_every_figure_and_says_that_none_was_measured():
    text = page(LAUNCHES)
    assert "Nothing on this page was measured on a GPU" in text
    assert "| vgg16   | none      | 299" in text
    for each in expectations():
        assert f" {each.name}, {each.unit} " in text


def test_what_was_measured_stands_beside_it_with_the_ratio():
    measured = {
        "machine": {"gpu": "NVIDIA H200"},
        "figures": [
            {"part": "rates", "name": "bare forward pass", "unit": "images/s", "median": 4912.0},
            {"part": "job", "name": "main job through Ray, 1 worker", "unit": "images/s", "median": 1000},
            {"part": "job", "name": "main job through Ray, 3 workers", "unit": "images/s", "median": 2318},
            {"part": "compiling", "name": "masks on the device", "unit": "images/s", "median": 9},
        ],
    }
    text = page(LAUNCHES, measured)
    assert "Measured on NVIDIA H200." in text
    assert "was measured on a GPU: there was none" not in text
    assert re.search(r"\| section +\| figure +\| H100 +\| H200 +\| measured +\| over H200 +\|", text)
    assert re.search(r"\| bare forward pass, images/s .*\| 4,912 +\| 0\.50 +\|", text)
    assert re.search(r"\| main job through Ray, images/s .*\| 2,318 +\| 0\.50 +\|", text)
    assert re.search(r"\| decode JPEG 500x375, ms/image .*\| not measured +\| +\|", text)


def test_a_chip_without_estimates_is_named():
    with pytest.raises(ValueError, match="there are estimates for H100, H200, and none for NVIDIA L4"):
        page(LAUNCHES, {"machine": {"gpu": "NVIDIA L4"}, "figures": []})
