"""ONNX files: their network computes what onnxruntime does, and what cannot be followed is one sentence."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from vbp.errors import ModelError, WeightsError
from vbp.networks.models import load_model
from vbp.networks.sources.onnx_graph.graph import rebuilt
from vbp.saliency import VisualBackProp

SEED = 5


def tensor(name, *shape, low=-1.0):
    """Its values depend on its name and shape alone, and not on the tests before."""
    draws = np.random.default_rng([SEED, *name.encode(), *shape])
    return numpy_helper.from_array(draws.uniform(low, 1, shape).astype(np.float32), name)


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
        helper.make_node(kind, inputs.split(" ") if inputs else [], outputs.split(), name=outputs.split()[0], **more)
        for kind, inputs, outputs, more in described
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


def number(name, value, kind=np.float32):
    return numpy_helper.from_array(np.array(value, kind), name)


W = tensor("w", 4, 3, 3, 3)
CONV = ("Conv", "x w", "c", {"pads": [1, 1, 1, 1]})  # (1, 4, 16, 16)
GAP = ("GlobalAveragePool", "c", "g", {})
FLAT = [CONV, GAP, ("Flatten", "g", "f", {})]
SIZES = [CONV, ("Shape", "c", "s", {}), ("Gather", "s first", "n", {}), ("Unsqueeze", "n axis", "u", {})]
FIRST = [number("first", 0, np.int64), sizes("axis", 0)]


def on_map(kind, inputs="c", held=(), opset=17, **settings):
    """An operator behind a convolution, its tensors and the opset."""
    return [CONV, (kind, inputs, "y", settings)], held, opset


def on_image(kind, inputs="x w", held=(), opset=17, **settings):
    return [(kind, inputs, "y", settings)], held, opset


ARITHMETIC = ("Add", "Sub", "Mul", "Div")
FOLLOWED = {
    **{kind: on_map(kind) for kind in ("Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "Exp", "Abs", "Neg")},
    **{kind: on_map(kind) for kind in ("Identity", "GlobalAveragePool", "GlobalMaxPool", "LeakyRelu", "Elu")},
    **{kind: on_map(kind) for kind in ("Erf", "Selu", "Softsign", "Celu")},
    **{kind: ([CONV, ("Exp", "c", "e", {}), (kind, "e", "y", {})], (), 17) for kind in ("Log", "Reciprocal")},
    "Celu alpha": on_map("Celu", alpha=0.3),
    "Mish": on_map("Mish", opset=18),
    "Sqrt": ([CONV, ("Abs", "c", "a", {}), ("Sqrt", "a", "y", {})], (), 17),
    **{f"{kind} a map": on_map(kind, "c x1", [tensor("x1", 4, 1, 1, low=0.5)]) for kind in ARITHMETIC},
    **{f"{kind} a number": on_map(kind, "c k", [number("k", 0.3)]) for kind in ARITHMETIC},
    **{f"a number {kind}": on_map(kind, "k c", [number("k", 0.3)]) for kind in ARITHMETIC[:3]},
    "a number Div": ([CONV, ("Exp", "c", "e", {}), ("Div", "k e", "y", {})], [number("k", 0.3)], 17),
    "Pow": on_map("Pow", "c k", [number("k", 2, np.int64)]),
    "constants": ([("Mul", "w k", "v", {}), ("Conv", "x v", "y", {})], [number("k", 2)], 17),
    "LeakyRelu alpha": on_map("LeakyRelu", alpha=0.3),
    "Elu alpha": on_map("Elu", alpha=0.3),
    "Gelu": on_map("Gelu", opset=20),
    "Gelu tanh": on_map("Gelu", opset=20, approximate="tanh"),
    "HardSigmoid": on_map("HardSigmoid", alpha=1 / 6),
    "PRelu": on_map("PRelu", "c k", [tensor("k", 4, 1, 1)]),
    "PRelu one": on_map("PRelu", "c k", [tensor("k", 1)]),
    "Clip": on_map("Clip", "c lo hi", [number("lo", -0.2), number("hi", 0.3)]),
    "Clip below": on_map("Clip", "c lo", [number("lo", 0.1)]),
    "Clip above": on_map("Clip", "c  hi", [number("hi", 0.1)]),
    "Clip nothing": on_map("Clip"),
    "Clip 6": on_map("Clip", opset=6, min=0.0, max=6.0),
    "Cast": ([CONV, ("Cast", "c", "d", {"to": TensorProto.DOUBLE}), ("Cast", "d", "y", {"to": 1})], (), 17),
    "Cast held": ([("Cast", "k", "i", {"to": 1}), ("Add", "x i", "y", {})], [number("k", 2, np.int64)], 17),
    "Dropout": on_map("Dropout"),
    "Dropout 10": on_map("Dropout", opset=10, ratio=0.3),
    "Conv": on_image("Conv", dilations=[2, 1], strides=[1, 2], pads=[1, 0, 1, 0]),
    "Conv unequal": on_image("Conv", pads=[0, 1, 2, 1]),
    "Conv lower": on_image("Conv", auto_pad="SAME_LOWER"),
    "Conv even": on_image("Conv", "x w2x2", [tensor("w2x2", 4, 3, 2, 2)], auto_pad="SAME_LOWER"),
    "Conv valid": on_image("Conv", auto_pad="VALID", kernel_shape=[3, 3]),
    "Conv groups": on_image("Conv", "x wg bg", [tensor("wg", 6, 1, 3, 3), tensor("bg", 6)], group=3),
    "BatchNormalization": on_map(
        "BatchNormalization", "c s b m v", [tensor(n, 4, low=0.1) for n in "sbmv"], epsilon=0.1, momentum=0.5
    ),
    "BatchNormalization of vectors": (
        [*FLAT, ("BatchNormalization", "f s b m v", "y", {})], [tensor(n, 4, low=0.1) for n in "sbmv"], 17
    ),
    "LayerNormalization": on_map(
        "LayerNormalization", "c s b", [tensor("s", 16, low=0.5), tensor("b", 16)], epsilon=0.1, stash_type=1
    ),
    "LayerNormalization of maps": on_map("LayerNormalization", "c s", [tensor("s", 4, 16, 16, low=0.5)], axis=1),
    "MaxPool": on_map("MaxPool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 0], dilations=[1, 2]),
    "MaxPool ceil": on_map("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "MaxPool unequal": on_map("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1], ceil_mode=1),
    "MaxPool much": on_map("MaxPool", kernel_shape=[3, 3], pads=[2, 2, 2, 2]),
    "AveragePool": on_map("AveragePool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 1, 1, 1]),
    "AveragePool counts": on_map("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "AveragePool ceil": on_map("AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "ReduceMean": on_map("ReduceMean", axes=[2, 3], keepdims=0),
    "ReduceMean behind": on_map("ReduceMean", "c ax", [sizes("ax", -1, -2)], opset=18),
    "ReduceMean all": on_map("ReduceMean"),
    "ReduceMean none": on_map("ReduceMean", opset=18, noop_with_empty_axes=1),
    "ReduceSum": on_map("ReduceSum", "c ax", [sizes("ax", 1)]),
    "ReduceMax": on_map("ReduceMax", axes=[-1], keepdims=0),
    "Softmax": on_map("Softmax", axis=1),
    "Softmax usual": on_map("Softmax"),
    "Softmax 11": on_map("Softmax", opset=11),
    "Softmax 11 last": on_map("Softmax", opset=11, axis=-1),
    "Softmax 11 of vectors": ([*FLAT, ("Softmax", "f", "y", {})], (), 11),
    "Softmax 11 of single pixels": ([CONV, GAP, ("Softmax", "g", "y", {"axis": 1})], (), 11),
    "Concat": on_map("Concat", "c x", axis=-3),
    "Split": ([CONV, ("Split", "c", "p q", {"axis": 1}), ("Sub", "q p", "y", {})], (), 13),
    "Split uneven": (
        [CONV, ("Split", "c parts", "p q", {"axis": -1}), ("Exp", "q", "y", {})], [sizes("parts", 6, 10)], 13,
    ),
    "Split 18": (
        [CONV, ("Split", "c", "p q r", {"axis": 2, "num_outputs": 3}), ("Exp", "r", "y", {})], (), 18
    ),
    "Split 11": ([CONV, ("Split", "c", "p q", {"axis": 1, "split": [1, 3]}), ("Exp", "p", "y", {})], (), 11),
    "Flatten": on_map("Flatten"),
    "Flatten behind": on_map("Flatten", axis=-3),
    "Reshape": on_map("Reshape", "c to", [sizes("to", 0, 2, -1, 16)]),
    "Reshape rows": on_map("Reshape", "c to", [sizes("to", 1, -1)]),
    "Reshape to a number": on_map("Reshape", "c to", [sizes("to", -1, 1024)]),
    "Reshape one image": on_map("Reshape", "c to", [sizes("to", 1, 4, 8, 32)]),
    "Reshape as it was": (
        [*SIZES, ("Concat", "u rest", "to", {"axis": 0}), ("Reshape", "c to", "y", {})],
        [*FIRST, sizes("rest", 2, -1)], 17,
    ),
    "Reshape 4": ([("Reshape", "w to", "v", {}), ("Conv", "x v", "y", {})], [sizes("to", 4, 3, 1, -1)], 17),
    "sizes": (
        [
            CONV, ("Shape", "c", "s", {"start": -2}), ("Mul", "s twice", "m", {}), ("Div", "m twice", "d", {}),
            ("Concat", "head d", "to", {"axis": 0}), ("Reshape", "c to", "y", {}),
        ], [sizes("twice", 2), sizes("head", 0, 4)], 15,
    ),
    "Shape of vectors": (
        [*FLAT, ("Shape", "f", "s", {"end": -1}), ("Concat", "s rest", "to", {"axis": 0}),
         ("Reshape", "f to", "y", {})],
        [sizes("rest", 2, 2)], 15,
    ),
    "Slice of sizes": (
        [CONV, ("Shape", "c", "s", {}), ("Slice", "s at till  by", "two", {}),
         ("Concat", "head two", "to", {"axis": 0}), ("Reshape", "c to", "y", {})],
        [sizes("at", 1), sizes("till", 4), sizes("by", 2), sizes("head", 0, 16)], 17,
    ),
    **{f"DepthToSpace {mode}": ([("Conv", "x w12", "c", {}), ("DepthToSpace", "c", "y", {"blocksize": 2, **more})],
                                [tensor("w12", 12, 3, 3, 3)], 17)
       for mode, more in (("", {}), ("DCR", {"mode": "DCR"}), ("CRD", {"mode": "CRD"}))},
    "SpaceToDepth": on_map("SpaceToDepth", blocksize=4),
    "Transpose": on_map("Transpose", perm=[0, 2, 3, 1]),
    "Transpose held": ([("Transpose", "k", "t", {}), ("Gemm", "f t", "y", {})], [tensor("k", 2, 4)], 17),
    "Squeeze": ([CONV, GAP, ("Squeeze", "g ax", "y", {})], [sizes("ax", -1, 2)], 17),
    "Squeeze 11": ([CONV, GAP, ("Squeeze", "g", "y", {"axes": [2, 3]})], (), 11),
    "Unsqueeze": ([*FLAT, ("Unsqueeze", "f ax", "y", {})], [sizes("ax", -1, -2)], 17),
    "Unsqueeze 11": ([*FLAT, ("Unsqueeze", "f", "y", {"axes": [1]})], (), 11),
    "Unsqueeze held": (
        [CONV, ("Unsqueeze", "k ax", "v", {}), ("Mul", "c v", "y", {})],
        [tensor("k", 4), sizes("ax", 1, 2)], 17,
    ),
    "Gather held": (
        [CONV, ("Gather", "k i", "v", {}), ("Mul", "c v", "y", {})],
        [tensor("k", 3, 1, 16), sizes("i", 2)], 17,
    ),
    "Gemm": (
        [*FLAT, ("Gemm", "f k b", "y", {"transB": 1, "alpha": 0.5, "beta": 2.0})],
        [tensor("k", 5, 4), tensor("b", 1, 5)], 17,
    ),
    "Gemm one bias": ([*FLAT, ("Gemm", "f k b", "y", {})], [tensor("k", 4, 5), tensor("b", 1)], 17),
    "Gemm no bias": ([*FLAT, ("Gemm", "f k", "y", {})], [tensor("k", 4, 5)], 17),
    "MatMul": (
        [CONV, ("Transpose", "c", "t", {"perm": [0, 2, 3, 1]}), ("MatMul", "t k", "y", {})],
        [tensor("k", 4, 2)], 17,
    ),
    "Constant": ([("Constant", "", "k", {"value_floats": [1.0, 2.0] * 8}), ("Mul", "x k", "y", {})], (), 17),
    "Constant value": ([("Constant", "", "k", {"value": number("", 2)}), ("Mul", "x k", "y", {})], (), 17),
    "Constant one": ([("Constant", "", "k", {"value_float": 2.0}), ("Mul", "x k", "y", {})], (), 17),
    "QuantizeLinear": (
        [CONV, ("QuantizeLinear", "c fine zp", "q", {"axis": 1}), ("DequantizeLinear", "q fine zp", "y", {"axis": 1})],
        [number("fine", 1e-3), number("zp", 7, np.int16)], 21,
    ),
    "QuantizeLinear held": (
        [("QuantizeLinear", "w by off", "q", {"axis": 0}), ("DequantizeLinear", "q by off", "v", {"axis": 0}),
         ("Conv", "x v", "y", {})],
        [tensor("by", 4, low=0.9), number("off", [0, 1, -3, 5], np.int8)], 17,
    ),
    "Slice": on_map("Slice", "c at till ax by", [sizes(n, *v) for n, v in
        {"at": (1, -9), "till": (3, 2**63 - 1), "ax": (1, -1), "by": (1, 2)}.items()]),
    "Slice half": (
        [CONV, ("Shape", "c", "s", {}), ("Gather", "s one", "n", {}), ("Add", "n one", "m", {}),
         ("Div", "m two", "h", {}), ("Slice", "c at h one", "y", {})],
        [sizes("at", 0), sizes("one", 1), sizes("two", 2)], 17,
    ),
    "Slice 9": on_map("Slice", opset=9, starts=[1], ends=[1000], axes=[2]),
    "Pad": on_image("Pad", "x p k", [sizes("p", 0, 0, 1, 2, 0, 0, -1, 3), number("k", 0.5)]),
    "Pad 10": on_image("Pad", "x", opset=10, pads=[0, 0, 1, 2, 0, 0, 0, 3], value=0.5),
    **{f"Pad {mode}": on_image("Pad", "x p", [sizes("p", 0, 0, 1, 2, 0, 0, 1, 3)], opset=19, mode=mode)
       for mode in ("edge", "reflect", "wrap")},
}  # fmt: skip


def computed(model, images_BCHW):
    """By onnxruntime, image by image."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    one_by_one = [session.run(None, {"x": image_CHW[None].numpy()})[0] for image_CHW in images_BCHW]
    return torch.from_numpy(np.concatenate(one_by_one))


