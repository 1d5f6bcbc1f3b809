import numpy as np
import pytest

from vbp.demo.score import Score, Trial, peak_inside, score

OBJECT = np.array([[0, 0, 0], [0, 1, 1]], bool)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([[0, 0, 0], [0, 0, 1.0]], True),
        ([[0, 0, 1.0], [0, 0.9, 0.9]], False),
        ([[0, 0, 0.5], [0, 0.5, 0]], False),  # the first of equal maxima counts
        ([[0.2, 0.2, 0.2], [0.2, 0.2, 0.2]], False),
    ],
)
def test_peak_inside(mask, expected):
    assert peak_inside(np.array(mask, np.float32), OBJECT) is expected


def test_masks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"mask_HW \(3, 2\) and object_HW \(2, 3\)"):
        peak_inside(np.zeros((3, 2)), OBJECT)


def test_score_counts_each_rival_and_prints_the_line():
    size = 32
    object_HW = np.zeros((size, size), bool)
    object_HW[4:12, 4:12] = True
    pixels = np.full((size, size, 3), 50, np.uint8)
    pixels[object_HW] = 200
    inside, outside = np.zeros((size, size)), np.zeros((size, size))
    inside[6, 6] = outside[20, 20] = 1
    centred = np.roll(object_HW, (10, 10), (0, 1))
    result = score(
        [
            Trial(pixels, object_HW, inside, outside),
            Trial(pixels, object_HW, inside, inside),
            Trial(np.full_like(pixels, 9), centred, outside, inside),
        ]
    )
    assert (result.total, result.trained, result.random_weights, result.image_centre) == (3, 3, 1, 1)
    assert result.strongest_edge in (0, 2)  # the square's outline, on one side of it or the other


def test_the_line():
    assert str(Score(200, 184, 62, 11, 57)) == (
        "peaks inside: 184 of 200 (92 %); random weights: 31 %; image centre: 6 %; strongest edge: 28 %"
    )


def test_no_scenes_give_no_percentages():
    assert str(score([])) == "peaks inside: 0 of 0 (- %); random weights: - %; image centre: - %; strongest edge: - %"
