"""Masks out of attached graphs, in onnxruntime, beside plain loops and beside those of the torch networks."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from tests.attach.graphs import Net, averaged, down, image_of, run, scaled, showing
from tests.small_networks import randomise, small_vgg
from vbp.attach.attach import attach
from vbp.errors import ModelError, UsageError
from vbp.saliency import VisualBackProp


def exported(network, path, size, **settings):
    """A torch network as ONNX that takes any number of images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        names = {"input_names": ["images"], "output_names": ["logits"]}
        torch.onnx.export(network, (torch.randn(2, 3, *size),), path, verbose=False, **names, **settings)
    return onnx.load(path)


DYNAMO = {"dynamo": True, "external_data": False, "dynamic_shapes": ({0: "n"},)}
TORCHSCRIPT = {"dynamo": False, "dynamic_axes": {"images": {0: "n"}}}
ANY_SIZE = {"dynamo": False, "dynamic_axes": {"images": {0: "n", 2: "h", 3: "w"}}}


def gelu_and_silu():
    layers = [nn.Conv2d(3, 8, 3, 2), nn.GELU(), nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.SiLU()]
    return randomise(nn.Sequential(*layers, nn.AvgPool2d(3, 2, 1), nn.Conv2d(8, 4, 1), nn.Mish(), nn.Flatten()))


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "settings", "opset"),
    [
        (small_vgg, DYNAMO, 18),
        (gelu_and_silu, TORCHSCRIPT, 13),
        (lambda: models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), TORCHSCRIPT, 11),
        (lambda: models.mobilenet_v3_small(), ANY_SIZE, 17),
        (lambda: models.shufflenet_v2_x0_5(), ANY_SIZE, 17),
        (lambda: models.DenseNet(4, (2, 2), 8, num_classes=5), TORCHSCRIPT, 17),
    ],
)
def test_masks_are_those_of_the_torch_network(make, settings, opset, tmp_path):
    network = randomise(make())
    model = exported(network, tmp_path / "net.onnx", (64, 48), opset_version=opset, **settings)
    vbp = VisualBackProp(network)
    attached = attach(model)
    onnx.checker.check_model(attached.model, full_check=True)
    assert len(attached.stages) == len(vbp.stages)
    for count in (1, 3):
        size = (72, 65) if settings is ANY_SIZE else (64, 48)
        images = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(count))
        before, after = run(model, images.numpy()), run(attached.model, images.numpy())
        assert np.array_equal(before["logits"], after["logits"])
        np.testing.assert_allclose(after["mask"], vbp(images).numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("stages", ["last", "some"])
def test_chosen_stages_are_those_of_the_torch_network(stages, tmp_path):
    network = small_vgg(norm=True)
    model = exported(network, tmp_path / "net.onnx", (32, 48), **TORCHSCRIPT)
    vbp = VisualBackProp(network)
    every = attach(model).stages
    places = {"last": [1, 2, 3], "some": [0, 3]}[stages]
    asked = ["last"] if stages == "last" else [every[place] for place in places]
    attached = attach(model, stages=asked)
    assert attached.stages == tuple(every[place] for place in places)
    chosen = VisualBackProp(network, stages=[vbp.stages[place].name for place in places])
    images = torch.randn(2, 3, 32, 48)
    np.testing.assert_allclose(run(attached.model, images.numpy())["mask"], chosen(images).numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(32, 48), (33, 46)])
def test_preset_reference_is_that_of_the_torch_network(size, tmp_path):
    network = small_vgg(norm=True)[:-3]
    model = exported(network, tmp_path / "net.onnx", size, **TORCHSCRIPT)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(4))
    mask = run(attach(model, preset="reference").model, images.numpy())["mask"]
    np.testing.assert_allclose(mask, VisualBackProp(network, "reference")(images).numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("shape", "settings", "sentence"),
    [
        (
            (1, 3, 16, 16),
            {"strides": [2, 2]},
            r"a first map of the input's size, .*: it is \(8, 8\), the input's \(16, 16\)",
        ),
        (("n", 3, "h", "w"), {}, r"known before the graph runs: it is \(None, None\)"),
    ],
)
def test_preset_reference_needs_known_sizes_that_halve(shape, settings, sentence):
    net = Net(shape)
    model = net.model(net.node("Relu", net.convolution("image", (3, 4), pads=[1] * 4, **settings)))
    with pytest.raises(ModelError, match=f"^preset 'reference' needs .*{sentence}"):
        attach(model, preset="reference")
    net = Net((1, 3, 16, 16))
    first = net.node("Relu", net.convolution("image", (3, 4), pads=[1] * 4))
    model = net.model(net.node("Relu", net.convolution(first, (4, 4), strides=[3, 3])))
    with pytest.raises(ModelError, match=r"needs maps that halve, but \(16, 16\) is followed by \(5, 5\): use 'paper'"):
        attach(model, preset="reference")


