"""The way down in few kernels: the same values as shifted copies give, for every geometry."""

import random
from itertools import product

import pytest
import torch

from vbp.saliency.geometry import Merged, Pooling, Stage, Transposed, Window
from vbp.saliency.prepared.descent import FewKernels, in_few_kernels
from vbp.saliency.prepared.watch import Watch

SEED = 16


def random_map(*size, seed=SEED):
    return torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(seed))


def check(geometry, size):
    above = geometry.output_size(size)
    if min(above) < 1:
        return False
    map_N1HW = random_map(*above)
    found, expected = FewKernels(geometry).deconvolve(map_N1HW, size), geometry.deconvolve(map_N1HW, size)
    assert found.shape == expected.shape == (2, 1, *size)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=lambda text: f"{geometry} {size}: {text}")
    return True


def test_every_window_gives_the_same():
    numbers = random.Random(SEED)
    done = 0
    for _ in range(400):
        rows, columns = (
            {
                "kernel": numbers.randint(1, 5),
                "stride": numbers.choice((1, 1, 2, 3)),
                "before": numbers.randint(-1, 3),
                "after": numbers.randint(-1, 3),
                "dilation": numbers.choice((1, 1, 2)),
            }
            for _ in range(2)
        )
        window = Window(**{name: (rows[name], columns[name]) for name in rows}, ceil_mode=numbers.random() < 0.5)
        done += check(window, (numbers.randint(1, 14), numbers.randint(1, 14)))
    assert done > 200, f"seed {SEED}"


@pytest.mark.parametrize("kernel", [1, 2, 3, 7, 11])
@pytest.mark.parametrize("size", [(12, 12), (13, 15)])
def test_the_usual_windows_give_the_same(kernel, size):
    same = (kernel // 2, kernel // 2)
    windows = [
        Window((kernel, kernel), before=same, after=same),
        Pooling((kernel, kernel), (kernel, kernel), maximum=True),
        Pooling((kernel, kernel), (kernel, kernel), ceil_mode=True),
        Window((kernel, kernel), stride=(2, 2), before=same, after=same),
    ]
    assert sum(check(window, size) for window in windows) == 4


def test_merged_windows_give_the_same():
    convolution, pooling = Window((3, 3), before=(1, 1), after=(1, 1)), Pooling((3, 2), (2, 2), ceil_mode=True)
    for windows in ((pooling, convolution), (convolution, pooling, convolution), (pooling, pooling, convolution)):
        assert check(Merged(windows), (21, 18))


@pytest.mark.parametrize(
    ("window", "kernels"),
    [
        (Window((3, 3), before=(1, 1), after=(1, 1)), 1),
        (Pooling((2, 2), (2, 2)), 1),
        (Window((1, 1)), 0),
        (Window((7, 7), (2, 2), (3, 3), (3, 3)), 2),
        (Window((3, 3), dilation=(2, 2), before=(2, 2), after=(2, 2)), 2),
    ],
    ids=str,
)
def test_few_operations(window, kernels):
    quick, map_N1HW = FewKernels(window), random_map(*window.output_size((16, 16)))
    quick.deconvolve(map_N1HW, (16, 16))
    watch = Watch(device="cpu")
    with watch:
        quick.deconvolve(map_N1HW, (16, 16))
    assert watch.kernels.total() == kernels


def test_only_windows_are_replaced_and_switched_poolings_stay():
    window, other = Window((3, 3)), Transposed(Window((2, 2), (2, 2)))
    pooling, switched = Pooling((2, 2), node="pool_1"), Pooling((2, 2), node="pool_2", maximum=True)
    (stage,) = in_few_kernels([Stage("relu", (window, pooling, other, switched))], ["pool_2"])
    assert [type(step) for step in stage.steps] == [FewKernels, FewKernels, Transposed, Pooling]
    assert stage.steps[3] is switched


def test_a_value_that_is_not_finite_stays_so():
    for window, value in product(
        (Window((3, 3), before=(1, 1), after=(1, 1)), Window((2, 2), (2, 2))), (torch.nan, torch.inf)
    ):
        map_N1HW = random_map(*window.output_size((8, 8)))
        map_N1HW[1, 0, 2, 2] = value
        found = FewKernels(window).deconvolve(map_N1HW, (8, 8)).isfinite().flatten(1).all(1)
        assert found.tolist() == [True, False]
