"""Which tensors of a checkpoint belong to the network: prefixes, heads, other networks beside it, misfits."""

import re
from collections import OrderedDict

import pytest
import torch
from torch import nn

from vbp.networks.fitting import AmbiguousError, KindError, MisfitError, fit
from vbp.networks.statedict import flat_tensors


class Net(nn.Module):
    """In the manner of VGG: features, pooling, a classifier."""

    def __init__(self, widths=(3, 4, 5), classes=7):
        super().__init__()
        first, second, third = widths
        self.features = nn.Sequential(
            nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second), nn.ReLU(), nn.Conv2d(second, third, 3)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(third, 6), nn.ReLU(), nn.Linear(6, classes))

    def forward(self, images):
        return self.classifier(self.pool(self.features(images)).flatten(1)[..., None])


def network(**options):
    with torch.device("meta"):
        return Net(**options).eval()


def weights(seed=1, **options):
    torch.manual_seed(seed)
    state = Net(**options).state_dict()
    return {key: torch.rand(value.shape) + 0.1 for key, value in state.items() if value.is_floating_point()}


FEATURES = {key: value for key, value in weights().items() if key.startswith("features.")}
HEAD = {key: value for key, value in weights().items() if key.startswith("classifier.")}
BATCH_NORM = {f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var")}


def fitted(content, **options):
    made = network(**options)
    outcome = fit(made, "classifier", flat_tensors(content))
    return made, outcome.notes


def assert_holds(made, tensors):
    state = made.state_dict()
    assert {key for key in state if not key.endswith("num_batches_tracked")} == set(tensors)
    for key, value in tensors.items():
        assert state[key].dtype == torch.float32
        assert torch.equal(state[key], value), key


def under(prefix, tensors):
    return OrderedDict((prefix + key, value) for key, value in tensors.items())


@pytest.mark.parametrize("nest", [(), ("state_dict",), ("checkpoint", "model"), ("nets", 0), ("module",)])
@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "net.", "model.backbone.", "encoder._orig_mod.", "my.very.own.net.", "trunk.module."],
)
def test_any_nest_and_prefix(nest, prefix):
    content = under(prefix, weights())
    for key in reversed(nest):
        content = [content] if key == 0 else {key: content, "epoch": 3, "best": 0.5}
    made, notes = fitted(content)
    assert_holds(made, weights())
    assert notes == ()


def test_wrapped_features_alone():
    made, notes = fitted({key.replace("features.", "features.module."): value for key, value in weights().items()})
    assert_holds(made, weights())
    assert notes == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    tensors = {key: value.to(dtype) for key, value in weights().items()}
    assert_holds(fitted(tensors)[0], {key: value.float() for key, value in tensors.items()})


def test_fastai_and_lists_of_children_count_instead_of_naming():
    body = {f"0.0.{key.removeprefix('features.')}": value for key, value in FEATURES.items()}
    made, notes = fitted({"model": body | {"1.8.weight": torch.rand(7, 5), "1.8.bias": torch.rand(7)}, "opt": {}})
    assert_holds(made, FEATURES)
    assert notes == ("no predictions, as it has no classifier",)
    bare = {key.removeprefix("features."): value for key, value in FEATURES.items()}
    assert_holds(fitted(under("backbone.", bare))[0], FEATURES)


def test_numbers_that_belong_to_another_network_do_not_fit():
    bare = {key.removeprefix("features."): value for key, value in FEATURES.items()}
    other = {key: torch.rand(tuple(size + (size == 5) for size in value.shape)) for key, value in bare.items()}
    for content in (other, bare | {"2.weight": torch.rand(4)}, bare | {"5.weight": torch.rand(9, 5, 3, 3)}):
        with pytest.raises(MisfitError):
            fitted(content)


@pytest.mark.parametrize(
    ("company", "named"),
    [
        ({"n_averaged": torch.tensor(7)}, "n_averaged"),
        (
            {"total_ops": torch.zeros(1, dtype=torch.float64), "features.total_ops": torch.zeros(1)},
            "total_ops, features",
        ),
        ({"normalize.mean": torch.zeros(3), "normalize.std": torch.ones(1, 3, 1, 1)}, "normalize.mean, normalize.std"),
        ({"features.0.index": torch.arange(90)}, "features.0.index"),
    ],
)
def test_scalars_and_buffers_of_no_use_are_ignored_and_told(company, named):
    made, notes = fitted(weights() | company)
    assert_holds(made, weights())
    assert len(notes) == 1
    assert notes[0].startswith(f"ignored, as the network has no use for it: {named}")


def test_company_outside_the_place_goes_without_saying():
    content = {
        "state_dict": under("model.", weights()) | {"criterion.weight": torch.rand(3), "head.weight": torch.rand(2, 2)}
    }
    made, notes = fitted(content)
    assert_holds(made, weights())
    assert notes == ()


def test_more_classes_are_a_classifier_like_any():
    made, notes = fitted(weights(classes=11))
    assert_holds(made, weights(classes=11))
    assert made(torch.rand(1, 3, 8, 8)).shape == (1, 11)
    assert notes == ()


