"""The weights of a Resize beside those that onnxruntime itself has."""

from itertools import product

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from vbp.attach.geometry import resizing_weights

LENGTHS = (1, 2, 3, 5, 7, 8, 13, 16, 19, 24, 31, 38, 56, 64, 75)
SCALES = (0.1, 0.25, 0.3, 1 / 3, 0.5, 0.6, 0.7, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.9, 2.0, 2.3, 3.0, 4.0)
SIZES = (1, 2, 3, 7, 10, 14, 23, 28, 38, 41, 56, 61, 112)
COORDINATES = ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners")
ROUNDING = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
LAYERS = [*product(["nearest"], COORDINATES, ROUNDING), *product(["linear"], COORDINATES, ["floor"])]


def resizing(settings, given):
    """(1, n, 1, n) -> (1, n, 2, m) by onnxruntime, by scales or by sizes, and of it (n, m)."""
    inputs = ["x", "", given] if given == "scales" else ["x", "", "", given]
    node = helper.make_node("Resize", inputs, ["y"], **settings)
    types = {"x": TensorProto.FLOAT, "scales": TensorProto.FLOAT, "sizes": TensorProto.INT64}
    values = [helper.make_tensor_value_info(name, types[name], None) for name in ("x", given)]
    graph = helper.make_graph([node], "resize", values, [helper.make_empty_tensor_value_info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda **feeds: session.run(None, feeds)[0][0, :, 0]


@pytest.mark.parametrize(("mode", "coordinates", "rounding"), LAYERS)
def test_weights_of_a_resize_are_those_of_onnxruntime(mode, coordinates, rounding):
    settings = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    as_bytes = {name: text.encode() for name, text in settings.items()}
    by_scales, by_sizes = resizing(settings, "scales"), resizing(settings, "sizes")
    for length in LENGTHS:
        pixels = np.eye(length, dtype=np.float32)[None, :, None]
        for scale in np.float32(SCALES):
            if length * scale >= 1:
                expected = by_scales(x=pixels, scales=np.float32([1, 1, 2, scale]))
                found = resizing_weights(length, expected.shape[1], as_bytes, float(scale))
                np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0, err_msg=f"{length} * {scale}")
        for size in SIZES:
            expected = by_sizes(x=pixels, sizes=np.int64([1, length, 2, size]))
            found = resizing_weights(length, size, as_bytes, size / length)
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0, err_msg=f"{length} -> {size}")
