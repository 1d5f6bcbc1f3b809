"""The cascade step by step, on networks whose maps can be computed by hand."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from vbp.errors import ModelError
from vbp.evaluation.randomisation import RANDOMISATION, cascade, randomisation, rise_of_entropy, steps_for
from vbp.evaluation.randomness import noisy
from vbp.evaluation.similarity import spearman, ssim, turned

SEED = 9
LAYERS = ("stem", "middle", "top")


class Small(nn.Module):
    """Three convolutions with norms, and a classifier; a scale that nothing can draw anew."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(SEED)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)
        self.between = nn.Linear(5, 5)
        self.top = nn.Conv2d(4, 4, 3, padding=1)
        self.last_norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = self.last_norm(self.top(self.middle(x).relu())).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture
def network():
    network = Small()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.5
        network.norm.running_mean += 3
        network.last_norm.running_var *= 5
    return network.eval()


@pytest.fixture
def pixels():
    return np.random.default_rng(SEED).integers(0, 256, (2, 14, 16, 3), dtype=np.uint8)


def of_layer(network, name):
    """A method whose map is the first channel of a convolution, applied to the pixels or their mean."""
    layer = getattr(network, name)

    def explain(pixels):
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        if layer.in_channels == 4:
            images = images.mean(1, keepdim=True).expand(-1, 4, -1, -1)
        with torch.inference_mode():
            return layer(images)[:, 0].abs().numpy()

    return explain


def scored(network, pixels, layer, metrics=tuple(RANDOMISATION), *, steps=8, **settings):
    random = [(name, of_layer(twin, layer)) for name, twin in cascade(network, steps=steps)]
    return randomisation(pixels, of_layer(network, layer), random, metrics, **settings)


def changed(network, twin):
    """Names of the tensors that differ."""
    there = twin.state_dict()
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, there[name])}


def test_layers_become_random_from_the_last_to_the_first(network):
    before = deepcopy(network.state_dict())
    top = {"top.weight", "top.bias", "last_norm.weight", "last_norm.bias", "last_norm.running_var"}
    middle = {"middle.weight", "middle.bias", "between.weight", "between.bias"}
    stem = {"stem.weight", "stem.bias", "norm.weight", "norm.bias", "norm.running_mean"}
    steps = list(cascade(network))
    assert [name for name, _ in steps] == ["top", "middle", "stem"]
    assert [changed(network, twin) for _, twin in steps] == [top, top | middle, top | middle | stem]
    assert not any(twin.training for _, twin in steps)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_new_weights_depend_on_seed_and_place_alone(network):
    *_, (_, last) = cascade(network, seed=3)
    assert [name for name, _ in cascade(network, steps=2, seed=3)] == ["middle", "stem"]
    (name, at_once), *others = cascade(network, steps=1, seed=3)
    assert (name, others) == ("stem", [])
    assert changed(last, at_once) == set()
    *_, (_, other) = cascade(network, seed=4)
    assert {"top.weight", "middle.weight", "stem.weight"} <= changed(last, other)
    assert not torch.equal(last.middle.weight, last.top.weight)


def test_randomising_leaves_torchs_random_numbers_alone(network):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    list(cascade(network))
    assert torch.equal(torch.rand(3), expected)


def test_no_convolution_is_said():
    with pytest.raises(ModelError, match="no convolution"):
        list(cascade(nn.Linear(3, 4)))


@pytest.mark.parametrize(("layer", "untouched"), [("top", 0), ("middle", 1), ("stem", 2)])
@pytest.mark.parametrize(("metric", "measure"), [("mprt-ssim", ssim), ("mprt-spearman", spearman)])
def test_a_map_of_one_layer_changes_at_its_step(network, pixels, layer, untouched, metric, measure):
    before = of_layer(network, layer)(pixels)
    after = [of_layer(twin, layer)(pixels) for _, twin in cascade(network)]
    for image, found in enumerate(scored(network, pixels, layer, [metric])):
        curve = found.curves[metric]
        assert curve == [measure(before[image], step[image]) for step in after]
        assert curve[:untouched] == pytest.approx([1] * untouched)
        assert all(value < 0.9 for value in curve[untouched:])
        assert found.layers == ["top", "middle", "stem"]
        (score,) = found.scores
        assert score.value == pytest.approx(np.mean(curve))
        assert score.chance == measure(before[image], turned(before[image]))


def test_a_map_of_the_pixels_alone_stays(pixels):
    """As an edge detector would."""

    def explain(pixels):
        return pixels[..., 0].astype(float)

    (first, _) = randomisation(pixels, explain, [("top", explain), ("stem", explain)])
    values = {score.metric: score.value for score in first.scores}
    assert values == pytest.approx({name: 0 if name == "efficient-mprt" else 1 for name in RANDOMISATION})


def test_the_last_step_alone(network, pixels):
    found = scored(network, pixels, "middle", ["mprt-last-ssim", "mprt-ssim"])[0]
    assert found.scores[0].value == found.curves["mprt-ssim"][-1]


def test_smooth_mprt_compares_means_over_noisy_copies(network, pixels):
    copies = noisy(pixels, 3, 0.2, 500)
    before = np.mean([of_layer(network, "stem")(copy) for copy in copies], 0)
    ((_, twin),) = cascade(network, steps=1)
    after = np.mean([of_layer(twin, "stem")(copy) for copy in copies], 0)
    found = scored(network, pixels, "stem", ["smooth-mprt-ssim"], steps=1, copies=3, noise=0.2)
    for image, each in enumerate(found):
        assert each.scores[0].value == pytest.approx(ssim(before[image], after[image]))
        assert each.scores[0].settings == "steps 1, 3 copies with noise 0.2, seed 500"


def test_the_rise_of_entropy_by_hand():
    two = np.array([[0.0, 1, 0, 1]])  # log 2
    four = np.array([[0.0, 0.3, 0.6, 1]])  # log 4
    assert rise_of_entropy(two, four) == pytest.approx(1)
    assert rise_of_entropy(four * 9 + 3, two) == pytest.approx(-0.5)
    assert np.isnan(rise_of_entropy(np.zeros((1, 4)), four))
    assert np.isnan(rise_of_entropy(two, four * np.nan))


def test_an_image_is_scored_as_it_would_be_alone(network, pixels):
    (alone,) = scored(network, pixels[1:], "top")
    together = scored(network, pixels, "top")[1]
    expected = {score.metric: pytest.approx(score.value, abs=1e-5) for score in alone.scores}
    assert {score.metric: score.value for score in together.scores} == expected


def test_copies_share_what_is_equal(network):
    (_, first), (_, second), (_, third) = cascade(network)
    for twin in (first, second, third):
        assert twin.head.weight.data_ptr() == network.head.weight.data_ptr()
    assert third.top.weight.data_ptr() == second.top.weight.data_ptr() == first.top.weight.data_ptr()
    assert first.stem.weight.data_ptr() == network.stem.weight.data_ptr() != third.stem.weight.data_ptr()


def test_what_looks_at_the_last_step_alone_needs_no_other(network, pixels):
    last = [name for name in RANDOMISATION if "last" in name or name == "efficient-mprt"]
    assert (steps_for(last), steps_for([*last, "mprt-ssim"]), steps_for([])) == (1, 8, 1)
    one, all_steps = (scored(network, pixels, "stem", last, steps=steps) for steps in (1, 8))
    for first, second in zip(one, all_steps, strict=True):
        assert [(each.metric, each.value) for each in first.scores] == [
            (each.metric, each.value) for each in second.scores
        ]
