"""RunConfig refuses impossible values before any work."""

import json

import click
import pytest
import torch

from vbp.cli import explain
from vbp.errors import UsageError
from vbp.networks.preprocessing import Preprocessing
from vbp.pipeline import RunConfig
from vbp.saliency.method import Method


def config(**changes):
    return RunConfig(**{"input": "photos", "output": "out", **changes})


def test_defaults_are_those_of_the_documentation():
    made = config()
    assert (made.model, made.weights, made.preset, made.size) == ("vgg16", "imagenet", "paper", 224)
    assert (made.fit, made.frame, made.seed, made.select) == ("crop", "network", 500, "all")
    assert (made.outputs, made.mask_format, made.overlay_style) == (("mask", "overlay"), "png8", "heat")
    assert (made.resume_mode, made.max_failures, made.runner) == ("resume", "1%", "auto")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preset": "papper"}, ["--preset", "papper", "paper, reference"]),
        ({"outputs": ("mask", "movie")}, ["--outputs", "movie", "overlay"]),
        ({"outputs": ()}, ["--outputs", "empty"]),
        ({"size": 0}, ["--size", "0", "at least 1"]),
        ({"pooling": "max"}, ["--pooling", "max", "exact, merged, unpool"]),
        ({"target": "cat"}, ["--target", "cat", "none, predicted"]),
        ({"smooth": -1}, ["--smooth (=-1)", "at least 0"]),
        ({"smooth": 3, "noise": 0.0}, ["--noise (=0.0)", "more than 0"]),
        ({"batch_size": -2}, ["--batch-size", "-2"]),
        ({"limit": 0}, ["--limit"]),
        ({"decode": "tpu"}, ["--decode", "tpu", "cpu, gpu"]),
        ({"decode": "gpu", "fit": "original"}, ["--decode gpu and --fit original exclude"]),
        ({"decode": "gpu", "frame": "image"}, ["--decode gpu and --frame image exclude"]),
        ({"decode": "gpu", "fast_decode": True}, ["--decode gpu and --fast-decode exclude"]),
        ({"decode": "gpu", "device": "cpu"}, ["--decode gpu and --device cpu exclude"]),
        ({"decode": "gpu", "device": "mps"}, ["--decode gpu and --device mps exclude"]),
        ({"max_failures": "a few"}, ["--max-failures", "a few", "1%"]),
        ({"max_failures": "1.5"}, ["--max-failures", "1.5"]),
        ({"retry_failed": True, "resume_mode": "overwrite"}, ["--retry-failed", "overwrite"]),
        ({"output": "photos"}, ["inside INPUT"]),
        ({"output": ""}, ["OUTPUT (='')"]),
        ({"input": "out/inputs"}, ["folder inputs of OUTPUT"]),
        ({"input": "s3://b/out/masks/cat", "output": "s3://b/out"}, ["folder masks of OUTPUT"]),
        ({"output": "photos/out"}, ["inside INPUT"]),
        ({"input": "./photos/", "output": "x/../photos/a/b"}, ["inside INPUT"]),
        ({"input": "s3://b/photos/", "output": "s3://b/photos/out"}, ["inside INPUT"]),
    ],
)
def test_refuses(changes, words):
    with pytest.raises(UsageError) as caught:
        config(**changes)
    for word in words:
        assert word in str(caught.value)


def test_a_network_of_ones_own_is_shown_the_way():
    with pytest.raises(
        UsageError, match=r"\(=Linear\) must be a name, such as .* VisualBackProp\(module\), .*steps\.Explain"
    ):
        config(model=torch.nn.Linear(2, 2))


@pytest.mark.parametrize(("source", "output"), [("photos", "photos-out"), ("s3://b/photos", "s3://b/photos2")])
def test_output_beside_the_input_is_fine(source, output):
    config(input=source, output=output)


def test_output_inside_the_input_through_a_link(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    with pytest.raises(UsageError, match="inside INPUT"):
        config(input=str(tmp_path / "photos"), output=str(tmp_path / "link" / "out"))


@pytest.mark.parametrize(
    ("share", "images", "allowed"),
    [("1%", 64, 0), ("1%", 100, 1), ("1%", 199, 1), ("50%", 7, 3), ("0.57%", 10_000, 57), ("12", 1, 12), ("0", 9, 0)],
)
def test_failures_allowed(share, images, allowed):
    assert config(max_failures=share).failures_allowed(images) == allowed


def test_suffixes():
    assert config(suffixes=("JPG", ".heic", " none")).suffixes == (".jpg", ".heic", "none")
    assert RunConfig(**config(suffixes=(".jpg",)).as_json()) == config(suffixes=(".jpg",))
    assert "--suffixes=.jpg,none" in config(suffixes=("jpg", "none")).arguments()
    with pytest.raises(UsageError, match=r"--suffixes \(=\*\.jpg\) must name ends of files .*'\*\.jpg' is neither"):
        config(suffixes=("*.jpg",))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mean": (123.7, 116.8, 103.9)}, r"^--mean \(=123.7,116.8,103.9\) must lie in 0..1.*this is 0.4851"),
        ({"std": (1, 0, 1)}, r"^--std \(=1,0,1\) must .*not be 0"),
        ({"interpolation": "lanczos"}, r"^--interpolation \(=lanczos\) must be one of bilinear, bicubic"),
        ({"channels": "hsv"}, r"^--channels \(=hsv\) must be one of rgb, bgr, grey"),
    ],
)
def test_what_no_network_wants_to_see_is_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        config(**changes)


