"""The part start: the commands are real ones, and a command that fails is told."""

import pytest

from vbp.evidence.start import _figures, _first_mask, _help


def test_the_help_is_timed():
    assert 0 < _help() < 60


def test_only_the_help_has_a_target():
    figures = _figures({"vbp --help": [0.4, 0.6, 0.5], "first mask of 10 images, local runner": [9.0]})
    assert [(figure.median, figure.target, figure.reached) for figure in figures] == [(0.5, 0.5, True), (9, None, None)]


def test_a_command_that_fails_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="no mask came of .* explain nowhere .*: vbp: .*nowhere"):
        _first_mask(tmp_path, ["nowhere"])


@pytest.mark.slow
def test_the_first_mask_is_timed(tmp_path, photos, network_file):
    settings = ["--weights", network_file, "--size", "32", "--runner", "local"]
    assert 0 < _first_mask(tmp_path, [str(photos), *settings]) < 300
    assert list(tmp_path.iterdir()) == []
