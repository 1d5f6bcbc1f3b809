"""The command: which files it takes, what it writes, and one sentence for everything else."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from PIL import Image

from tests.attach.graphs import Net, image_of, run
from vbp.attach import files
from vbp.cli import EXIT_USAGE, main


def small(net=None):
    net = net or Net()
    return net.model(net.node("Relu", net.convolution("image", (3, 4), pads=[1] * 4)))


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def command(*words):
        return CliRunner().invoke(main, ["attach", *words])

    return command


def refused(result):
    assert result.exit_code == EXIT_USAGE, result.output
    (sentence,) = result.stderr.splitlines()
    return sentence


def test_a_file_with_its_mask(command):
    onnx.save(small(), "model.onnx")
    before = Path("model.onnx").read_bytes()
    result = command("model.onnx", "--output", "new.onnx")
    assert result.exit_code == 0, result.output
    assert "new.onnx: model.onnx and its mask, (n, 1, 20, 22), in opset 17" in result.output
    assert "stages multiplied: relu1" in result.output
    assert Path("model.onnx").read_bytes() == before
    assert run(onnx.load("new.onnx"), image_of())["mask"].shape == (3, 1, 20, 22)


def test_json_and_uint8_into_a_file_that_exists(command):
    onnx.save(small(), "model.onnx")
    Path("new.onnx").write_text("old")
    result = command("model.onnx", "--output", "new.onnx", "--uint8", "--json")
    expected = {"output": "new.onnx", "stages": ["relu1"], "opset": 17, "shape": ["n", 1, 20, 22]}
    assert json.loads(result.stdout) == expected
    assert run(onnx.load("new.onnx"), image_of())["mask_uint8"].dtype == np.uint8


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "vbp: model.onnx is empty: copy or export it again."),
        (b"PK\x03\x04" + bytes(40), "vbp: model.onnx is no ONNX model: export the network to ONNX first"),
        (b"version https://git-lfs.github.com/spec/v1\n", "vbp: model.onnx is a Git LFS pointer, not the model"),
        (small().SerializeToString()[:300], "vbp: model.onnx is cut short or damaged (300 bytes): copy or export"),
    ],
)
def test_what_is_no_model(command, data, sentence):
    Path("model.onnx").write_bytes(data)
    assert refused(command("model.onnx", "--output", "new.onnx")).startswith(sentence)


def test_places(command, tmp_path):
    onnx.save(small(), "model.onnx")
    assert "cannot be read: No such file" in refused(command("missing.onnx", "--output", "new.onnx"))
    assert "cannot be read: Is a directory" in refused(command(".", "--output", "new.onnx"))
    assert "is the model itself" in refused(command("model.onnx", "--output", "../" + tmp_path.name + "/model.onnx"))
    assert "the folder no does not exist" in refused(command("model.onnx", "--output", "no/new.onnx"))
    assert ". is a folder" in refused(command("model.onnx", "--output", "."))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_a_file_beyond_the_format(command, monkeypatch):
    onnx.save(small(), "model.onnx")
    monkeypatch.setattr(files, "LIMIT", 100)
    assert "has 2 GiB or more" in refused(command("model.onnx", "--output", "new.onnx"))


def test_weights_in_another_file(command, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    settings = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(small(), "in/model.onnx", **settings)
    data = (tmp_path / "in" / "weights.bin").read_bytes()
    assert command("in/model.onnx", "--output", "in/new.onnx").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["model.onnx", "new.onnx", "weights.bin"]
    for _ in range(2):
        assert command("in/model.onnx", "--output", "out/new.onnx").exit_code == 0
    assert (tmp_path / "out" / "weights.bin").read_bytes() == data
    found = run(onnx.load("out/new.onnx"), image_of())["mask"]
    expected = run(onnx.load("in/new.onnx"), image_of())["mask"]
    assert np.array_equal(found, expected)
    (tmp_path / "out" / "weights.bin").write_bytes(b"other")
    assert "is not the file of the model's weights" in refused(command("in/model.onnx", "--output", "out/new.onnx"))
    (tmp_path / "in" / "weights.bin").write_bytes(data[:50])
    assert "'weights.bin', is cut short" in refused(command("in/model.onnx", "--output", "out/new.onnx"))
    (tmp_path / "in" / "weights.bin").unlink()
    assert "'weights.bin', is not beside it" in refused(command("in/model.onnx", "--output", "out/new.onnx"))


@pytest.mark.parametrize("place", ["../weights.bin", "/weights.bin"])
def test_weights_outside_the_folder(command, place):
    model = small()
    weights = model.graph.initializer[0]
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.append(onnx.StringStringEntryProto(key="location", value=place))
    Path("model.onnx").write_bytes(model.SerializeToString())
    assert "outside the model's folder" in refused(command("model.onnx", "--output", "new.onnx"))


def two_inputs():
    net = Net()
    top = net.node("Relu", net.convolution("image", (3, 4)))
    return net.model(top, inputs=[helper.make_tensor_value_info("size", TensorProto.INT64, [2])])


def without_convolution():
    net = Net()
    return net.model(net.node("Relu", "image"))


def without_activation():
    net = Net()
    return net.model(net.convolution("image", (3, 4)))


def custom():
    net = Net()
    first = net.node("Relu", net.convolution("image", (3, 4)))
    return net.model(net.convolution(net.node("Fancy", first, domain="com.example"), (4, 4)))


def integers():
    net = Net()
    scale, zero = np.float32(1), np.uint8(0)
    image = net.node("QuantizeLinear", "image", scale, zero)
    weight, scale, zero = np.ones((4, 3, 3, 3), np.uint8), net.constant(scale), net.constant(zero)
    return net.model(net.node("QLinearConv", image, scale, zero, weight, scale, zero, scale, zero))


def attention():
    net = Net()
    first = net.node("Relu", net.convolution("image", (3, 4), pads=[1] * 4))
    turned = net.node("Transpose", first, perm=[0, 1, 3, 2])
    return net.model(net.convolution(net.node("MatMul", first, turned), (4, 4)))


def three_axes():
    return small(Net((3, 20, 22)))


def old():
    return small(Net(opset=9))


def open_end():
    model = small()
    model.graph.node[1].input[0] = "nothing"
    return model


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (two_inputs, "the graph has 2 inputs ('image', 'size'), and one is needed: a batch of images."),
        (without_convolution, "the graph has no 2-d convolution, so VisualBackProp has no map to start from."),
        (without_activation, "the graph has no activation behind a 2-d convolution, so"),
        (custom, "an operator that ONNX does not define: Fancy of the domain com.example 'node2'."),
        (
            integers,
            "an operator that computes in integers alone (quantise in the format QDQ, which keeps the float maps)",
        ),
        (attention, "an operator that multiplies maps as matrices, such as attention: MatMul 'node3'."),
        (three_axes, "the graph's input 'image' has the shape (3, 20, 22), and a batch of images has four axes."),
        (old, "the model has opset 9, and at least 11 is needed: convert it with onnx.version_converter"),
        (open_end, "the model is damaged: Relu 'node1' reads 'nothing', which nothing makes."),
    ],
)
def test_what_cannot_be_explained(command, make, sentence):
    onnx.save(make(), "model.onnx")
    told = refused(command("model.onnx", "--output", "new.onnx"))
    assert told.startswith("vbp: model.onnx: ")
    assert sentence in told


def test_a_stage_that_does_not_exist(command):
    onnx.save(small(), "model.onnx")
    told = refused(command("model.onnx", "--output", "new.onnx", "--stages", "relu7"))
    assert "stages: 'relu7' is none of all, last, relu1." in told


def test_the_program_of_the_page_runs(command, request):
    page = (request.config.rootpath / "docs" / "how-to" / "attach.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)).save("photo.jpg")
    onnx.save(small(Net(("n", 3, 224, 224))), "model.onnx")
    assert command("model.onnx", "--output", "with_mask.onnx").exit_code == 0
    exec(program, {})
    with Image.open("mask.png") as mask:
        assert (mask.mode, mask.size, mask.getextrema()) == ("L", (224, 224), (0, 255))


def test_without_the_package(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "vbp.attach.files", None)
    assert "pip install 'visualbackprop[onnx]'" in refused(command("model.onnx", "--output", "new.onnx"))
