"""The preprocessing of a network as one value: what it allows, and how pixels are changed by it."""

import dataclasses

import pytest

from vbp.errors import UsageError
from vbp.networks.preprocessing import IMAGENET, Preprocessing

CAFFE = Preprocessing((0.408, 0.458, 0.485), (1 / 255,) * 3, channels="bgr")
GREY = Preprocessing((0.1307,), (0.3081,), channels="grey")


def test_the_default_is_imagenets_as_torchvision_has_it():
    assert Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", "rgb") == IMAGENET
    assert IMAGENET.mean_colour == (124, 116, 104)


def test_lists_are_taken_and_kept_as_what_can_be_compared():
    made = Preprocessing([0, 0.5, 1], [1, 1, 1])
    assert (made.mean, hash(made)) == ((0.0, 0.5, 1.0), hash(Preprocessing((0.0, 0.5, 1.0), (1.0, 1.0, 1.0))))


def test_values_are_told_by_colour():
    assert CAFFE.rgb_mean == (0.485, 0.458, 0.408)
    assert GREY.rgb_std == (0.3081,) * 3
    assert GREY.mean_colour == (33, 33, 33)
    assert (IMAGENET.depth, CAFFE.depth, GREY.depth) == (3, 3, 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mean": (123.675, 116.28, 103.53)}, r"mean \(=123.675,116.28,103.53\) must lie in 0..1.*0.485,0.456,0.406"),
        ({"std": (58.395, 57.12, 57.375)}, r"std \(=58.395,57.12,57.375\) must lie in 0..1.*0.229,0.224,0.225"),
        ({"mean": (-0.1, 0, 0)}, r"mean \(=-0.1,0,0\) must lie in 0..1, as pixels do\.$"),
        ({"std": (0.2, 0, 0.2)}, r"std \(=0.2,0,0.2\) must lie in 0..1, as pixels do, and not be 0\.$"),
        ({"std": (0.2, 0.2)}, r"std \(=0.2,0.2\) must have 3 values for channels rgb"),
        ({"mean": (0.5,)}, r"mean \(=0.5\) must have 3 values"),
        ({"channels": "grey"}, r"mean \(=0.485,0.456,0.406\) must have 1 values for channels grey"),
        ({"mean": ()}, "mean .* must be finite numbers"),
        ({"mean": (float("nan"), 0, 0)}, "mean .*nan.* must be finite"),
        ({"mean": ("a", 0, 0)}, "mean .* must be numbers"),
    ],
)
def test_wrong_values_are_named_with_their_rule(settings, said):
    with pytest.raises(UsageError, match=said):
        Preprocessing(**settings)


def test_nothing_asked_for_changes_nothing():
    for each in (IMAGENET, CAFFE, GREY):
        assert each.changed() == each


def test_mean_and_deviation_go_with_their_colours():
    turned = IMAGENET.changed(channels="bgr")
    assert (turned.mean, turned.rgb_mean, turned.rgb_std) == ((0.406, 0.456, 0.485), IMAGENET.mean, IMAGENET.std)
    assert turned.changed(channels="rgb") == IMAGENET
    given = IMAGENET.changed(channels="bgr", mean=(0.1, 0.2, 0.3), interpolation="bicubic")
    assert given == Preprocessing((0.1, 0.2, 0.3), (0.225, 0.224, 0.229), "bicubic", "bgr")


def test_grey_is_never_guessed_from_colours():
    with pytest.raises(UsageError, match=r"channels \(=grey\) needs mean and std too"):
        IMAGENET.changed(channels="grey")
    with pytest.raises(UsageError, match="needs mean and std too"):
        IMAGENET.changed(channels="grey", mean=(0.5,))
    assert IMAGENET.changed(channels="grey", mean=(0.1307,), std=(0.3081,)) == GREY


def test_json_makes_the_same_again():
    for each in (IMAGENET, CAFFE, GREY):
        assert Preprocessing(**each.as_json()) == each
        assert set(each.as_json()) == {field.name for field in dataclasses.fields(each)}


def test_how_weights_were_trained_is_two_sides():
    assert Preprocessing(trained=[256, 224]).trained == (256, 224)
    assert Preprocessing(**Preprocessing(trained=(256, 224)).as_json()) == Preprocessing(trained=(256, 224))
    for wrong in ((224,), (200, 224), (256.0, 224), (256, 0)):
        with pytest.raises(UsageError, match=r"trained \(=.*\) must be two whole numbers of pixels"):
            Preprocessing(trained=wrong)
