"""The watch: what counts as a kernel, a wait, another device or another memory format."""

from contextlib import suppress

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from vbp.saliency.prepared.watch import Watch


@pytest.fixture(autouse=True)
def _fake():
    with FakeTensorMode():
        yield


def on_device(*shape, **settings):
    return torch.empty(*shape, device="cuda", **settings)


def watched(work):
    with Watch() as watch:
        work()
    return watch


@pytest.mark.parametrize(
    ("work", "kernels"),
    [
        (lambda x: x + 1, {"add": 1}),
        (lambda x: x.add_(1), {"add_": 1}),
        (lambda x: x.view(2, 2, 4, -1).transpose(0, 1)[:, :1].expand(2, 5, 4, -1), {}),
        (lambda x: torch.empty_like(x), {}),
        (lambda x: F.conv2d(x, on_device(4, 4, 3, 3)), {"convolution": 1}),
        (lambda x: F.conv2d(x, on_device(4, 4, 3, 3), on_device(4)), {"convolution": 1, "bias": 1}),
        (lambda x: F.linear(x, on_device(6, 8), on_device(6)), {"addmm": 1}),
        (lambda x: torch.ones(3) + 1, {}),
    ],
)
def test_what_writes_memory_is_a_kernel(work, kernels):
    x = on_device(2, 4, 8, 8)
    watch = watched(lambda: work(x))
    assert dict(watch.kernels) == kernels
    assert not watch.waits


def test_bytes_are_what_is_read_and_written_and_repeated_values_count_once():
    x, row = on_device(100, 4), on_device(1, 4).expand(100, 4)
    assert watched(lambda: x + row).bytes == 1600 + 16 + 1600


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.to("cpu"),
        lambda x: x.copy_(torch.empty(3)),
        lambda x: x + torch.empty(3).to("cuda"),
    ],
)
def test_what_the_host_waits_for_is_found(work):
    x = on_device(3)

    def careful():
        with suppress(RuntimeError):  # tensors without data have no number of values above 0
            work(x)

    assert watched(careful).waits


def test_a_number_that_is_read_is_found():
    x = on_device(())
    watch = Watch()
    with pytest.raises(RuntimeError), watch:
        x.item()
    assert watch.waits == ["_local_scalar_dense"]


def test_other_memory_formats_are_found():
    for memory_format, count in ((torch.channels_last, 0), (torch.contiguous_format, 1)):
        x = on_device(2, 4, 8, 8).contiguous(memory_format=memory_format)
        watch = watched(lambda x=x: F.conv2d(x, on_device(4, 4, 3, 3)))
        assert len(watch.other_formats) == count


def test_what_existed_before_is_kept():
    x, weight = on_device(2, 3), on_device(3, 4)
    watch = watched(lambda: ((x @ weight).relu() + 1).sum())
    kept = list(watch.kept.values())
    assert len(kept) == 2
    assert any(each is x for each in kept)
    assert any(each is weight for each in kept)
