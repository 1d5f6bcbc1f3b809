"""ONNX files: their network computes what onnxruntime does, and what cannot be followed is one sentence."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from vbp.errors import ModelError, WeightsError
from vbp.networks.models import load_model
from vbp.saliency import VisualBackProp

RANDOM = np.random.default_rng(5)


def tensor(name, *shape, low=-1.0):
    return numpy_helper.from_array(RANDOM.uniform(low, 1, shape).astype(np.float32), name)


def sizes(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def model_of(nodes, held, batch=1, opset=17, output="y"):
    """A model with the input `x` of `batch` images of 16 x 16 pixels."""
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 16, 16])
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "net", [image], [result], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


NODES = [
    ("Conv", "x w1 b1", "a1", {"strides": [2, 2], "pads": [0, 0, 1, 1], "kernel_shape": [3, 3]}),  # as TensorFlow's
    ("BatchNormalization", "a1 s m mean var", "a2", {"epsilon": 1e-3}),
    ("Clip", "a2 zero six", "a3", {}),
    ("Conv", "a3 w2", "a4", {"group": 2, "auto_pad": "SAME_UPPER"}),
    ("HardSwish", "a4", "a5", {}),
    ("Mul", "a5 scale", "a6", {}),
    ("Add", "a6 a3", "a7", {}),
    ("Relu", "a7", "a8", {}),
    ("MaxPool", "a8", "a9", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("AveragePool", "a9", "b9", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("Concat", "a9 b9", "c1", {"axis": 1}),
    ("Conv", "c1 w3", "c2", {}),
    ("LeakyRelu", "c2", "c3", {"alpha": 0.1}),
    ("GlobalAveragePool", "c3", "d1", {}),
    ("Shape", "d1", "d2", {}),
    ("Gather", "d2 first", "d3", {"axis": 0}),
    ("Unsqueeze", "d3 axis", "d4", {}),
    ("Concat", "d4 rest", "d5", {"axis": 0}),
    ("Reshape", "d1 d5", "d6", {}),
    ("Gemm", "d6 w4 b4", "y", {"transB": 1}),
]
HELD = [
    tensor("w1", 8, 3, 3, 3), tensor("b1", 8), tensor("s", 8, low=0.5), tensor("m", 8), tensor("mean", 8),
    tensor("var", 8, low=0.5), numpy_helper.from_array(np.float32(0), "zero"), tensor("w2", 8, 4, 3, 3),
    numpy_helper.from_array(np.float32(6), "six"), tensor("scale", 8, 1, 1, low=0.5), tensor("w3", 5, 16, 1, 1),
    numpy_helper.from_array(np.int64(0), "first"), sizes("axis", 0), sizes("rest", -1), tensor("w4", 4, 5),
    tensor("b4", 4),
]  # fmt: skip


def nodes(described):
    return [
        helper.make_node(kind, inputs.split(), [output], name=output, **more)
        for kind, inputs, output, more in described
    ]


def save(model, path, **settings):
    onnx.save(model, path, **settings)
    return str(path)


@pytest.mark.parametrize("batch", [1, "n"])
def test_it_computes_what_onnxruntime_does_for_any_number_of_images(batch, tmp_path):
    model = model_of(nodes(NODES), HELD, batch)
    loaded = load_model(save(model, tmp_path / "net.onnx"), size=16)
    images_BCHW = torch.randn(3, 3, 16, 16)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    one_by_one = [session.run(None, {"x": image_CHW[None].numpy()})[0] for image_CHW in images_BCHW]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.network(images_BCHW), torch.from_numpy(np.concatenate(one_by_one)))
    assert (loaded.num_classes, loaded.preprocessing, loaded.weights) == (4, None, "own")
    vbp = VisualBackProp(loaded.network)
    assert len(vbp.stages) == 3
    together, apart = vbp(images_BCHW), torch.cat([vbp(image_CHW[None]) for image_CHW in images_BCHW])
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=0)


def test_weights_beside_the_file(tmp_path):
    inside = load_model(save(model_of(nodes(NODES), HELD), tmp_path / "in.onnx"), size=16)
    how = {"save_as_external_data": True, "location": "net.data", "size_threshold": 0}
    file = save(model_of(nodes(NODES), HELD), tmp_path / "out.onnx", **how)
    outside = load_model(file, size=16)
    image_1CHW = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(inside.network(image_1CHW), outside.network(image_1CHW))
    data = (tmp_path / "net.data").read_bytes()
    (tmp_path / "net.data").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert load_model(file, size=16).sha256 != outside.sha256
    (tmp_path / "net.data").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"net\.data, which holds the weights of the model, is cut short"):
        load_model(file)
    (tmp_path / "net.data").unlink()
    with pytest.raises(WeightsError, match=r"net\.data, which .*out\.onnx names, cannot be read"):
        load_model(file)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ([("Einsum", "x", "y", {"equation": "bchw->bc"})], "has the operator Einsum, which is not followed"),
        ([("Conv", "x x", "y", {})], "the operator Conv with computed weights"),
        ([("Conv", "x w2", "y", {"auto_pad": "SAME_LOWER", "strides": [2, 2]})], "auto_pad SAME_LOWER with a stride"),
        ([("MatMul", "x x", "y", {})], "MatMul of two maps, as attention has it"),
        ([("Identity", "b4", "y", {})], "has an output that does not depend on the image"),
    ],
)
def test_what_is_not_followed(described, message, tmp_path):
    with pytest.raises(ModelError, match=message) as caught:
        load_model(save(model_of(nodes(described), HELD), tmp_path / "net.onnx"))
    assert "\n" not in str(caught.value)


def test_operators_of_others_and_further_inputs(tmp_path):
    custom = helper.make_node("Relu", ["x"], ["y"], domain="com.mine")
    with pytest.raises(ModelError, match="has the operator com.mine::Relu"):
        load_model(save(model_of([custom], []), tmp_path / "net.onnx"))
    two = model_of(nodes([("Add", "x z", "y", {})]), [])
    two.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    with pytest.raises(ModelError, match=r"takes 2 inputs \(x, z\), not images alone"):
        load_model(save(two, tmp_path / "two.onnx"))


def test_what_is_no_onnx(tmp_path):
    whole = model_of(nodes(NODES), HELD).SerializeToString()
    for content in (whole[: len(whole) // 2], b"", b"nothing at all"):
        (tmp_path / "net.onnx").write_bytes(content)
        with pytest.raises(ModelError, match=r"net\.onnx' is (no ONNX file|an ONNX file without a graph)"):
            load_model(str(tmp_path / "net.onnx"))
    with pytest.raises(ModelError, match=r"none\.onnx' cannot be read"):
        load_model(str(tmp_path / "none.onnx"))


def test_it_holds_its_own_weights(tmp_path):
    with pytest.raises(WeightsError, match="holds its own weights"):
        load_model(str(tmp_path / "net.onnx"), "mine.pth")
