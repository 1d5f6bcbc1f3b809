"""Parity with torchvision's transforms on Pillow images, and where the frame lies."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from vbp.images.decode import decode
from vbp.images.frame import Frame
from vbp.networks.preprocessing import Preprocessing

PHOTOS = Path(__file__).parents[2].parent / "shared" / "data" / "photos"


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def torchvision_crop(image: Image.Image, size: int) -> np.ndarray:
    steps = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
    return np.asarray(steps(image)).astype(int)


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Black and white dots: the hardest input for a resampling filter."""
    return np.random.default_rng(seed).choice([0, 255], (height, width, 3)).astype(np.uint8)


@given(width=st.integers(1, 400), height=st.integers(1, 400), size=st.integers(1, 96), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, print_blob=True)
def test_crop_is_within_one_level_of_torchvision(width, height, size, seed):
    if max(width, height) > 100 * min(width, height):
        height = width
    pixels = noise(width, height, seed)
    expected = torchvision_crop(Image.fromarray(pixels), size)
    actual = decode(png(pixels), size=size).pixels_HWC
    assert actual.shape == (size, size, 3)
    assert np.abs(actual - expected).max() <= 1


@pytest.mark.parametrize(
    ("width", "height"),
    [(500, 375), (375, 500), (224, 224), (225, 224), (223, 224), (100, 80), (1, 1), (1, 90), (90, 1)],
)
def test_crop_of_ordinary_and_odd_sizes(width, height):
    pixels = noise(width, height)
    assert np.abs(decode(png(pixels)).pixels_HWC - torchvision_crop(Image.fromarray(pixels), 224)).max() <= 1


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the 64 photographs")
def test_crop_of_photographs():
    paths = sorted(PHOTOS.glob("*/*"))
    assert len(paths) == 64
    for path in paths:
        with Image.open(path) as image:
            expected = torchvision_crop(image.convert("RGB"), 224)
        assert np.abs(decode(path.read_bytes()).pixels_HWC - expected).max() <= 1, path.name


@pytest.mark.parametrize(("width", "height"), [(500, 375), (30, 400), (1, 1), (224, 10)])
def test_stretch_is_within_one_level_of_torchvision(width, height):
    pixels = noise(width, height)
    expected = np.asarray(transforms.Resize((224, 224))(Image.fromarray(pixels))).astype(int)
    picture = decode(png(pixels), fit="stretch")
    assert np.abs(picture.pixels_HWC - expected).max() <= 1
    assert picture.frame == Frame(0, 0, width, height)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (30, 200), (300, 40), (80, 64), (1, 1)])
def test_trained_is_within_one_level_of_torchvisions_own_transform(width, height):
    pixels, seen = noise(width, height), Preprocessing(size=64, trained=(80, 64))
    steps = transforms.Compose([transforms.Resize(80), transforms.CenterCrop(64)])
    expected = np.asarray(steps(Image.fromarray(pixels))).astype(int)
    picture = decode(png(pixels), size=64, fit="trained", preprocessing=seen)
    assert picture.pixels_HWC.shape == (64, 64, 3)
    assert np.abs(picture.pixels_HWC - expected).max() <= 1
    across = (picture.frame.right - picture.frame.left) * 80 / min(width, height)
    assert across == pytest.approx(64, abs=0.5)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (40, 30), (225, 224), (224, 2000)])
def test_bicubic_is_within_two_levels_of_torchvision(width, height):
    """Smooth pictures: dots would overshoot, and where that is cut off differs by levels."""
    coarse = np.random.default_rng(1).integers(60, 190, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    cubic = transforms.InterpolationMode.BICUBIC
    for fit, steps in (
        ("crop", [transforms.Resize(96, cubic), transforms.CenterCrop(96)]),
        ("stretch", [transforms.Resize((96, 96), cubic)]),
    ):
        expected = np.asarray(transforms.Compose(steps)(image)).astype(int)
        shown = decode(png(np.asarray(image)), size=96, fit=fit, preprocessing=Preprocessing(interpolation="bicubic"))
        assert np.abs(shown.pixels_HWC - expected).max() <= 2, fit


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1), (3, 20000)])
def test_extreme_shapes(fit, width, height):
    picture = decode(png(np.full((height, width, 3), 200, np.uint8)), fit=fit)
    assert picture.pixels_HWC.shape == (224, 224, 3)
    assert picture.pixels_HWC[112, 112].tolist() == [200, 200, 200]
    assert (picture.width, picture.height) == (width, height)


def test_crop_of_a_strip_shows_its_middle():
    pixels = np.zeros((1, 5000, 3), np.uint8)
    pixels[0, 2500:] = 255
    picture = decode(png(pixels), size=8)
    assert picture.frame == Frame(2499.5, 0, 2500.5, 1)
    # Between the centres of a black and a white pixel, in eighths.
    assert np.abs(picture.pixels_HWC[3, :, 0] - np.array([16, 48, 80, 112, 143, 175, 207, 239])).max() <= 1


@pytest.mark.parametrize(
    ("width", "height", "frame"),
    [
        # Resized to 298 x 224, of which columns 37 to 261 are kept.
        (500, 375, Frame(37 * 500 / 298, 0, 261 * 500 / 298, 375)),
        # Resized to 224 x 229; 2.5 is rounded to the even 2.
        (440, 450, Frame(0, 2 * 450 / 229, 440, 226 * 450 / 229)),
        (448, 448, Frame(0, 0, 448, 448)),
    ],
)
def test_frame_of_a_crop(width, height, frame):
    assert decode(png(noise(width, height))).frame == frame


def test_pad_centres_the_picture_on_the_mean_colour():
    picture = decode(png(np.full((50, 100, 3), 7, np.uint8)), size=20, fit="pad")
    expected = np.full((20, 20, 3), (124, 116, 104), np.uint8)
    expected[5:15] = 7
    assert np.array_equal(picture.pixels_HWC, expected)
    assert picture.frame == Frame(0, -25, 100, 75)


def test_pad_of_an_upright_picture():
    picture = decode(png(np.full((100, 50, 3), 7, np.uint8)), size=20, fit="pad")
    assert (picture.pixels_HWC[:, 5:15] == 7).all()
    assert (picture.pixels_HWC[:, [0, 4, 15, 19]] == (124, 116, 104)).all()
    assert picture.frame == Frame(-25, 0, 75, 100)


def test_original_is_untouched():
    pixels = noise(37, 21)
    picture = decode(png(pixels), size=224, fit="original")
    assert np.array_equal(picture.pixels_HWC, pixels)
    assert picture.frame == Frame(0, 0, 37, 21)
