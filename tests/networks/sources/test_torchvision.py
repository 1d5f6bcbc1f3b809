"""Networks by name: which checkpoints fit which, and what is known about their classes."""

import re

import pytest
import torch
import torchvision

from vbp.errors import ModelError, WeightsError
from vbp.networks.models import load_model
from vbp.networks.preprocessing import IMAGENET
from vbp.networks.sources.torchvision import fitting_model, imagenet_wnids, model_names, preprocessing_of


def shrunk(name, classes=7, channels=4, features_only=False):
    """A state dict with torchvision's keys for `name`, every width far smaller."""
    with torch.device("meta"):
        state = torchvision.models.get_model(name, weights=None).state_dict()
    generator = torch.Generator().manual_seed(0)
    linear = [key for key in state if key.startswith("classifier") and key.endswith("weight")]
    shapes = {linear[0]: (8, channels * (36 if name == "alexnet" else 49)), linear[1]: (8, 8), linear[2]: (classes, 8)}
    tensors = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked") or (features_only and key.startswith("classifier")):
            continue
        if key.startswith("classifier"):
            shape = shapes[key] if key in shapes else shapes[key.replace("bias", "weight")][:1]
        else:
            shape = [
                3 if size == 3 and axis == 1 else channels if axis < 2 else size
                for axis, size in enumerate(value.shape)
            ]
        tensors[key] = torch.rand(tuple(shape), generator=generator)
    return tensors


def save(folder, tensors):
    torch.save(tensors, folder / "net.pth")
    return str(folder / "net.pth")


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg13_bn", "vgg16", "vgg19"])
def test_widths_and_classes_follow_the_checkpoint(tmp_path, name):
    tensors = shrunk(name)
    model = load_model(name, save(tmp_path, tensors))
    state = model.network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in tensors.items())
    assert model.num_classes == 7
    assert model.class_names is None
    assert not any(module.training for module in model.network.modules())
    assert model.network(torch.zeros(2, 3, 224, 224)).shape == (2, 7)
    convolutions = [m for m in model.network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions[:2]] == [(3, 4), (4, 4)]


def test_thousand_classes_are_imagenets(tmp_path):
    model = load_model("vgg11", save(tmp_path, shrunk("vgg11", classes=1000)))
    assert model.class_names is not None
    assert model.class_names[207] == "golden retriever"
    assert imagenet_wnids()[207] == "n02099601"
    assert model.preprocessing == IMAGENET


@pytest.mark.parametrize("name", model_names())
def test_preprocessing_is_what_torchvision_says_of_its_weights(name):
    said = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    own = preprocessing_of(name, "imagenet")
    assert (list(own.mean), list(own.std)) == (list(said.mean), list(said.std))
    assert own.interpolation == said.interpolation.value
    assert (own.size, own.trained) == (224, (said.resize_size[0], said.crop_size[0]))
    assert preprocessing_of(name, "my.pth") == IMAGENET


def test_wnids_are_a_thousand_in_alphabetical_order():
    assert len(set(imagenet_wnids())) == 1000
    assert list(imagenet_wnids()) == sorted(imagenet_wnids())
    assert imagenet_wnids()[0] == "n01440764"


def test_features_alone_have_no_classes(tmp_path):
    model = load_model("vgg16", save(tmp_path, shrunk("vgg16", features_only=True)))
    assert model.num_classes is None
    assert model.class_names is None


def test_named_classes_must_match_the_classifier(tmp_path):
    from safetensors.torch import save_file

    save_file(shrunk("vgg11", classes=2), tmp_path / "two", {"classes": '["cat", "dog"]'})
    assert load_model("vgg11", str(tmp_path / "two")).class_names == ("cat", "dog")
    save_file(shrunk("vgg11", classes=2), tmp_path / "one", {"classes": '["cat"]'})
    with pytest.raises(WeightsError, match="name 1 classes, but their classifier has 2"):
        load_model("vgg11", str(tmp_path / "one"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("found", "asked", "difference"),
    [
        ("vgg19", "vgg16", "features.17.weight is missing"),
        ("vgg16_bn", "vgg16", "features.2.weight is missing"),
        ("vgg11", "vgg11_bn", "features.1.weight is missing"),
    ],
)
def test_checkpoint_of_another_network_names_a_key_and_what_fits(tmp_path, found, asked, difference):
    with pytest.raises(WeightsError, match=re.escape(f"do not fit {asked}: {difference}. It fits {found}.")):
        load_model(asked, save(tmp_path, shrunk(found)))


@pytest.mark.long
@pytest.mark.parametrize("name", ["mobilenet_v2", "regnet_y_400mf", "googlenet", "inception_v3", "mnasnet0_5"])
def test_networks_of_every_family_load_what_they_save(tmp_path, name):
    tensors = load_model(name, "random").network.state_dict()
    tensors = {key: value for key, value in tensors.items() if not key.startswith(("aux", "AuxLogits"))}
    found = load_model(name, save(tmp_path, tensors)).network.state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], value) for key, value in tensors.items())


