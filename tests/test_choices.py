"""The lists that users choose from."""

import pytest

from vbp.choices import MASK_FORMATS, Channels, Fit, MaskFormat, choices_of


@pytest.mark.parametrize(
    ("kind", "choices"),
    [(Fit, ("crop", "pad", "stretch", "original", "trained")), (Channels | None, ("rgb", "bgr", "grey"))],
)
def test_choices_of_a_list(kind, choices):
    assert choices_of(kind) == choices


@pytest.mark.parametrize("kind", [str, int | None, tuple[Fit, ...], tuple[float, ...] | None])
def test_other_types_have_none(kind):
    assert choices_of(kind) == ()


@pytest.mark.parametrize("name", choices_of(MaskFormat))
def test_a_mask_format_says_how_masks_are_stored(name):
    suffix, error = {"png8": (".png", 1 / 510), "png16": (".png", 1 / 131070), "npy": (".npy", 0)}[name]
    assert (MASK_FORMATS[name].suffix, MASK_FORMATS[name].half_a_level) == (suffix, pytest.approx(error))
