import numpy as np

from vbp.evaluation.baselines import centre, edge, uniform


def test_centre_is_a_gaussian_about_the_centre_pixel():
    saliency_HW = centre(4, 9)
    assert saliency_HW.dtype == np.float32
    assert np.flatnonzero(saliency_HW == saliency_HW.max()).tolist() == [2 * 9 + 4]
    assert saliency_HW.max() == 1
    # one standard deviation: a quarter of the height, and of the width
    np.testing.assert_allclose(saliency_HW[1, 4], np.exp(-0.5), rtol=1e-6)
    np.testing.assert_allclose(saliency_HW[2, 4 + 3], np.exp(-((3 / 2.25) ** 2) / 2), rtol=1e-6)
    np.testing.assert_allclose(saliency_HW[1, 7], saliency_HW[1, 4] * saliency_HW[2, 7], rtol=1e-6)


def test_edge_peaks_on_the_steepest_step_of_luminance():
    pixels = np.full((20, 40, 3), 100, np.uint8)
    pixels[:, 12:] = 130
    pixels[:, 30:] = (130, 240, 130)  # 110 in green is 65 in luminance
    saliency_HW = edge(pixels)
    assert saliency_HW.shape == (20, 40)
    assert set(saliency_HW.argmax(1)) <= {29, 30}
    assert saliency_HW[:, 18:24].max() < 0.3 * saliency_HW[:, 12].max() < 0.3 * saliency_HW.max()


def test_a_plain_image_has_no_edge():
    assert np.ptp(edge(np.full((8, 9, 3), 77, np.uint8))) == 0


def test_noise_is_uniform_and_each_images_own():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 100, 100, 3), dtype=np.uint8)
    one, other = (uniform(each, 500) for each in pixels)
    assert one.dtype == np.float32
    # the mean of 10,000 numbers is within 5 standard deviations, 0.0029 each
    assert abs(one.mean() - 0.5) < 0.015
    assert abs(np.quantile(one, 0.1) - 0.1) < 0.015
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.05
    assert np.array_equal(one, uniform(pixels[0].copy(order="F"), 500))
    assert not np.array_equal(one, uniform(pixels[0], 501))