@pytest.mark.long
def test_what_a_checkpoint_fits_is_found_among_all_networks(tmp_path):
    state = load_model("regnet_y_800mf", "random").network.state_dict()
    file = save(tmp_path, {f"model.{key}": value for key, value in state.items()})
    with pytest.raises(WeightsError, match=r"It fits regnet_y_800mf\.$"):
        load_model("vgg11", file)


@pytest.mark.long
def test_widths_of_another_network_are_not_followed(tmp_path):
    """They would be computed right here, but a run would have the wrong name; with groups also be computed wrong."""
    with torch.device("meta"):
        state = torchvision.models.wide_resnet50_2().state_dict()
    file = save(tmp_path, {key: torch.ones(()).expand(value.shape) for key, value in state.items()})
    with pytest.raises(WeightsError, match="do not fit resnet50: their widths are those of wide_resnet50_2"):
        load_model("resnet50", file)
    assert fitting_model(file) == "wide_resnet50_2"


def test_a_checkpoint_that_fits_two_networks_alike_asks_which(tmp_path):
    state = load_model("mnasnet0_5", "random").network.state_dict()
    halved = {key: value[:8] if value.ndim == 1 and len(value) > 8 else value for key, value in state.items()}
    odd = {
        key: torch.rand(5) if value.ndim == 1 else torch.rand(5, 5, *value.shape[2:]) for key, value in halved.items()
    }
    with pytest.raises(WeightsError, match=r"fit mnasnet0_5 and .* alike: say which with --model"):
        fitting_model(save(tmp_path, odd))


def test_two_of_a_kind_in_one_file_are_named(tmp_path):
    one, two = (shrunk("vgg11", classes=count) for count in (2, 3))
    two["features.0.weight"] = two["features.0.weight"] + 1
    with pytest.raises(WeightsError, match=r"hold vgg11 more than once, under 'generator' and 'discriminator': save"):
        load_model("vgg11", save(tmp_path, {"generator": one, "discriminator": two}))
    model = load_model("vgg11", save(tmp_path, {"state_dict": one, "state_dict_ema": two}))
    assert model.num_classes == 3
    assert re.search("the averaged weights under 'state_dict_ema' are taken, not those beside", model.notes[0])


def test_weights_that_diverged_are_refused(tmp_path):
    tensors = shrunk("vgg11")
    tensors["features.3.bias"][1] = float("nan")
    with pytest.raises(WeightsError, match=r"net\.pth' cannot be used: features\.3\.bias holds NaN"):
        load_model("vgg11", save(tmp_path, tensors))


def test_quantised_weights_are_refused(tmp_path):
    tensors = shrunk("vgg11")
    tensors["features.0.weight"] = (tensors["features.0.weight"] * 100).to(torch.int8)
    with pytest.raises(WeightsError, match=r"cannot be used: features\.0\.weight is of torch\.int8, and quantised"):
        load_model("vgg11", save(tmp_path, tensors))


def test_residual_checkpoint_is_recognised(tmp_path):
    tensors = torchvision.models.resnet18(weights=None).state_dict()
    with pytest.raises(WeightsError, match=r"features\.0\.weight is missing\. It fits resnet18\."):
        load_model("vgg16", save(tmp_path, tensors))


def test_unknown_checkpoint_fits_nothing(tmp_path):
    with pytest.raises(WeightsError, match=r"Its first key is body\.weight; it fits no network of torchvision"):
        load_model("vgg16", save(tmp_path, {"body.weight": torch.ones(2)}))