def test_the_model_keeps_all_that_it_had():
    net = Net()
    model = net.model(net.node("Relu", net.convolution("image", (3, 4))))
    before = model.SerializeToString()
    attached = attach(model, uint8=True)
    after = attached.model
    assert model.SerializeToString() == before
    assert attached.shape == ("n", 1, 20, 22)
    assert attached.opset == 17
    for kept, extended in ((model.graph.node, after.graph.node), (model.graph.initializer, after.graph.initializer)):
        assert list(kept) == list(extended)[: len(kept)]
    assert [output.name for output in after.graph.output] == ["relu1", "mask", "mask_uint8"]
    assert list(after.opset_import) == list(model.opset_import)
    found = run(after, image_of())
    assert found["mask_uint8"].dtype == np.uint8
    assert np.array_equal(found["mask_uint8"], np.floor(255 * found["mask"] + 0.5))


@pytest.mark.parametrize("opset", [11, 13, 18, 22])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_any_geometry_is_led_down_exactly(seed, dynamic, opset):
    random = np.random.default_rng(seed)
    settings = []
    for _ in range(2):
        kernel, stride, dilation = (random.integers(1, top, 2).tolist() for top in (5, 4, 3))
        before, after = (random.integers(0, 3, 2).tolist() for _ in range(2))
        settings.append({"kernel": kernel, "stride": stride, "dilation": dilation, "before": before, "after": after})
    net = Net(("n", 3, "h", "w") if dynamic else ("n", 3, 31, 34), seed, opset)
    top, taps = "image", []
    for channels, one in zip(((3, 4), (4, 5)), settings, strict=True):
        pads, kernel = [*one["before"], *one["after"]], one["kernel"]
        layer = net.convolution(top, channels, kernel, strides=one["stride"], pads=pads, dilations=one["dilation"])
        top = net.node("Relu", layer)
        taps.append(top)
    model, image = net.model(top), image_of((2, 3, 31, 34), seed)
    first, second = (averaged(value) for value in run(showing(model, *taps), image).values())
    ways = [{name: one[name] for name in ("kernel", "stride", "before", "dilation")} for one in settings]
    expected = down(down(second, first.shape[1:], **ways[1]) * first, (31, 34), **ways[0])
    np.testing.assert_allclose(run(attach(model).model, image)["mask"], scaled(expected), atol=1e-5, rtol=0)


def tensorflow_like(shape, stride=2):
    """Channels last at its ends, padding SAME, ReLU6 as bounds, as tf2onnx writes them."""
    net = Net(shape)
    turned = net.node("Transpose", net.node("Mul", "image", np.float32([0.5])), perm=[0, 3, 1, 2])
    first = net.convolution(turned, (3, 4), (3, 4), auto_pad="SAME_UPPER", strides=[stride, stride])
    first = net.node("Min", net.node("Relu", first), np.float32(6))
    pool = net.node("MaxPool", first, kernel_shape=[3, 3], strides=[1, 1], auto_pad="SAME_LOWER")
    second = net.node("Clip", net.convolution(pool, (4, 5), (1, 1), auto_pad="VALID"), np.float32(0), np.float32(6))
    net.node("Reshape", net.node("ReduceMean", second, axes=[2, 3], keepdims=1), [-1, 5])
    return net.model("reshape9"), second


def test_a_graph_of_tensorflow():
    model, second = tensorflow_like(("n", 15, 16, 3))
    image = image_of((2, 15, 16, 3))
    taps = run(showing(model, "relu3", second), image)
    low, high = (averaged(value) for value in taps.values())
    way = {"kernel": (3, 4), "stride": (2, 2), "before": (1, 1)}
    expected = down(down(high, (8, 8), (3, 3), before=(1, 1)) * low, (15, 16), **way)
    attached = attach(model)
    assert attached.stages == ("relu3", second)
    assert attached.shape == ("n", 1, 15, 16)
    np.testing.assert_allclose(run(attached.model, image)["mask"], scaled(expected), atol=1e-5, rtol=0)


