"""JPEGs decoded on a device, for which Pillow and torch on the CPU stand in: the pixels of `decode`, whoever reads."""

import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.jpegs import decoder, jpeg, noise
from vbp.images import device_decode
from vbp.images.decode import decode
from vbp.images.device_decode import DeviceDecode, why_not
from vbp.networks.preprocessing import Preprocessing

SIZES = [(90, 70), (40, 64), (32, 32), (33, 32), (31, 30), (7, 5), (200, 33), (8, 40)]


def files_of(sizes):
    return [jpeg(noise(*size, seed)) for seed, size in enumerate(sizes)]


@pytest.mark.parametrize(("how", "levels"), [("bilinear", 1), ("bicubic", 2)])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch", "trained"])
def test_pixels_are_within_a_level_of_those_of_the_cpu(fit, how, levels):
    seen = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), how, trained=(40, 32) if fit == "trained" else None)
    files = files_of(SIZES)
    found = DeviceDecode(decoder, 32, fit, seen)(files, SIZES)
    for file, pixels_HWC in zip(files, found, strict=True):
        expected_HWC = decode(file, size=32, fit=fit, preprocessing=seen).pixels_HWC
        assert (pixels_HWC.shape, pixels_HWC.dtype) == ((32, 32, 3), np.uint8)
        assert np.abs(pixels_HWC.astype(int) - expected_HWC).max() <= levels


def test_a_file_that_the_device_cannot_read_is_no_loss_for_its_neighbours():
    files = files_of(SIZES[:4])
    asked = []

    def refusing(some):
        asked.append(len(some))
        return decoder(some)

    whole = DeviceDecode(decoder, 32)(files, SIZES[:4])
    files[2] = files[2][:100]
    found = DeviceDecode(refusing, 32)(files, SIZES[:4])
    assert asked == [4, 1, 1, 1, 1]
    assert found[2] is None
    assert all(np.array_equal(found[row], whole[row]) for row in (0, 1, 3))


def test_pixels_of_another_size_than_the_header_says_are_not_taken():
    files = files_of(SIZES[:2])
    found = DeviceDecode(lambda some: [each.transpose(1, 2) for each in decoder(some)], 32)(files, SIZES[:2])
    assert found == [None, None]


def test_nothing_is_decoded_of_nothing():
    assert DeviceDecode(lambda files: pytest.fail("asked"))([], []) == []


def test_images_are_decoded_together_up_to_the_pixels_of_the_largest(monkeypatch):
    monkeypatch.setattr(device_decode, "LARGEST_ON_DEVICE", 2 * 30 * 20)
    asked = []

    def watched(some):
        asked.append(len(some))
        return decoder(some)

    sizes = [(30, 20), (30, 20), (30, 20), (60, 20), (30, 20)]
    files = files_of(sizes)
    found = DeviceDecode(watched, 16)(files, sizes)
    assert asked == [2, 1, 1, 1]
    alone = [DeviceDecode(decoder, 16)([file], [size])[0] for file, size in zip(files, sizes, strict=True)]
    assert all(np.array_equal(one, other) for one, other in zip(found, alone, strict=True))


def test_threads_take_turns():
    inside, most = [], []

    def slow(some):
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.005)
        inside.pop()
        return decoder(some)

    decode_there = DeviceDecode(slow, 16)
    files = files_of(SIZES[:1])
    threads = [threading.Thread(target=decode_there, args=(files, SIZES[:1])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def stand_in(monkeypatch, decode_jpeg):
    monkeypatch.setattr(device_decode, "find_spec", lambda name: name == "torchcodec")
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(decode_jpeg=decode_jpeg))


def test_torchcodec_is_asked_for_that_device(monkeypatch):
    asked = []
    stand_in(monkeypatch, lambda files, device: asked.append(device) or decoder(files))
    assert why_not("cuda") is None
    (pixels_CHW,) = device_decode.torchcodec("cuda")([jpeg(noise(9, 5))])
    assert asked == ["cuda", "cuda"]
    assert torch.equal(pixels_CHW, decoder([jpeg(noise(9, 5))])[0])


def test_a_torchcodec_that_is_absent_or_does_not_work_says_why(monkeypatch):
    def broken(files, device):
        raise RuntimeError(f"no nvJPEG\n  on {device}")

    stand_in(monkeypatch, broken)
    assert why_not("cuda") == "RuntimeError: no nvJPEG on cuda"
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    assert why_not("cuda").startswith("ModuleNotFoundError: ")
    monkeypatch.setattr(device_decode, "find_spec", lambda name: None)
    assert why_not("cuda") == "it is not installed"
