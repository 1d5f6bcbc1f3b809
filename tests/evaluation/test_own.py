import pytest
import torch

from tests.evaluation.kinds import KINDS, images
from vbp.evaluation import own
from vbp.evaluation.subject import Batch, Subject
from vbp.evaluation.twin import random_twin
from vbp.saliency.method import Method
from vbp.saliency.visualbackprop import VisualBackProp

CLASSES = torch.tensor([1, 1, 4])
METHOD = Method(pooling="merged", multiply_input=True)


@pytest.fixture
def network():
    return KINDS["vgg-norm"]()


@pytest.mark.parametrize(
    ("maker", "settings", "target"),
    [
        (own.as_run, {}, None),
        (own.reference, {"preset": "reference", "pooling": "exact"}, None),
        (own.last_stages, {"stages": "last"}, None),
        (own.weighted, {}, CLASSES),
    ],
)
def test_each_is_the_run_with_one_change(network, maker, settings, target):
    given = Batch(*images(), CLASSES)
    chosen = {"pooling": "merged", "multiply_input": True, **settings}
    wanted_B1HW = VisualBackProp(network, **chosen)(given.images_BCHW, target=target)
    assert wanted_B1HW.amax((1, 2, 3)).eq(1).all()
    assert torch.equal(maker(Subject(network, METHOD, 500))(given), wanted_B1HW[:, 0])


def test_a_run_with_a_target_weights_for_the_given_class(network):
    given = Batch(*images(), CLASSES)
    subject = Subject(network, Method(target="predicted"), 500)
    wanted_B1HW = VisualBackProp(network)(given.images_BCHW, target=CLASSES)
    assert torch.equal(own.as_run(subject)(given), wanted_B1HW[:, 0])


def test_the_twin_is_explained_in_the_same_way_without_a_class(network):
    given = Batch(*images(), None)
    subject = Subject(network, Method(stages="last", target="predicted"), 7)
    wanted_B1HW = VisualBackProp(random_twin(network, 7), stages="last")(given.images_BCHW)
    assert torch.equal(own.of_random_twin(subject)(given), wanted_B1HW[:, 0])