@pytest.mark.parametrize(
    ("head", "named"),
    [
        ({"classifier.weight": torch.rand(7, 5), "classifier.bias": torch.rand(7)}, "classifier"),
        ({"classifier.1.weight": torch.rand(7, 5), "classifier.1.bias": torch.rand(7)}, "classifier.1"),
        ({"head.fc.weight": torch.rand(7, 5), "head.fc.bias": torch.rand(7)}, "head.fc"),
        (
            {"pre_logits.fc1.weight": torch.rand(7, 5, 3, 3), "head.fc.weight": torch.rand(7, 7)},
            "head.fc, pre_logits.fc1",
        ),
        (HEAD | {"classifier.1.weight": torch.rand(6, 9)}, "classifier"),
        (HEAD | {"projector.0.weight": torch.rand(9, 9)}, "projector.0"),
        ({key: value for key, value in HEAD.items() if not key.endswith("3.bias")}, "classifier.1, classifier.3"),
    ],
)
def test_another_head_leaves_the_features_without_predictions(head, named):
    made, notes = fitted(FEATURES | head)
    assert_holds(made, FEATURES)
    assert notes == (f"no predictions, as its {named} is not the classifier of this network",)
    assert made.features(torch.rand(1, 3, 8, 8)).isfinite().all()


def test_other_widths_are_followed_and_must_chain():
    made, _ = fitted(weights(widths=(3, 6, 9)))
    assert_holds(made, weights(widths=(3, 6, 9)))
    broken = weights() | {"features.3.weight": torch.rand(5, 9, 3, 3)}
    with pytest.raises(MisfitError, match="do not chain"):
        fitted(broken)
    with pytest.raises(MisfitError, match="do not chain"):  # and a head that fits no better hides nothing
        fitted(broken | {"classifier.1.weight": torch.rand(6, 3)})


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"features.0.bias": None}, "features.0.bias is missing"),
        ({"features.1.running_var": None}, "features.1.running_var is missing"),
        ({"features.3.weight": torch.rand(5, 4, 5, 5)}, "features.3.weight has shape (5, 4, 5, 5), not (5, 4, 3, 3)"),
        ({"features.2.weight": torch.rand(4)}, "features.2.weight is not part of it"),
        ({"features.0.gate.weight": torch.rand(4, 4)}, "features.0.gate.weight is not part of it"),
        ({"features.0.scales": torch.rand(64)}, "features.0.scales is not part of it"),
        (
            {
                "features.0.weight": None,
                "features.0.weight_g": torch.rand(4, 1, 1, 1),
                "features.0.weight_v": torch.rand(4, 3, 3, 3),
            },
            "features.0.weight is missing (it is saved with weight normalisation",
        ),
    ],
)
@pytest.mark.parametrize("prefix", ["", "state_dict.net."])
def test_what_differs_within_the_features_is_named(change, difference, prefix):
    content = {key: value for key, value in (weights() | change).items() if value is not None}
    with pytest.raises(MisfitError, match=re.escape(difference)):
        fitted(under(prefix, content))


def test_what_an_optimiser_keeps_beside_the_weights_costs_no_classifier():
    """Of all modules in one dictionary: found by the fuzz of checkpoints, seed 205."""
    made, notes = fitted({"model": {**weights(), "opt": {"momentum": weights(seed=2)}}})
    assert not any("no predictions" in note for note in notes), notes
    assert_holds(made, weights())


def test_what_an_optimiser_keeps_is_not_taken_for_weights():
    content = {"model": weights(), "optimizer": {"momentum": weights(seed=2)}, "opt_G.exp_avg": weights(seed=3)}
    assert_holds(fitted(content)[0], weights())
    with pytest.raises(MisfitError, match="what an optimiser keeps"):
        fitted({"optimizer_state": {"grads": weights()}})


@pytest.mark.parametrize(
    "name", ["ema", "state_dict_ema", "model_ema", "ema.shadow", "swa_model", "EMACallback", "averaged"]
)
def test_averaged_weights_come_first_and_it_is_said(name):
    made, notes = fitted({"state_dict": weights(), name: {"module": weights(seed=2)}})
    assert_holds(made, weights(seed=2))
    assert notes == (f"the averaged weights under '{name}' are taken, not those beside them",)
    made, notes = fitted({name: weights(seed=2)})
    assert notes == (f"the averaged weights under '{name}' are taken",)


@pytest.mark.parametrize("name", ["schema", "semantic", "swan"])
def test_names_that_only_look_averaged(name):
    with pytest.raises(AmbiguousError, match=f"^'model' and '{name}'$"):
        fitted({"model": weights(), name: weights(seed=2)})


def test_two_that_fit_alike_are_named_unless_they_are_equal():
    with pytest.raises(AmbiguousError, match="^its top, 'teacher' and 'other.net'$"):
        fitted(weights() | {"teacher": weights(seed=2), "other": under("net.", weights(seed=3))})
    same = {key: value.clone() for key, value in weights().items()}
    assert_holds(fitted({"model": weights(), "best": same})[0], weights())
    with pytest.raises(AmbiguousError):
        fitted({**weights(), **under("module.", weights(seed=2))})


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.ones(4, 3, 3, 3, dtype=torch.int8), "features.0.weight is of torch.int8, and quantised"),
        (torch.ones(4, 3, 3, 3).to(torch.float8_e4m3fn), "features.0.weight is of torch.float8_e4m3fn"),
        (torch.ones(4, 3, 3, 3).to_sparse(), "features.0.weight is sparse"),
        (torch.ones(4, 3, 3, 3, device="meta"), "features.0.weight is without content"),
    ],
)
def test_tensors_of_other_kinds_are_refused(tensor, said):
    with pytest.raises(KindError, match=said):
        fitted(weights() | {"features.0.weight": tensor})


def test_without_a_head_all_is_wanted():
    made = network()
    fit(made, None, weights())
    assert_holds(made, weights())
    with pytest.raises(MisfitError, match=r"classifier\.1\.weight is missing"):
        fit(network(), None, FEATURES)


def test_a_network_of_batch_norms_takes_files_without_counters():
    assert {key.removeprefix("features.") for key in FEATURES} > BATCH_NORM
    made, _ = fitted(weights())
    assert made.state_dict()["features.1.num_batches_tracked"] == 0
