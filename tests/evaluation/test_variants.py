import numpy as np
import pytest
import torch
from torch import nn

from tests.evaluation.kinds import KINDS, every_kind, images
from vbp.evaluation.subject import Batch, Subject
from vbp.evaluation.twin import random_twin
from vbp.evaluation.variants import VARIANTS, geometric_mean, minus_twin, without_floor
from vbp.saliency.method import Method
from vbp.saliency.visualbackprop import VisualBackProp


def batch(count=2):
    return Batch(*images(count), None)


def of(variant, network, seed=500):
    return variant(Subject(network, Method(), seed))(batch())


def pixelwise():
    """Convolutions of one pixel: leading down changes nothing, so a mask is the product of the averaged maps."""
    torch.manual_seed(4)
    layers = [
        layer for inputs, outputs in ((3, 5), (5, 6), (6, 4)) for layer in (nn.Conv2d(inputs, outputs, 1), nn.ReLU())
    ]
    return nn.Sequential(*layers).eval()


def averaged_maps(network):
    with torch.no_grad():
        return [network[: 2 * stage](batch().images_BCHW).mean(1) for stage in (1, 2, 3)]


def test_geometric_mean_by_hand():
    network = pixelwise()
    wanted_BHW = torch.stack(averaged_maps(network)).log().mean(0).exp()
    wanted_BHW = wanted_BHW / wanted_BHW.amax((1, 2), keepdim=True)
    torch.testing.assert_close(of(geometric_mean, network), wanted_BHW)


def test_without_floor_by_hand():
    network = pixelwise()
    product_BHW = torch.ones(())
    for map_BHW in averaged_maps(network):
        product_BHW = product_BHW * (map_BHW - map_BHW.amin((1, 2), keepdim=True))
    least_B11, most_B11 = (edge((1, 2), keepdim=True) for edge in (product_BHW.amin, product_BHW.amax))
    torch.testing.assert_close(of(without_floor, network), (product_BHW - least_B11) / (most_B11 - least_B11))


def test_minus_twin_keeps_what_training_added():
    network = KINDS["vgg"]()
    own, twin = (
        VisualBackProp(one)(batch().images_BCHW)[:, 0].double().numpy() for one in (network, random_twin(network, 7))
    )
    wanted = (own / own.sum((1, 2), keepdims=True) - twin / twin.sum((1, 2), keepdims=True)).clip(0)
    np.testing.assert_allclose(of(minus_twin, network, 7).numpy(), wanted, atol=1e-7)


@every_kind
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_on_every_kind(name, kind):
    saliency_BHW = of(VARIANTS[name], KINDS[kind]())
    assert saliency_BHW.shape == (2, 32, 40)
    assert saliency_BHW.isfinite().all()
    assert saliency_BHW.min() >= 0
    assert saliency_BHW.amax((1, 2)).gt(0).all()
