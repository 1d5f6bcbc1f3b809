"""Networks that runs share are loaded once."""

import pickle

import pytest

from vbp.pipeline import RunConfig
from vbp.pipeline.loading import Networks, network_key


def config(**changes):
    return RunConfig(**{"input": "photos", "output": "out"} | changes)


def test_a_network_is_loaded_once_and_does_not_travel():
    networks = Networks()
    first = networks.load(config(weights="demo", preset="paper"))
    assert networks.load(config(weights="demo", preset="reference", seed=1)) is first
    assert len(pickle.dumps(networks)) < 200
    assert networks.load(config(weights="random", model="squeezenet1_1")).name == "squeezenet1_1"


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"seed": 1}, {"seed": 2}, True),
        ({"preset": "paper"}, {"preset": "reference"}, True),
        ({"weights": "random", "seed": 1}, {"weights": "random", "seed": 2}, False),
        ({"weights": "demo"}, {"weights": "imagenet"}, False),
        ({"model": "vgg16"}, {"model": "vgg19"}, False),
    ],
)
def test_which_runs_share_a_network(one, other, equal):
    assert (network_key(config(**one)) == network_key(config(**other))) is equal