@pytest.mark.parametrize("name", FOLLOWED)
def test_each_operator_computes_what_onnxruntime_does(name):
    described, held, opset = FOLLOWED[name]
    if name == "Transpose held":
        described = [*FLAT, *described]
    model = model_of(nodes(described), [W, *held], opset=opset)
    images_BCHW = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        ours = rebuilt(model, "net.onnx")(images_BCHW)
    expected = computed(model, images_BCHW)
    assert ours.dtype is torch.float32
    rounding = 1e-3 if name == "QuantizeLinear" else 1e-5  # of maps, which is left out
    torch.testing.assert_close(ours, expected.float(), atol=rounding, rtol=1e-5)


def test_a_gelu_in_several_operators_is_one_stage():
    """As exporters write it before opset 20; the mask is that of the one operator."""
    by_hand = [
        ("Div", "c root", "d", {}), ("Erf", "d", "e", {}), ("Add", "e one", "a", {}), ("Mul", "c a", "m", {}),
        ("Mul", "m half", "h", {}),
    ]  # fmt: skip
    held = [W, tensor("w2", 2, 4, 3, 3), *(number(*each) for each in (("root", 2**0.5), ("one", 1), ("half", 0.5)))]
    last = ("Conv", "h w2", "b", {"strides": [2, 2]}), ("Relu", "b", "y", {})
    found, expected = (
        VisualBackProp(rebuilt(model_of(nodes([CONV, *gelu, *last]), held, opset=20), "net"))
        for gelu in (by_hand, [("Gelu", "c", "h", {})])
    )
    images_BCHW = torch.randn(2, 3, 16, 16)
    assert len(found.stages) == len(expected.stages) == 2
    torch.testing.assert_close(found(images_BCHW), expected(images_BCHW), atol=1e-6, rtol=0)


