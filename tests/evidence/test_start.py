"""The part start: its commands exist, and a command that fails is reported."""

import pytest

from vbp.evidence.start import _figures, _first_mask, _help


def test_the_help_is_timed():
    assert 0 < _help() < 60


def test_only_the_help_has_a_target():
    seconds = {"vbp --help": [0.4, 0.6, 0.5]}
    for images in (10, 100):
        seconds[f"first mask of {images} images, local runner"] = [9.0]
        seconds[f"first mask of {images} images, ray runner"] = [18.0]
    help_, *masks = _figures(seconds)
    assert (help_.median, help_.target, help_.reached) == (0.5, 0.5, True)
    assert [each.reached for each in masks] == [None] * 6
    assert [each.median for each in masks] == [9, 18, 9, 18, 2, 2]


def test_a_command_that_fails_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="no mask came of .* explain nowhere .*: vbp: .*nowhere"):
        _first_mask(tmp_path, ["nowhere"])


@pytest.mark.slow
def test_the_first_mask_is_timed(tmp_path, photos, network_file):
    settings = ["--weights", network_file, "--size", "32", "--runner", "local"]
    assert 0 < _first_mask(tmp_path, [str(photos), *settings]) < 300
    assert list(tmp_path.iterdir()) == []