def test_padding_that_depends_on_an_open_size():
    with pytest.raises(ModelError, match="pads by an image size which the graph leaves open: Conv 'node2'"):
        attach(tensorflow_like(("n", "h", "w", 3))[0])
    assert attach(tensorflow_like(("n", "h", "w", 3), stride=1)[0]).shape == ("n", 1, "h", "w")


def test_a_quantised_graph_keeps_its_integers(tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    net = Net((1, 3, 20, 22))
    first = net.node("Relu", net.convolution("image", (3, 8), pads=[1] * 4))
    second = net.node("Relu", net.node("Add", net.convolution(first, (8, 8), pads=[1] * 4), first))
    net.node("GlobalAveragePool", second)
    float_model = net.model("globalaveragepool5")
    onnx.save(float_model, tmp_path / "float.onnx")
    images = iter([{"image": image_of((1, 3, 20, 22), seed)} for seed in range(4)])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return next(images, None)

    quantization.quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", Reader())
    model, image = onnx.load(tmp_path / "int8.onnx"), image_of((1, 3, 20, 22))
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    attached = attach(model)
    before, after = run(model, image), run(attached.model, image)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    exact = run(attach(float_model).model, image)["mask"]
    assert np.corrcoef(after["mask"].ravel(), exact.ravel())[0, 1] > 0.99
    assert len(attached.stages) == 2
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    added = attached.model.graph.node[len(model.graph.node) :]
    read = {name for node in added for name in node.input if name in producers}
    assert [producers[name] for name in sorted(read)] == ["DequantizeLinear"] * 2


def test_a_relu_that_lies_in_the_zero_point_of_its_quantisation():
    net = Net()
    first = net.convolution("image", (3, 4), pads=[1] * 4)
    for lowest in (0, 0, 4):
        scale, zero = np.float32(0.05), np.uint8(lowest)
        integers = net.node("QuantizeLinear", first, scale, zero)
        last = net.node("DequantizeLinear", integers, scale, zero)
        first = net.convolution(last, (4, 4), pads=[1] * 4)
    model = net.model(first)
    assert attach(model).stages == ("quantizelinear1", "quantizelinear4")


def test_half_precision_is_averaged_in_float32():
    net = Net()
    for value in (np.ones((4, 3, 3, 3)), np.ones(4)):
        net.constant((value / 8).astype(np.float16))
    half = net.node("Cast", "image", to=TensorProto.FLOAT16)
    net.nodes.append(helper.make_node("Conv", [half, "c0", "c1"], ["half"], pads=[1] * 4))
    model = net.model(net.node("Relu", "half"))
    mask = run(attach(model).model, image_of())["mask"]
    assert mask.dtype == np.float32
    assert len(np.unique(mask)) > 100


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_no_mask_is_ever_other_than_numbers(value):
    net = Net()
    model = net.model(net.node("Relu", net.convolution("image", (3, 4), pads=[1] * 4)))
    image = image_of()
    image[1, 0, 4, 4] = value
    image[2] = 0
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.full(4, -1e-3, np.float32), "c1"))
    mask = run(attach(model).model, image)["mask"]
    assert np.isfinite(mask).all()
    assert mask.max((1, 2, 3)).tolist() == [1, 0, 0]


def test_deep_networks_do_not_overflow():
    net = Net(("n", 3, 16, 16))
    top = "image"
    for place in range(24):
        top = net.node("Relu", net.convolution(top, (3 if not place else 6, 6), (7, 7), pads=[3] * 4))
    mask = run(attach(net.model(top)).model, np.abs(image_of((1, 3, 16, 16))))["mask"]
    assert (mask.min(), mask.max()) == (0, 1)


def test_names_are_new():
    net = Net()
    top = net.node("Relu", net.convolution("image", (3, 4)))
    net.nodes.append(helper.make_node("Identity", [top], ["vbp/ConvTranspose_3"], name="vbp/Unsqueeze_1"))
    model = attach(net.model("vbp/ConvTranspose_3")).model
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names))
    assert run(model, image_of())["mask"].shape == (3, 1, 20, 22)


def test_a_taken_name_is_refused():
    net = Net()
    model = net.model(net.node("Relu", net.convolution("image", (3, 4))))
    once = attach(model).model
    with pytest.raises(UsageError, match=r"has a tensor 'mask' already \(was it attached before\?\)"):
        attach(once)
    model.graph.node[1].output[0] = model.graph.output[0].name = "mask_uint8"
    assert attach(model).shape
    with pytest.raises(UsageError, match="has a tensor 'mask_uint8' already"):
        attach(model, uint8=True)