def test_a_squeezed_result_keeps_its_images():
    """The file gives (4,) for its one image."""
    model = model_of(nodes([CONV, GAP, ("Squeeze", "g", "y", {})]), [W])
    images_BCHW = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(rebuilt(model, "net")(images_BCHW), computed(model, images_BCHW).reshape(3, 4))


REFUSED = {
    "Einsum": (on_image("Einsum", "x", equation="bchw->bc"), "has the operator Einsum, which is not followed"),
    "ConvTranspose": (on_map("ConvTranspose", "c wt", [tensor("wt", 4, 2, 2, 2)]), "the operator ConvTranspose, which"),
    "computed weights": (on_image("Conv", "x x"), "the operator Conv with computed weights"),
    "SAME with a stride": (on_image("Conv", auto_pad="SAME_LOWER", strides=[2, 2]), "auto_pad SAME_LOWER and a stride"),
    "attention": (on_image("MatMul", "x x"), "MatMul of two maps, as attention has it"),
    "no image": (on_image("Identity", "w"), "has an output that does not depend on the image"),
    "Cast": (on_map("Cast", to=TensorProto.INT32), r"Cast \(y\) between whole and other numbers"),
    "Cast of sizes": (
        ([CONV, ("Shape", "c", "s", {}), ("Cast", "s", "y", {"to": 1})], (), 17), r"Cast \(y\) between whole"),
    "Reshape": (on_map("Reshape", "c to", [sizes("to", 4, -1)]), r"Reshape \(y\) that mixes images"),
    "Reshape all": (on_map("Reshape", "c to", [sizes("to", -1)]), r"Reshape \(y\) that mixes images"),
    "Reshape rows": (on_map("Reshape", "c to", [sizes("to", -1, 4)]), r"Reshape \(y\) that mixes images"),
    "Transpose": (on_map("Transpose"), r"Transpose \(y\) over the first axis, which is that of the images"),
    "Softmax": (on_map("Softmax", axis=0), "over the first axis"),
    "Concat": (on_map("Concat", "c c", axis=0), "over the first axis"),
    "Concat of coordinates": (
        on_map("Concat", "c k", [tensor("k", 1, 2, 16, 16)], axis=1), r"Concat \(y\) of a map and a tensor"),
    "Mul of images": (on_map("Mul", "c k", [tensor("k", 2, 4, 1, 1)]), r"Mul \(y\) over the first axis"),
    "Add of images": (([*FLAT, ("Add", "k f", "y", {})], [tensor("k", 3, 4)], 17), r"Add \(y\) over the first axis"),
    "Split": (([CONV, ("Split", "c", "y", {})], (), 13), "over the first axis"),
    "Squeeze": (([CONV, GAP, ("Squeeze", "g", "q", {}), ("Exp", "q", "y", {})], (), 17), "over the first axis"),
    "Unsqueeze": (on_map("Unsqueeze", "c ax", [sizes("ax", 0)]), "over the first axis"),
    "ReduceMean": (on_map("ReduceMean", keepdims=0), "over the first axis"),
    "Flatten": (on_map("Flatten", axis=2), "Flatten of another axis than 1"),
    "Gather": (on_map("Gather", "c i", [sizes("i", 0)], axis=1), "Gather of maps"),
    "Dropout": (
        on_map("Dropout", "c r t", [number("r", 0.5), number("t", True, bool)]), r"Dropout \(y\) as in training"),
    "BatchNormalization": (
        on_map("BatchNormalization", "c s b m v", [tensor(n, 4) for n in "sbmv"], training_mode=1), "as in training"),
    "HardSigmoid": (on_map("HardSigmoid"), "HardSigmoid with other constants"),
    "AveragePool": (on_map("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1]), "AveragePool with unequal padding"),
    "AveragePool dilated": (on_map("AveragePool", opset=19, kernel_shape=[2, 2], dilations=[2, 2]), "with dilation"),
    "MaxPool of lines": (on_map("MaxPool", kernel_shape=[2]), r"MaxPool \(y: \w+: "),
    "Gemm of rows": (
        ([*FLAT, ("Gemm", "f k b", "y", {})], [tensor("k", 4, 5), tensor("b", 2, 5)], 17), "bias for each image"),
    "Gemm transposed": (([*FLAT, ("Gemm", "f k", "y", {"transA": 1})], [tensor("k", 4, 5)], 17), "transposed factors"),
    "Pad": (on_image("Pad", "x p", [sizes("p", 0, 1, 0, 0, 0, 0, 0, 0)]), "Pad of other axes than rows and columns"),
    "Slice backwards": (on_map("Slice", "c a b ax by", [sizes(n, v) for n, v in
        {"a": 3, "b": 0, "ax": 1, "by": -1}.items()]), "backwards"),
    "an attribute": (on_map("Add", "c w1", [tensor("w1", 4)], opset=6, broadcast=1, axis=1), "with the attribute axis"),
    "a name": (on_map("Relu", "nope"), r"Relu \(y\), whose input nope nothing makes"),
    "a second result": (
        ([CONV, ("MaxPool", "c", "p i", {"kernel_shape": [2, 2]}), ("Relu", "i", "y", {})], (), 17), "input i nothing"),
    "a broken node": (on_map("Pad", "c"), r"Pad of other axes"),
    "QLinearConv": (on_map("QLinearConv"), "the operator QLinearConv"),
    "Selu": (on_map("Selu", alpha=1.0), r"Selu \(y\) with the attribute alpha"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_followed_is_named(name):
    (described, held, opset), message = REFUSED[name]
    with pytest.raises(ModelError, match=message) as caught:
        rebuilt(model_of(nodes(described), [W, *held], opset=opset), "net.onnx")
    assert "\n" not in str(caught.value)
    assert "net.onnx" in str(caught.value)


TO_QUANTISE = [
    ("Conv", "x w1 b1", "a1", {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}),
    ("Relu", "a1", "a2", {}),
    ("MaxPool", "a2", "a3", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("Conv", "a3 wq", "a4", {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}),
    ("Add", "a4 a3", "a5", {}),
    ("Relu", "a5", "a6", {}),
    ("Conv", "a6 wp", "a7", {"kernel_shape": [1, 1]}),
    ("Clip", "a7 zero six", "a8", {}),
    ("GlobalAveragePool", "a8", "g", {}),
    ("Flatten", "g", "f", {}),
    ("Gemm", "f w4 b4", "y", {"transB": 1}),
]


class Batches(CalibrationDataReader):
    """Random images for the calibration."""

    def __init__(self):
        images = np.random.default_rng(3).standard_normal((8, 1, 3, 16, 16)).astype(np.float32)
        self._left = iter([{"x": image_1CHW} for image_1CHW in images])

    def get_next(self):
        return next(self._left, None)


@pytest.mark.filterwarnings("ignore")  # of onnxruntime's own
@pytest.mark.parametrize(
    "settings",
    [
        {"per_channel": True, "activation_type": QuantType.QUInt8},  # drops each ReLU for a zero point of 0
        {"activation_type": QuantType.QInt8},
        {"activation_type": QuantType.QInt8, "extra_options": {"ActivationSymmetric": True}},  # keeps them
    ],
)
def test_a_quantised_network_is_explained_by_what_its_integers_stand_for(settings, tmp_path):
    plain = save(
        model_of(nodes(TO_QUANTISE), [*HELD, tensor("wq", 8, 8, 3, 3), tensor("wp", 5, 8, 1, 1)]), tmp_path / "f"
    )
    file = tmp_path / "net.onnx"
    quantize_static(plain, file, Batches(), quant_format=QuantFormat.QDQ, weight_type=QuantType.QInt8, **settings)
    quantised, float32 = (rebuilt(onnx.load(path), "net") for path in (file, plain))
    images_BCHW = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = computed(onnx.load(file), images_BCHW)
    torch.testing.assert_close(quantised(images_BCHW), expected, atol=0.07 * float(expected.abs().max()), rtol=0)
    one, other = VisualBackProp(quantised), VisualBackProp(float32)
    assert len(one.stages) == len(other.stages) == 3
    torch.testing.assert_close(one(images_BCHW), other(images_BCHW), atol=0.03, rtol=0)
    assert "is quantised" in load_model(str(file), size=16).notes[0]


def test_half_precision_and_double_compute_as_the_rest():
    for kind in (np.float16, np.float64):
        held = [numpy_helper.from_array(numpy_helper.to_array(W).astype(kind), "w"), number("k", [[[2.0]]], kind)]
        model = model_of(nodes([CONV, ("Mul", "c k", "y", {})]), held)
        assert rebuilt(model, "net")(torch.randn(1, 3, 16, 16)).dtype is torch.float32
    bfloat = helper.make_tensor("k", TensorProto.BFLOAT16, [1], [2.0])
    network = rebuilt(model_of(nodes([("Mul", "x k", "y", {})]), [bfloat]), "net")
    assert torch.equal(network(torch.ones(1, 3, 16, 16)), torch.full((1, 3, 16, 16), 2.0))


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
