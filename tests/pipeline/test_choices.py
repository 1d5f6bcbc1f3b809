"""The choices of the method, from the run's configuration to the masks that it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import models
from torchvision.transforms import functional as T

from vbp.errors import UsageError
from vbp.images.decode import decode_upright
from vbp.networks.models import load_model
from vbp.pipeline import RunConfig, run
from vbp.saliency import VisualBackProp


def config(photos, out, network_file, **changes):
    fields = {"input": str(photos), "output": str(out), "weights": network_file, "size": 64, "precision": "float32"}
    return RunConfig(
        **fields | {"fit": "stretch", "runner": "local", "batch_size": 4, "limit": 3, "mask_format": "npy"} | changes
    )


def masks(out):
    return {path.name: np.load(path) for path in Path(out, "masks").rglob("*.npy")}


CHOICES = {
    "stages": ({"stages": "last"}, {"stages": "last"}),
    "names": ({"stages": "features.1,features.6"}, {"stages": ["features.1", "features.6"]}),
    "pooling": ({"pooling": "unpool"}, {"pooling": "unpool"}),
    "input": ({"multiply_input": True}, {"multiply_input": True}),
    "smooth": ({"smooth": 2, "noise": 0.2, "seed": 3}, {"smooth": 2, "noise": 0.2, "seed": 3}),
    "target": ({"target": "predicted"}, {}),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_masks_are_those_of_the_library(photos, network_file, tmp_path, choice):
    changes, settings = CHOICES[choice]
    summary = run(config(photos, tmp_path / "out", network_file, outputs=("mask", "input"), **changes))
    assert summary.ok == 3
    vbp = VisualBackProp(load_model("vgg16", network_file).network, **settings)
    for name, mask in masks(tmp_path / "out").items():
        (path,) = Path(tmp_path, "out", "inputs").rglob(name.removesuffix(".npy") + ".png")
        pixels = torch.from_numpy(np.array(decode_upright(path.read_bytes()))).permute(2, 0, 1) / 255
        image = T.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None]
        expected = vbp(image, target=changes.get("target"))[0, 0]
        np.testing.assert_allclose(mask, expected, atol=1e-5)
        if choice != "names":
            plain = VisualBackProp(vbp.model)(image)[0, 0]
            assert np.abs(mask - plain.numpy()).max() > 1e-3


def test_a_run_from_before_these_choices_is_continued(photos, network_file, tmp_path):
    """Its record does not name them: it was made as the defaults are."""
    out = tmp_path / "out"
    run(config(photos, out, network_file))
    file = out / "_run" / "run.json"
    record = json.loads(file.read_text())
    for name in ("stages", "pooling", "multiply_input", "target", "smooth"):
        del record["fingerprint"][name]
    file.write_text(json.dumps(record))
    assert run(config(photos, out, network_file, limit=5)).computed == 2
    with pytest.raises(UsageError, match="pooling was 'exact', now 'merged'"):
        run(config(photos, out, network_file, pooling="merged"))


def test_other_noise_is_another_run_and_unused_noise_is_not(photos, network_file, tmp_path):
    out = tmp_path / "out"
    run(config(photos, out, network_file, smooth=1))
    with pytest.raises(UsageError, match="noise_seed was 500, now 7"):
        run(config(photos, out, network_file, smooth=1, seed=7))
    with pytest.raises(UsageError, match="smooth was 1, now 0; noise was 0.1, now None"):
        run(config(photos, out, network_file))
    run(config(photos, tmp_path / "plain", network_file))
    assert run(config(photos, tmp_path / "plain", network_file, noise=0.5, seed=7)).computed == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stages": "relu9"}, "stages: 'relu9' is none of all, last, features.1, features.3"),
        ({"preset": "reference", "pooling": "unpool"}, "kernel of its own"),
    ],
)
def test_choices_that_cannot_be_are_refused_before_any_work(photos, network_file, tmp_path, changes, reason):
    with pytest.raises(UsageError, match=reason):
        run(config(photos, tmp_path / "out", network_file, **changes))
    assert not list((tmp_path / "out").rglob("*.*"))


def test_target_needs_a_classifier(photos, tmp_path):
    network = models.vgg11(weights=None)
    torch.save(network.features.state_dict(prefix="features."), tmp_path / "features.pth")
    with pytest.raises(UsageError, match="--target predicted needs predictions.*or --target none"):
        run(config(photos, tmp_path / "out", str(tmp_path / "features.pth"), model="vgg11", target="predicted"))