def test_widths_must_chain(tmp_path):
    tensors = shrunk("vgg11")
    tensors["features.3.weight"] = torch.ones(4, 5, 3, 3)
    with pytest.raises(WeightsError, match="do not chain"):
        load_model("vgg11", save(tmp_path, tensors))
    tensors["features.3.weight"] = torch.ones(4, 4, 5, 5)
    with pytest.raises(WeightsError, match=r"features\.3\.weight has shape \(4, 4, 5, 5\), not"):
        load_model("vgg11", save(tmp_path, tensors))


def test_random_weights_follow_their_seed_and_nothing_else():
    torch.manual_seed(1)
    first, state = load_model("squeezenet1_1", "random", seed=7), torch.get_rng_state()
    again, other = load_model("squeezenet1_1", "random", seed=7), load_model("squeezenet1_1", "random", seed=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.sha256 == again.sha256 != other.sha256
    assert len(first.sha256) == 64


@pytest.mark.long
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "convnext_tiny"])
def test_classifiers_of_other_families_are_counted(tmp_path, name):
    network = torchvision.models.get_model(name, weights=None, num_classes=7)
    model = load_model(name, save(tmp_path, network.state_dict()))
    assert model.num_classes == 7
    features = {k: v for k, v in network.state_dict().items() if not k.startswith(("classifier.", "fc."))}
    assert load_model(name, save(tmp_path, features)).num_classes is None


def test_old_names_of_densenet_are_understood(tmp_path):
    tensors = load_model("densenet121", "random").network.state_dict()
    old = {re.sub(r"(norm|conv)([12])\.(?=weight|bias|run|num)", r"\1.\2.", k): v for k, v in tensors.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    found = load_model("densenet121", save(tmp_path, old)).network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in tensors.items())


def test_googlenet_takes_everyones_normalisation():
    """Its published weights belong to pixels in [-1, 1]; torchvision builds it without the conversion."""
    assert load_model("googlenet", "random").network.transform_input


def test_names():
    assert len(model_names()) == 68
    assert not any("vit" in name or "swin" in name for name in model_names())
    assert model_names()[0] == "alexnet"
    assert {"vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"} < set(model_names())
    with pytest.raises(ModelError, match="no model 'vgg61': did you mean vgg1"):
        load_model("vgg61", "random")
    with pytest.raises(ModelError, match=r"no model '\?': docs/zoo\.md lists the names, such as vgg16 and resnet50\.$"):
        load_model("?", "random")


@pytest.mark.parametrize("name", ["nets/mine", "my.nets"])
def test_a_network_of_ones_own_by_an_incomplete_name_is_shown_the_way(name):
    with pytest.raises(ModelError, match=r"your own is named as PACKAGE\.MODULE:FUNCTION or PATH/FILE\.py:FUNCTION"):
        load_model(name, "random")


def test_own_weights_are_not_torchvisions():
    with pytest.raises(
        WeightsError, match="there are no own weights for vgg16: give imagenet, demo, random, a file or a URL"
    ):
        load_model("vgg16", "own")


@pytest.mark.parametrize("weights", ["imagenet", "demo", "/nowhere.pth"])
def test_a_transformer_is_named_before_its_weights_are_read(weights):
    with pytest.raises(ModelError, match="'vit_b_16' is a transformer, and VisualBackProp explains CNNs: give one"):
        load_model("vit_b_16", weights)


@pytest.mark.long
@pytest.mark.parametrize("name", ["vgg11", "vgg16", "vgg16_bn", "alexnet"])
def test_a_checkpoint_tells_its_network(name, tmp_path):
    torch.save(shrunk(name), tmp_path / "whole.pth")
    torch.save(shrunk(name, features_only=True), tmp_path / "features.pth")
    assert fitting_model(str(tmp_path / "whole.pth")) == name
    assert fitting_model(str(tmp_path / "features.pth")) == name


@pytest.mark.long
def test_a_foreign_checkpoint_and_named_weights_tell_no_network(tmp_path):
    torch.save({"encoder.weight": torch.zeros(2)}, tmp_path / "foreign.pth")
    assert fitting_model(str(tmp_path / "foreign.pth")) is None
    assert fitting_model("imagenet") is None
