"""A network that was trained on other pixels: the job's masks are the library's, which is given the right input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vbp.errors import UsageError
from vbp.networks.models import load_model
from vbp.pipeline import RunConfig, run
from vbp.saliency import VisualBackProp

MEAN, STD = (0.5, 0.3, 0.1), (0.5, 0.25, 0.125)


@pytest.fixture(scope="module")
def grey_file(network_file, tmp_path_factory):
    """The small network with one channel of input."""
    state = load_file(network_file)
    state["features.0.weight"] = state["features.0.weight"][:, :1].contiguous()
    path = tmp_path_factory.mktemp("grey") / "grey.safetensors"
    save_file(state, path)
    return str(path)


def config(photos, out, weights, **changes):
    fields = {"size": 64, "precision": "float32", "runner": "local", "batch_size": 4, "limit": 3, "mask_format": "npy",
              "fit": "stretch", "outputs": ("mask", "input")}  # fmt: skip
    return RunConfig(input=str(photos), output=str(out), weights=weights, **fields | changes)


def grey_of(pixels_HWC):
    """By Pillow, whose rule it is."""
    return np.asarray(Image.fromarray(pixels_HWC).convert("L"))[..., np.newaxis]


INPUTS = {
    "rgb": ({"mean": MEAN, "std": STD}, lambda pixels: pixels, MEAN, STD),
    "bgr": ({"mean": MEAN, "std": STD, "channels": "bgr"}, lambda pixels: pixels[..., ::-1], MEAN, STD),
    "caffe": (
        {"mean": (0.408, 0.458, 0.485), "std": (1 / 255,) * 3, "channels": "bgr"},
        lambda pixels: pixels[..., ::-1],
        (0.408, 0.458, 0.485),
        (1 / 255,) * 3,
    ),
    "imagenet in bgr": (
        {"channels": "bgr"},
        lambda pixels: pixels[..., ::-1],
        (0.406, 0.456, 0.485),
        (0.225, 0.224, 0.229),
    ),
    "grey": ({"mean": (0.1307,), "std": (0.3081,), "channels": "grey"}, grey_of, (0.1307,), (0.3081,)),
}


def masks_of(out):
    return {path.name: np.load(path) for path in sorted(Path(out, "masks").rglob("*.npy"))}


@pytest.mark.parametrize("name", INPUTS)
def test_job_and_library_give_the_same_masks(name, photos, network_file, grey_file, tmp_path):
    settings, channels, mean, std = INPUTS[name]
    weights = grey_file if name == "grey" else network_file
    run(config(photos, tmp_path / "out", weights, **settings))
    vbp = VisualBackProp(load_model("vgg16", weights).network)
    found = masks_of(tmp_path / "out")
    assert len(found) == 3
    for file, mask_HW in found.items():
        (path,) = Path(tmp_path, "out", "inputs").rglob(file.removesuffix(".npy") + ".png")
        image_HWC = (channels(np.asarray(Image.open(path))) / 255 - np.array(mean)) / np.array(std)
        image_1CHW = torch.from_numpy(np.ascontiguousarray(image_HWC.transpose(2, 0, 1)))[None].float()
        np.testing.assert_allclose(mask_HW, vbp(image_1CHW)[0, 0], atol=2e-5)
    if name != "grey":
        run(config(photos, tmp_path / "plain", network_file))
        plain = masks_of(tmp_path / "plain")
        assert all(np.abs(found[file] - plain[file]).max() > 1e-3 for file in found)


def test_run_json_says_it_and_another_is_refused(photos, network_file, tmp_path):
    out = tmp_path / "out"
    run(config(photos, out, network_file, mean=MEAN, interpolation="bicubic", channels="bgr"))
    record = json.loads((out / "_run" / "run.json").read_text())
    said = {name: record["fingerprint"][name] for name in ("mean", "std", "interpolation", "channels")}
    assert said == {"mean": [*MEAN], "std": [0.225, 0.224, 0.229], "interpolation": "bicubic", "channels": "bgr"}
    assert record["config"]["std"] is None
    with pytest.raises(
        UsageError, match=r"mean was \[0.5, 0.3, 0.1\], now \[0.485, 0.456, 0.406\]; std.*; interp.*; channels"
    ):
        run(config(photos, out, network_file))
    same = run(config(photos, out, network_file, mean=MEAN, interpolation="bicubic", channels="bgr"))
    assert same.computed == 0


def test_a_run_from_before_is_continued_as_imagenets(photos, network_file, tmp_path):
    out = tmp_path / "out"
    run(config(photos, out, network_file))
    file = out / "_run" / "run.json"
    record = json.loads(file.read_text())
    for name in ("mean", "std", "interpolation", "channels"):
        del record["fingerprint"][name], record["config"][name]
    file.write_text(json.dumps(record))
    assert run(config(photos, out, network_file)).computed == 0
    assert run(config(photos, out, network_file, mean=(0.485, 0.456, 0.406))).computed == 0
    with pytest.raises(UsageError, match="channels was 'rgb', now 'bgr'"):
        run(config(photos, out, network_file, channels="bgr"))


@pytest.mark.parametrize(
    ("grey", "settings", "said"),
    [
        (True, {}, r"^--channels \(=rgb\) make an input of 3, but the network takes 1: give .*grey .*mean and std"),
        (False, {"channels": "grey", "mean": (0.5,), "std": (0.5,)}, r"^--channels \(=grey\) .* takes 3: give .*rgb"),
        (False, {"channels": "grey"}, r"^--channels \(=grey\) needs mean and std too"),
        (False, {"mean": (0.5,)}, r"^--mean \(=0.5\) must have 3 values"),
    ],
)
def test_what_does_not_go_together_is_refused_before_work(
    grey, settings, said, photos, network_file, grey_file, tmp_path
):
    with pytest.raises(UsageError, match=said):
        run(config(photos, tmp_path / "out", grey_file if grey else network_file, **settings))
    assert not (tmp_path / "out").exists()


def test_padding_and_the_reference_style_are_of_the_networks_mean(photos, network_file, tmp_path):
    out = tmp_path / "out"
    changes = {"fit": "pad", "outputs": ("input", "overlay"), "overlay_style": "reference", "mean": (0.1, 0.6, 0.9)}
    run(config(photos, out, network_file, channels="bgr", **changes))
    for path in out.rglob("inputs/**/*.png"):
        assert np.asarray(Image.open(path))[0, 0].tolist() == [round(255 * v) for v in (0.9, 0.6, 0.1)]
    overlays = {path.name: path.read_bytes() for path in out.rglob("overlays/**/*.jpg")}
    run(config(photos, tmp_path / "plain", network_file, **changes | {"mean": None}))
    assert len(overlays) == 3
    assert all(path.read_bytes() != overlays[path.name] for path in (tmp_path / "plain").rglob("overlays/**/*.jpg"))
