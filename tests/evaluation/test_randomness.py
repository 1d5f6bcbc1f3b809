import numpy as np

from vbp.evaluation.randomness import generator_for, noisy

IMAGE = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_numbers_depend_on_image_seed_and_purpose_alone():
    first = generator_for(IMAGE, 1).random(3)
    np.testing.assert_array_equal(generator_for(IMAGE.copy(order="F"), 1).random(3), first)
    for other in (generator_for(IMAGE + 1, 1), generator_for(IMAGE, 2), generator_for(IMAGE, 1, 1)):
        assert not np.isin(other.random(3), first).any()


def test_noise_is_as_wide_as_asked_and_each_images_own():
    pixels = np.random.default_rng(9).integers(100, 156, (2, 14, 16, 3), dtype=np.uint8)
    copies = noisy(pixels, 40, 0.1, 7)
    added = np.stack(copies).astype(float) - pixels
    np.testing.assert_allclose(added.std((0, 2, 3, 4)), 25.5, rtol=0.02)
    assert abs(added.mean()) < 0.3
    assert abs(np.corrcoef(added[0].reshape(2, -1))[0, 1]) < 0.1
    np.testing.assert_array_equal(noisy(pixels[1:], 2, 0.1, 7)[1], copies[1][1:])


def test_noise_stops_at_black_and_white():
    pixels = np.zeros((1, 9, 9, 3), np.uint8)
    pixels[:, 4:] = 255
    (copy,) = noisy(pixels, 1, 0.1, 7)
    assert copy.dtype == np.uint8
    assert copy[0, :4].max() < 128 < copy[0, 4:].min()
    assert 0.4 < (copy == pixels).mean() < 0.6
