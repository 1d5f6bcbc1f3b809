import numpy as np
import torch

from vbp.evaluation.randomness import generator_for, noisy

IMAGE = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_numbers_depend_on_image_seed_and_purpose_alone():
    first = generator_for(IMAGE, 1).random(3)
    np.testing.assert_array_equal(generator_for(IMAGE.copy(order="F"), 1).random(3), first)
    for other in (generator_for(IMAGE + 1, 1), generator_for(IMAGE, 2), generator_for(IMAGE, 1, 1)):
        assert not np.isin(other.random(3), first).any()


def test_noise_is_relative_to_each_image_and_its_own():
    images = torch.from_numpy(np.random.default_rng(9).standard_normal((2, 3, 14, 16)).astype(np.float32))
    images[1] *= 10
    copies = torch.stack(noisy(images, 40, 0.1, 7)) - images
    spread = copies.std((0, 2, 3, 4)) / (images.amax((1, 2, 3)) - images.amin((1, 2, 3)))
    np.testing.assert_allclose(spread, 0.1, rtol=0.02)
    np.testing.assert_array_equal(noisy(images[1:], 2, 0.1, 7)[1], noisy(images, 2, 0.1, 7)[1][1:])
    assert abs(np.corrcoef(copies[0].flatten(1))[0, 1]) < 0.1
