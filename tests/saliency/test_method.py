"""The method as one value."""

import pytest
import torch
from torch import nn

from vbp.errors import UsageError
from vbp.saliency.method import Method
from vbp.saliency.visualbackprop import VisualBackProp


def test_stages_are_kept_as_they_are_named():
    assert Method(stages=["relu", "layer1"]).stages == ("relu", "layer1")
    assert Method(stages="last").stages == "last"
    assert Method(stages=["relu"]) == Method(stages=("relu",))
    assert hash(Method(stages=["relu"])) == hash(Method(stages=("relu",)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preset": "papers"}, "preset 'papers' is none of paper, reference"),
        ({"pooling": "unpooled"}, "pooling 'unpooled' is none of exact, merged, unpool"),
        ({"preset": "reference", "pooling": "merged"}, "kernel of its own"),
        ({"smooth": -1}, r"smooth \(=-1\)"),
        ({"noise": 0.0}, r"noise \(=0.0\)"),
    ],
)
def test_what_cannot_be_is_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        Method(**settings)


def test_settings_one_by_one_and_as_one_value_are_the_same():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU())
    settings = {"stages": ["1", "4"], "pooling": "unpool", "multiply_input": True, "smooth": 2, "noise": 0.3, "seed": 7}
    single, whole = VisualBackProp(network, **settings), VisualBackProp(network, method=Method(**settings))
    assert single.method == whole.method
    images_BCHW = torch.rand(2, 3, 16, 16)
    assert torch.equal(single(images_BCHW), whole(images_BCHW))
