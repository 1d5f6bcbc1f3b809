import json
import math
from importlib import resources
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from vbp.demo.scenes import draw, generate
from vbp.demo.train import (
    Training,
    compact_vgg16,
    contrast_loss,
    fold_batch_norm,
    save,
    stray_loss,
    train,
    train_classifier,
    train_features,
)
from vbp.explainer import Explainer

LABELS = ["arrow", "bolt", "crescent", "cross", "gear", "heart", "ring", "star"]
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # where torchvision's VGG16 has them
PACKAGED = resources.files("vbp") / "demo" / "vgg16_demo.safetensors"
FRESH_SEED = 20_000  # far from every training seed
FLOOR_INSIDE, FLOOR_RIGHT = 36, 33  # of 40; measured: 38 and 36


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_compact_network_has_torchvisions_names():
    shapes = {name: tuple(tensor.shape) for name, tensor in compact_vgg16().state_dict().items()}
    weights = [f"features.{i}.weight" for i in CONVOLUTIONS] + [f"classifier.{i}.weight" for i in (0, 3, 6)]
    assert set(shapes) == {*weights, *(name.replace("weight", "bias") for name in weights)}
    assert all(shapes[name][2:] == (3, 3) for name in weights[:13])
    assert shapes["features.0.weight"] == (8, 3, 3, 3)
    assert shapes["classifier.6.weight"][0] == 8


def test_folding_batch_norm_leaves_the_function_as_it_is():
    torch.manual_seed(3)
    features = compact_vgg16(batch_norm=True).features
    for layer in features:
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.running_var):
                nn.init.uniform_(tensor, 0.5, 2)
            for tensor in (layer.bias, layer.running_mean):
                nn.init.uniform_(tensor, -0.5, 0.5)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = features.eval()(images)
        folded = fold_batch_norm(features)
        torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-4)
    assert [i for i, layer in enumerate(folded) if isinstance(layer, nn.Conv2d)] == list(CONVOLUTIONS)


def test_stray_loss():
    truth = torch.zeros(1, 1, 4, 4)
    truth[..., :2, :3] = 1
    fine = torch.zeros(1, 1, 4, 4)
    fine[..., 0, 0], fine[..., 3, 3] = 3, 1  # energy 9 inside, 1 outside
    coarse = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])  # one cell covered wholly, one by half
    assert stray_loss([fine], truth).item() == pytest.approx(-math.log(0.9))
    assert stray_loss([coarse], truth).item() == pytest.approx(-math.log(0.75))
    assert stray_loss([fine, coarse], truth).item() == pytest.approx(-math.log(0.9 * 0.75) / 2)


def test_stray_loss_counts_a_faint_image_as_much_as_a_bright_one():
    truth = torch.zeros(2, 1, 1, 4)
    truth[..., 0] = 1
    average = torch.tensor([[[[1.0, 1, 0, 0]]], [[[200.0, 100, 0, 0]]]])
    assert stray_loss([average], truth).item() == pytest.approx(-math.log(0.5 * 0.8) / 2)


def test_contrast_loss():
    even, uneven = torch.full((1, 1, 2, 2), 3.0), torch.tensor([[[[1.0, 1.0], [3.0, 3.0]]]])  # variance 4/3, mean 2
    assert contrast_loss([even]).item() == 0
    assert contrast_loss([uneven]).item() == pytest.approx(1 / 3)
    assert contrast_loss([even, 100 * uneven]).item() == pytest.approx(1 / 6)


@pytest.mark.long
def test_training_lowers_the_loss_and_repeats_itself():
    def losses(epochs: int) -> list[float]:
        torch.manual_seed(1)
        features = compact_vgg16(batch_norm=True).features
        return list(islice(train_features(features, Training(scenes=32, epochs=4, batch=8)), epochs))

    first = losses(4)
    assert first[-1] < 0.9 * first[0]
    assert losses(2) == first[:2]


def test_the_classifier_is_one_mean_over_positions():
    torch.manual_seed(2)
    network = compact_vgg16().eval()
    accuracy = train_classifier(network, Training(classifier_scenes=24, fresh_scenes=8))
    assert 0 <= accuracy <= 1
    weight = network.classifier[0].weight.detach().reshape(64, -1, 7 * 7)
    assert (weight == weight[:, :, :1]).all()


def test_training_end_to_end(tmp_path):
    lines: list[str] = []
    training = Training(scenes=8, epochs=1, batch=8, classifier_scenes=8, fresh_scenes=4)
    before = torch.random.get_rng_state()
    save(train(training, lines.append), tmp_path / "one.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)
    save(train(training, lines.append), tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert lines[0].startswith("features: epoch 1 of 1, loss ")
    assert lines[1].startswith("classifier: ")
    assert lines[:2] == lines[2:]


def test_training_scenes_are_not_the_fresh_ones():
    training = {
        draw(seed, i, size=32).pixels_HWC.tobytes() for seed in (Training.seed, Training.seed + 1) for i in range(8)
    }
    assert not training & {scene.pixels_HWC.tobytes() for scene in generate(8, FRESH_SEED, size=32)}


def test_the_packaged_weights():
    assert PACKAGED.stat().st_size < 2_000_000
    with safe_open(PACKAGED, "pt") as file:
        assert json.loads(file.metadata()["classes"]) == LABELS
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    network = compact_vgg16()
    network.load_state_dict(tensors)
    assert sum(isinstance(layer, nn.Conv2d) for layer in network.features) == 13


def test_the_packaged_weights_find_and_name_objects_in_fresh_scenes():
    scenes = list(generate(40, FRESH_SEED, distractor_share=0))
    explainer = Explainer("vgg16", "demo", "paper", device="cpu", precision="float32")
    batch = explainer(np.stack([scene.pixels_HWC for scene in scenes]))
    peaks = [mask.argmax() for mask in batch.mask_BHW]
    inside = sum(bool(scene.object_HW.flat[peak]) for scene, peak in zip(scenes, peaks, strict=True))
    right = sum(LABELS[row.argmax()] == scene.label for scene, row in zip(scenes, batch.logits_BK, strict=True))
    assert inside >= FLOOR_INSIDE
    assert right >= FLOOR_RIGHT
