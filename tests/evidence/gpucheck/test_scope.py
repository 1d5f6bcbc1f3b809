"""What all sections have in common."""

from dataclasses import replace

import pytest
import torch

from vbp.evidence.gpucheck.scope import BrokenDeviceError, Piece, Scope

DRY = Scope(device="cpu", batch_size=2, size=32, rounds=1, weights=None, is_dry=True)
GPU = replace(DRY, device="cuda", is_dry=False)


def fails():
    yield 1
    raise RuntimeError("CUDA error:\nno kernel")


FAILED = "failed: RuntimeError: CUDA error: no kernel"


def test_what_fails_is_a_note_behind_what_it_gave():
    assert list(DRY.attempted("resnet50", fails())) == [Piece("resnet50"), 1, FAILED]
    assert list(DRY.attempted("resnet50", iter([1, 2]))) == [Piece("resnet50"), 1, 2]


def test_what_an_earlier_process_has_begun_is_left_out():
    scope = replace(DRY, behind=("vgg16", "resnet50"))
    assert list(scope.attempted("resnet50", fails())) == []
    assert list(scope.attempted("resnet152", iter([1]))) == [Piece("resnet152"), 1]


@pytest.fixture
def cuda(monkeypatch):
    """What `torch.cuda` was asked for."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: asked.append(name))
    return asked


def test_after_a_failure_the_device_is_asked_whether_it_works(cuda):
    assert list(GPU.attempted("fused", fails())) == [Piece("fused"), 1, FAILED]
    assert cuda == ["synchronize", "empty_cache"]
    assert list(GPU.attempted("pools", iter([1]))) == [Piece("pools"), 1]
    assert len(cuda) == 2


def test_a_device_that_is_broken_ends_the_process(cuda, monkeypatch):
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    found = GPU.attempted("fused", fails())
    assert [next(found) for _ in range(3)] == [Piece("fused"), 1, FAILED]
    with pytest.raises(BrokenDeviceError, match="illegal memory access"):
        next(found)


def test_where_nobody_has_asked_for_a_gpu_none_is_begun(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert list(GPU.attempted("1 worker", fails()))[-1] == FAILED
    assert cuda == []
