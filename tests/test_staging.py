"""Copies beside the computation: by a device whose streams work as late as they may, and count the time they take."""

import random
import threading

import numpy as np
import pytest
import torch

from tests.late_device import MILLISECONDS, LateDevice, PromptDevice
from vbp.staging import Staged

SEED = 3


def several(pixels_BHWC):
    """Results of several types and shapes."""
    values = pixels_BHWC.double()
    return values.sum((1, 2, 3)), pixels_BHWC[..., 0], values.mean((1, 2, 3)) > 100, values[..., 1].float() / 255


def expected(pixels):
    values = pixels.astype(np.float64)
    return [values.sum((1, 2, 3)), pixels[..., 0], values.mean((1, 2, 3)) > 100, pixels[..., 1] / np.float32(255)]


def batches(count, rows=4, side=6):
    print("seed", SEED)  # noqa: T201
    return list(np.random.default_rng(SEED).integers(0, 256, (count, rows, side, side, 3), dtype=np.uint8))


def check(found, pixels):
    for one, other in zip(found, expected(pixels), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)


def test_copies_of_one_batch_run_beside_the_work_of_another():
    device = LateDevice()
    staged = Staged(several, device)
    given = batches(9)
    pending = [staged.begin(pixels, 4) for pixels in given[:3]]
    for number, pixels in enumerate(given):
        check(staged.end(pending[number]), pixels)
        if number + 3 < len(given):
            pending.append(staged.begin(given[number + 3], 4))
    # The work is never interrupted; before it is one copy in, behind it one copy out.
    assert device.now == 4 + 9 * 10 + 6
    assert sum(MILLISECONDS.values()) * 9 == 180  # one after another


def test_what_was_returned_stays_when_slots_are_used_again():
    staged = Staged(several, LateDevice(), slots=1)
    given = batches(3)
    found = [staged(pixels, 4) for pixels in given]
    for one, pixels in zip(found, given, strict=True):
        check(one, pixels)


@pytest.mark.parametrize("begin", [0, 16, 64, 2048, 4080])
def test_pixels_lie_half_a_page_from_where_they_came_from(begin):
    """Wherever that is: else the copy of some batches takes five times as long."""
    memory = np.zeros(2 * 4096 + 4 * 6 * 6 * 3, np.uint8)
    first = -memory.ctypes.data % 4096 + begin
    pixels = memory[first : first + 4 * 6 * 6 * 3].reshape(4, 6, 6, 3)
    pixels[:] = batches(1)[0]
    staged = Staged(several, LateDevice())
    slot = staged.begin(pixels, 4)
    assert (slot._filled.data_ptr() - pixels.ctypes.data) % 4096 == 2048
    check(staged.end(slot), pixels)


def test_a_short_batch_is_filled_up_with_black_images():
    seen = []

    def noted(pixels_BHWC):
        seen.append(pixels_BHWC.clone())
        return several(pixels_BHWC)

    staged = Staged(noted, LateDevice(), slots=1)
    whole, short = batches(2)
    staged(whole, 4)
    check(staged(short[:1], 4), short[:1])
    assert seen[1].shape == (4, 6, 6, 3)
    assert torch.equal(seen[1][0], torch.from_numpy(short[0]))
    assert not seen[1][1:].any()


def test_buffers_grow_and_are_kept():
    device = LateDevice()
    staged = Staged(several, device, slots=1)
    for side in (4, 8, 4, 8):
        pixels = batches(1, 2, side)[0]
        check(staged(pixels, 2), pixels)
    inputs = [size - 4096 for size in device.pinned_sizes if size > 4096]  # with a page to spare
    assert inputs == [96, 384]  # one for each time that it grew; the others are results


def test_pixels_may_be_read_only():
    pixels = batches(1)[0]
    pixels.flags.writeable = False  # as in Ray's shared memory
    check(Staged(several, LateDevice())(pixels, 4), pixels)


def test_a_slot_is_free_again_after_an_error():
    def fails(pixels_BHWC):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    staged = Staged(fails, PromptDevice(), slots=1)
    for _ in range(3):  # it would wait for ever
        with pytest.raises(torch.OutOfMemoryError):
            staged(batches(1)[0], 4)


def test_several_threads_get_their_own_results():
    staged = Staged(several, LateDevice(), slots=2)
    given = batches(40)
    wrong = []

    def work(own):
        for pixels in own:
            try:
                check(staged(pixels, 4), pixels)
            except AssertionError as error:
                wrong.append(error)

    order = random.Random(SEED).sample(given, len(given))
    threads = [threading.Thread(target=work, args=(order[first::5],)) for first in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