def test_preprocessing_is_the_networks_own_but_for_the_flags():
    own = Preprocessing((0.5,) * 3, (0.25,) * 3, "bicubic")
    assert config().preprocessing(own) == own
    assert config(std=(1, 1, 1), channels="bgr").preprocessing(own) == Preprocessing(
        (0.5,) * 3, (1,) * 3, "bicubic", "bgr"
    )


@pytest.mark.parametrize("given", ["0.5,x,0.5", ""])
def test_numbers_that_are_none_are_refused_on_the_command_line(given):
    with pytest.raises(click.BadParameter, match="must be numbers, like 0.485"):
        explain.make_context("explain", ["photos", "out", "--mean", given])


def test_the_order_of_outputs_means_nothing():
    assert config(outputs=("maps", " input", "maps")).outputs == ("input", "maps")


def test_fingerprint_names_what_the_results_depend_on_and_nothing_else():
    assert set(config().fingerprint()) == {
        "model", "model_args", "submodule", "preset", "fit", "frame", "select", "classes", "outputs", "mask_format",
        "overlay_style", "layout", "fast_decode", "decode", "stages", "pooling", "multiply_input", "target", "smooth",
    }  # fmt: skip


def test_noise_and_its_seed_count_only_where_there_is_noise():
    assert config(noise=0.3, seed=7).fingerprint() == config().fingerprint()
    noisy = config(smooth=8, noise=0.3, seed=7).fingerprint()
    assert (noisy["smooth"], noisy["noise"], noisy["noise_seed"]) == (8, 0.3, 7)


def test_the_method_is_one_value():
    assert config().method == Method()
    assert config(stages="last", target="predicted").method == Method(stages="last", target="predicted")
    made = config(stages="relu, layer1.0.relu", pooling="merged", smooth=3, seed=9).method
    assert made == Method(stages=("relu", "layer1.0.relu"), pooling="merged", smooth=3, seed=9)


def test_json_survives_a_round_trip():
    made = config(outputs=("mask",), storage_options={"s3://b": {"region": "eu-west-1"}})
    kept = json.loads(json.dumps(made.as_json()))
    assert RunConfig(**{**kept, "outputs": tuple(kept["outputs"])}) == made


def test_the_command_line_of_a_configuration_asks_for_the_same():
    assert config().arguments() == ["--", "photos", "out"]
    changed = config(
        input="-photos", output="out put", model="resnet50", stages="last", multiply_input=True, size=96, noise=0.25,
        outputs=("mask", "maps"), max_failures="0", limit=1, seed=1, classes="a b'c.txt", retry_failed=True,
        storage_options={"s3://b": {"endpoint_url": "http://h:1", "anon": True}},
        mean=(0.5, 1 / 3, 0.1), std=(1 / 255,) * 3, interpolation="bicubic", channels="bgr",
    )  # fmt: skip
    given = explain.make_context("explain", changed.arguments()).params
    assert RunConfig(**{name: given[name] for name in changed.as_json()}) == changed


def test_as_the_weights_were_trained():
    own = Preprocessing(size=300, trained=(342, 299))
    seen = config(fit="trained", interpolation="bicubic").preprocessing(own)
    assert (seen.size, seen.trained, seen.interpolation) == (299, (342, 299), "bicubic")
    assert config().preprocessing(own).trained is None  # it counts with that fit alone
    assert config(size=64).preprocessing(own).size == 64
    with pytest.raises(UsageError, match=r"--fit trained: nobody says how images were resized and cut for vgg16 with"):
        config(fit="trained").preprocessing()
    with pytest.raises(UsageError, match=r"--size \(=64\) and --fit trained both say"):
        config(fit="trained", size=64)


def test_only_code_can_have_an_attribute():
    for model, wanted in (("mine.py:build", True), ("net.onnx", False), ("net.pt2", False)):
        with pytest.raises(UsageError, match="^--mean and --std are needed") as refused:
            config(model=model).preprocessing(None)
        assert ("an attribute `preprocessing`" in str(refused.value)) == wanted


def test_a_network_of_ones_own_is_asked_for_what_nobody_says():
    mine = {"model": "nets/mine.py:build"}
    assert (config(**mine).weights, config(**mine).size) == ("own", None)
    with pytest.raises(UsageError, match=r"^--mean and --std are needed: mine\.py:build does not say"):
        config(**mine).preprocessing(None)
    given = {"mean": (0.5,), "std": (0.25,), "channels": "grey"}
    with pytest.raises(UsageError, match="^--size is needed"):
        config(**mine, **given).preprocessing(None)
    grey = Preprocessing((0.5,), (0.25,), channels="grey", size=48)
    assert config(**mine, **given, size=48).preprocessing(None) == grey
    assert config(**mine, **given, fit="original").preprocessing(None).size is None
    assert config(**mine).preprocessing(grey) == grey


def test_arguments_of_ones_own_network_hold_no_secrets():
    with pytest.raises(UsageError, match="--model-args would put 'hub_token' into the record"):
        config(model="mine.py:build", model_args={"hub": {"hub_token": "x"}})
