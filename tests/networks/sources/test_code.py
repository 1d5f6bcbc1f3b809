"""A network of one's own by name: it is taken as the function returns it, and what cannot be is one sentence."""

import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from vbp.errors import ModelError, WeightsError
from vbp.networks.models import load_model
from vbp.networks.preprocessing import Preprocessing

pytestmark = pytest.mark.usefixtures("finders_as_before")

NET = """
import torch
from torch import nn

class Net(nn.Module):
    preprocessing = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "size": 32}
    def __init__(self, width=4, classes=3):
        super().__init__()
        if classes == 3:
            self.class_names = ["bird", "cat", "dog"]
        first, second = nn.Conv2d(3, width, 3), nn.Conv2d(width, 6, 3)
        self.body = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(), second, nn.ReLU())
        self.head = nn.Linear(6, classes)
    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

def build(width=4, classes=3):
    return Net(width, classes)

made = Net()
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(NET)
    return f"{tmp_path}/mine.py"


def made(tmp_path, text):
    """The name of a function `build` in a file with this text."""
    (tmp_path / "net.py").write_text(text)
    return f"{tmp_path}/net.py:build"


@pytest.mark.parametrize("name", ["build", "Net", "made"])
def test_a_function_a_class_and_a_network(file, name):
    model = load_model(f"{file}:{name}")
    assert model.preprocessing == Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), size=32)
    assert (model.class_names, model.num_classes) == (("bird", "cat", "dog"), 3)
    assert (model.weights, model.network.training) == ("own", False)
    assert model.code is not None


def test_arguments_and_the_number_of_classes(file):
    model = load_model(f"{file}:build", model_args={"width": 8, "classes": 5})
    assert model.network.body[0].out_channels == 8
    assert (model.class_names, model.num_classes) == (None, 5)


def test_random_weights_are_the_same_in_every_process_and_change_nothing_here(file):
    state = torch.get_rng_state()
    first, again, other = (load_model(f"{file}:build", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.sha256 == again.sha256 != other.sha256


def test_a_network_that_says_nothing_of_pixels_predicts_none_for_maps(tmp_path):
    text = "from torch import nn\ndef build(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).double()"
    model = load_model(made(tmp_path, text))
    assert (model.preprocessing, model.num_classes, model.class_names) == (None, None, None)
    assert model.network[0].weight.dtype is torch.float32


def test_preprocessing_may_be_the_value_itself_and_leave_out_the_size(tmp_path):
    text = (
        "from torch import nn\nfrom vbp.networks.preprocessing import Preprocessing\ndef build():\n"
        "    network = nn.Conv2d(1, 4, 3)\n    network.preprocessing = {}\n    return network\n"
    )
    grey = Preprocessing((0.5,), (0.25,), channels="grey", size=None)
    assert load_model(made(tmp_path, text.format(grey))).preprocessing == grey
    mapping = {"mean": [0.5], "std": [0.25], "channels": "grey"}
    assert load_model(made(tmp_path, text.format(mapping))).preprocessing == grey


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("5", "its attribute `preprocessing` is a int; it must be a mapping"),
        ("{'mean': [0.5] * 3}", "its `preprocessing` lacks std"),
        ("{'mean': [0.5] * 3, 'std': [1] * 3, 'scale': 2}", "its `preprocessing` has 'scale', which is none of mean"),
        ("{'mean': [128] * 3, 'std': [1] * 3}", r"its `preprocessing`: mean \(=128,128,128\) must lie in 0..1"),
        ("{'mean': [0.5] * 3, 'std': [1] * 3, 'size': '64'}", r"size \(='64'\) must be a whole number"),
        ("{'mean': [0.5] * 3, 'std': [1] * 3, 'channels': 'hsv'}", r"channels \(=hsv\) must be one of rgb, bgr, grey"),
    ],
)
def test_preprocessing_that_is_none(tmp_path, said, message):
    text = f"from torch import nn\ndef build():\n    n = nn.Conv2d(3, 1, 1)\n    n.preprocessing = {said}\n    return n"
    with pytest.raises(ModelError, match=message):
        load_model(made(tmp_path, text))


@pytest.mark.parametrize(
    "said",
    [
        "{'mean': 0.5, 'std': 1}", "{'mean': None, 'std': None}", "{'mean': '000', 'std': '111'}",
        "{'mean': {0: 1}, 'std': {1, 2, 3}}", "{**good, 'trained': 5}", "{**good, 'trained': {0: 1, 1: 2}}",
        "{**good, 'trained': (9, None)}", "{**good, 'interpolation': ['a']}", "{**good, 'channels': {}}",
        "{**good, 'size': None, 5: 6}", "{**good, 'mean': [[0.5] * 3]}", "{**good, 'size': 1.5}",
    ],
)  # fmt: skip
def test_odd_values_of_preprocessing_are_a_sentence_that_names_it(tmp_path, said):
    good = "good = {'mean': [0.5] * 3, 'std': [1] * 3}"
    text = f"from torch import nn\n{good}\nbuild = nn.Conv2d(3, 1, 1)\nbuild.preprocessing = {said}"
    with pytest.raises(ModelError, match=r"^model '.*net\.py:build': its `preprocessing`"):
        load_model(made(tmp_path, text))


NAMED = "from torch import nn\nbuild = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("['a', 'b', 'c']", r"`class_names` has 3 names, but it gives 2 scores: give as many"),
        ("[]", r"`class_names` has 0 names"),
        ("'a,b'", r"`class_names` is a str; it must be a list of names"),
        ("{0: 'a', 1: 'b'}", r"`class_names` is a dict; it must be a list"),
    ],
)
def test_class_names_that_are_not_those_of_its_classes(tmp_path, said, message):
    with pytest.raises(ModelError, match=message):
        load_model(made(tmp_path, f"{NAMED}build.class_names = {said}"))


def test_class_names_of_another_classifier_than_the_checkpoints_are_said_to_be_left_out(file, tmp_path):
    _, weights = checkpoint(file, tmp_path, classes=7)
    model = load_model(f"{file}:build", weights)
    assert (model.num_classes, model.class_names) == (7, None)
    assert "its `class_names` has 3 names, but it gives 7 scores; they are left out." in model.notes[-1]


@pytest.mark.parametrize("draw", ["numpy.random.randn(3)", "[random.random() for _ in range(3)]", "torch.randn(3)"])
def test_random_numbers_of_every_kind_depend_on_the_seed_alone(tmp_path, draw):
    text = (
        "import numpy, random, torch\nfrom torch import nn\ndef build():\n    net = nn.Conv2d(3, 3, 1)\n"
        f"    net.bias.data = torch.as_tensor({draw})\n    return net"
    )
    model = made(tmp_path, text)
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first, again, other = (load_model(model, seed=seed).sha256 for seed in (1, 1, 2))
    assert first == again != other
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # noqa: NPY002


def test_what_the_network_prints_goes_to_standard_error(tmp_path, capsys):
    text = NAMED.replace("build =", "inner =") + (
        "class build(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.inner = inner\n"
        "    def forward(self, x):\n        print('seen')\n        return self.inner(x)"
    )
    load_model(made(tmp_path, text))
    assert capsys.readouterr() == ("", "seen\n")


def test_what_was_not_read_is_not_run_in_its_first_pass_either(tmp_path):
    (tmp_path / "late_of_it.py").write_text("N = 1")
    text = (
        "import importlib\nfrom torch import nn\nclass build(nn.Module):\n    def forward(self, x):\n"
        "        return importlib.import_module('late_of_it')"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ModelError, match=r"late_of_it\.py is no part of the code"):
            load_model(made(tmp_path, text))
    finally:
        sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1/0", r"cannot be imported: ZeroDivisionError: division by zero \(line 1 of net\.py\)\.$"),
        (
            "import no_such_thing\ndef build(): pass",
            r"cannot be imported: ModuleNotFoundError: No module named 'no_such_thing' \(line 1",
        ),
        ("def build(:", r"cannot be imported: SyntaxError: .* \(net\.py, line 1\)\.$"),
        ("exit(3)\ndef build(): pass", r"cannot be imported: SystemExit: 3 \(line 1 of net\.py\)\.$"),
        ("def build():\n    raise KeyError('x')", r"raises: KeyError: 'x' \(line 2 of net\.py\)\.$"),
        ("def build():\n    exit()", r"raises: SystemExit: None \(line 2"),
        ("def build(): pass", "gives nothing \\(None\\), not a torch.nn.Module"),
        ("def build(): return {}", "gives a dict, not a torch.nn.Module"),
        ("build = 5", "is a int, not a function, class or torch.nn.Module"),
        (
            "def build(depth): pass",
            r"build'\(depth\) does not take --model-args \(=\{\}\): missing a required argument",
        ),
        ("from torch import nn\ndef build(): return nn.LazyConv2d(3, 3)", "has lazy layers without weights"),
    ],
)
def test_a_function_that_gives_no_network(tmp_path, text, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_model(made(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_arguments_that_it_does_not_take(file):
    with pytest.raises(ModelError, match=r"unexpected keyword argument 'widht'; did you mean width\?"):
        load_model(f"{file}:build", model_args={"widht": 8})
    with pytest.raises(ModelError, match="is a network already"):
        load_model(f"{file}:made", model_args={"width": 8})
    with pytest.raises(ModelError, match="model_args are for a function of your own"):
        load_model("vgg16", "random", model_args={"width": 8})


def test_what_own_code_does_to_the_process_stays_there(tmp_path, capsys):
    text = (
        "import torch\nfrom torch import nn\nprint('loaded')\ntorch.set_default_dtype(torch.float64)\n"
        "torch.set_grad_enabled(False)\ndef build():\n    print('made')\n    return nn.Conv2d(3, 1, 1)"
    )
    load_model(made(tmp_path, text))
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float32, True)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "loaded\nmade\n")


def checkpoint(file, tmp_path, change=lambda state: state, **arguments):
    network = load_model(f"{file}:build", model_args=arguments, seed=9).network
    torch.save(change(network.state_dict()), tmp_path / "mine.pth")
    return network, str(tmp_path / "mine.pth")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state,
        lambda state: {"state_dict": {f"model.module.{key}": value for key, value in state.items()}, "epoch": 3},
        lambda state: {f"_orig_mod.{key}": value.half().float() for key, value in state.items()},
    ],
)
def test_a_checkpoint_of_it_in_the_shapes_that_people_save(file, tmp_path, change):
    network, weights = checkpoint(file, tmp_path, change)
    model = load_model(f"{file}:build", weights)
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(model.network.state_dict()[key], tensor, rtol=1e-3, atol=1e-4)
    assert (model.num_classes, model.class_names) == (3, ("bird", "cat", "dog"))


def test_a_checkpoint_with_another_number_of_classes_counts(file, tmp_path):
    _, weights = checkpoint(file, tmp_path, classes=7)
    assert load_model(f"{file}:build", weights).num_classes == 7


def test_a_checkpoint_of_another_width_is_refused(file, tmp_path):
    _, weights = checkpoint(file, tmp_path, width=8)
    with pytest.raises(
        WeightsError, match=r"body\.0\.weight has shape \(8, 3, 3, 3\), not \(4, 3, 3, 3\); --model-args"
    ):
        load_model(f"{file}:build", weights)
    assert load_model(f"{file}:build", weights, model_args={"width": 8}).num_classes == 3


def test_a_checkpoint_of_something_else_is_refused(file, tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"do not fit .*: body\.0\.weight is missing\.$"):
        load_model(f"{file}:build", str(tmp_path / "other.pth"))
    for weights in ("random", "demo", "imagenet"):
        with pytest.raises(WeightsError, match=f"there are no {weights} weights for .*: give own, a file or a URL"):
            load_model(f"{file}:build", weights)


def test_a_part_of_it_predicts_nothing(file):
    whole, part = load_model(f"{file}:build"), load_model(f"{file}:build", submodule="body")
    assert (part.num_classes, part.class_names, part.preprocessing) == (None, None, whole.preprocessing)
    assert part.sha256 == whole.sha256
    image_1CHW = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(part.network(image_1CHW), whole.network.body(image_1CHW))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bdoy", r"submodule 'bdoy' is no part of .*: did you mean body\?"),
        ("x", r"submodule 'x' is no part of .*: its parts are body, head\."),
        ("", r"submodule '' is no part"),
        ("body.3", r"submodule 'body\.3' of .* takes maps of 4 channels, not images"),
    ],
)
def test_a_part_that_is_none(file, name, message):
    with pytest.raises(ModelError, match=message):
        load_model(f"{file}:build", submodule=name)
