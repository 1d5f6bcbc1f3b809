"""Weights that are refused or warned of: not finite, negative variances, a convolution of zeros."""

import pytest
import torch

from vbp.errors import WeightsError
from vbp.networks.sound import check_sound


def network():
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3)
    ).requires_grad_(False)


@pytest.mark.parametrize(
    ("value", "said"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (-float("inf"), "infinity")]
)
@pytest.mark.parametrize("key", ["0.weight", "3.bias", "1.running_mean"])
def test_what_is_not_finite_is_refused_by_name(key, value, said):
    made = network()
    made.state_dict()[key].view(-1)[1] = value
    with pytest.raises(WeightsError, match=rf"'x\.pth' cannot be used: {key} holds {said}"):
        check_sound(made, "x.pth")


def test_a_variance_below_zero_is_refused():
    made = network()
    made[1].running_var[2] = -0.5
    with pytest.raises(WeightsError, match=r"1\.running_var holds -0\.5, but no variance is below zero"):
        check_sound(made, "x.pth")


def test_a_first_convolution_of_zeros_is_refused_and_a_later_one_told():
    made = network()
    made[3].weight.zero_()
    assert check_sound(made, "x.pth") == ["3.weight is all zero"]
    made[0].weight.zero_()
    with pytest.raises(WeightsError, match=r"0\.weight is all zero"):
        check_sound(made, "x.pth")


def test_sound_weights_leave_nothing_to_say():
    assert check_sound(network(), "x.pth") == []
