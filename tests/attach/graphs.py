"""Small ONNX graphs, and what their masks must be, by plain loops."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


class Net:
    """A graph that grows node by node; each call returns the name of its result."""

    def __init__(self, shape=("n", 3, 20, 22), seed=0, opset=17):
        self.random = np.random.default_rng(seed)
        self.shape, self.opset = shape, opset
        self.nodes, self.initializers = [], []

    def node(self, operator, *inputs, outputs=1, **settings):
        names = [f"{operator.lower()}{len(self.nodes)}" + "_" * place for place in range(outputs)]
        inputs = [
            self.constant(value) if isinstance(value, (np.ndarray, np.generic, list)) else value for value in inputs
        ]
        self.nodes.append(helper.make_node(operator, inputs, names, name=f"node{len(self.nodes)}", **settings))
        return names[0] if outputs == 1 else names

    def constant(self, value):
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def convolution(self, source, channels, kernel=(3, 3), groups=1, **settings):
        weight = self.random.normal(0, 0.5, (*channels[::-1], *kernel)).astype(np.float32)
        bias = self.random.normal(0, 0.2, channels[1]).astype(np.float32)
        return self.node("Conv", source, weight, bias, group=groups, **settings)

    def model(self, *outputs, inputs=()):
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, self.shape)
        results = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", [image, *inputs], results, self.initializers)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.example", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(model, image, names=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = names or [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: image}), strict=True))


def showing(model, *names):
    """A copy whose outputs are these tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return copy


def image_of(shape=(3, 3, 20, 22), seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def averaged(values):
    """(N, C, H, W) -> (N, H, W), negative values counted as 0."""
    return np.maximum(values.astype(np.float64), 0).mean(1)


def down(mask, size, kernel=(1, 1), stride=(1, 1), before=(0, 0), dilation=(1, 1)):
    """Every value of (N, h, w) to all pixels of its window."""
    found = np.zeros((len(mask), *size))
    for row in range(mask.shape[1]):
        for column in range(mask.shape[2]):
            for i in range(kernel[0]):
                for j in range(kernel[1]):
                    y = row * stride[0] - before[0] + i * dilation[0]
                    x = column * stride[1] - before[1] + j * dilation[1]
                    if 0 <= y < size[0] and 0 <= x < size[1]:
                        found[:, y, x] += mask[:, row, column]
    return found


def scaled(mask):
    """To [0, 1], image by image."""
    least, largest = (extreme(mask, axis=(1, 2), keepdims=True) for extreme in (np.min, np.max))
    return ((mask - least) / np.where(largest > least, largest - least, 1))[:, None]
