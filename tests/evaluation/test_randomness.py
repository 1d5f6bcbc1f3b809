import numpy as np

from vbp.evaluation.randomness import generator_for

IMAGE = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_numbers_depend_on_image_seed_and_purpose_alone():
    first = generator_for(IMAGE, 1).random(3)
    np.testing.assert_array_equal(generator_for(IMAGE.copy(order="F"), 1).random(3), first)
    for other in (generator_for(IMAGE + 1, 1), generator_for(IMAGE, 2), generator_for(IMAGE, 1, 1)):
        assert not np.isin(other.random(3), first).any()
