"""timm's networks by name."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from vbp.errors import ModelError, WeightsError
from vbp.networks.models import load_model
from vbp.networks.preprocessing import Preprocessing


def test_what_it_wants_to_see_is_timms_own_configuration():
    model = load_model("timm:tf_efficientnet_lite0", "random")
    assert model.preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, "bicubic", size=224, trained=(256, 224))
    assert (model.num_classes, model.class_names[0], model.class_names[-1][:11]) == (
        1000,
        "tench, Tinca tinca",
        "toilet tiss",
    )
    assert not model.network.training


def test_random_weights_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    first, again, other = (load_model("timm:test_resnet", "random", seed=seed).sha256 for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_arguments_are_timms():
    model = load_model("timm:test_resnet", "random", model_args={"num_classes": 7, "in_chans": 1})
    assert (model.num_classes, model.class_names) == (7, None)
    with pytest.raises(ModelError, match=r"timm does not make 'test_resnet': .*unexpected keyword"):
        load_model("timm:test_resnet", "random", model_args={"widht": 7})


def test_its_network_computes_what_timms_does(tmp_path):
    network = timm.create_model("test_resnet", num_classes=5).eval()
    torch.save({"model": network.state_dict(), "epoch": 3}, tmp_path / "mine.pth")
    model = load_model("timm:test_resnet", str(tmp_path / "mine.pth"))
    image_1CHW = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model.network(image_1CHW), network(image_1CHW))
    assert (model.num_classes, model.class_names) == (5, None)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])  # the second has a norm in its head, and arguments
def test_a_checkpoint_without_a_classifier_predicts_nothing(name, tmp_path):
    network = timm.create_model(name)
    head = network.pretrained_cfg["classifier"].partition(".")[0]
    trunk = {key: tensor for key, tensor in network.state_dict().items() if key.partition(".")[0] != head}
    save_file(trunk, tmp_path / "trunk.safetensors")
    model = load_model(f"timm:{name}", str(tmp_path / "trunk.safetensors"))
    assert "no predictions" in model.notes[0]
    assert model.network(torch.randn(1, 3, 160, 160)).ndim == 2


def test_tensors_in_the_same_order_under_other_names_are_taken_and_said(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    renamed = {f"net.{number}.{key.rpartition('.')[2]}": tensor for number, (key, tensor) in enumerate(state.items())}
    torch.save(renamed, tmp_path / "renamed.pth")
    model = load_model("timm:test_resnet", str(tmp_path / "renamed.pth"))
    assert all(torch.equal(model.network.state_dict()[key], tensor) for key, tensor in state.items())
    assert "so tensors were taken in their order" in model.notes[0]
    save_file(renamed, tmp_path / "sorted.safetensors")  # by name, so their order is lost
    del renamed["net.0.weight"]
    torch.save(renamed, tmp_path / "less.pth")
    for file in ("sorted.safetensors", "less.pth"):
        with pytest.raises(WeightsError, match="do not fit timm:test_resnet"):
            load_model("timm:test_resnet", str(tmp_path / file))


def test_weights_that_cannot_be_downloaded_are_a_sentence(monkeypatch):
    create = timm.create_model

    def without_internet(name, pretrained=False, **arguments):
        if pretrained:
            raise OSError("Name or service\nnot known")
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", without_internet)
    with pytest.raises(
        WeightsError, match=r"^timm's weights of test_resnet cannot be had: Name or service not known\. "
    ):
        load_model("timm:test_resnet")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt18", "timm has no model 'resnt18': did you mean resnet18"),
        ("resnet18.nope", "timm has no model 'resnet18.nope': of resnet18 there are a1_in1k, "),
        ("", r"timm has no model '': timm\.list_models\(\) has the names\."),
    ],
)
def test_names_that_timm_does_not_have(name, message):
    with pytest.raises(ModelError, match=message):
        load_model(f"timm:{name}", "random")


@pytest.mark.parametrize("weights", ["own", "demo"])
def test_weights_that_are_not_timms(weights):
    with pytest.raises(WeightsError, match=f"there are no {weights} weights for timm:test_resnet"):
        load_model("timm:test_resnet", weights)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ModelError, match=r"needs timm: pip install 'visualbackprop\[timm\]'"):
        load_model("timm:resnet18", "random")
