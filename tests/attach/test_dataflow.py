"""How pixels are followed through operators, by the stages that are found and by masks beside plain loops."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.attach.graphs import Net, averaged, down, image_of, run, scaled, showing
from vbp.attach.attach import attach
from vbp.errors import ModelError

TOP = {"pads": [1] * 4}


def between(build, size=(20, 22), channels=4):
    """Two stages with `build(net, first)` between them, and their averaged maps."""
    net = Net(("n", 3, *size))
    first = net.node("Relu", net.convolution("image", (3, channels), **TOP))
    second = net.node("Relu", net.convolution(build(net, first), (channels, 5), (1, 1)))
    model, image = net.model(second), image_of((2, 3, *size))
    low, high = (averaged(value) for value in run(showing(model, first, second), image).values())
    attached = attach(model)
    assert attached.stages == (first, second)
    return run(attached.model, image)["mask"], low, high


def assert_leads(build, lead, size=(20, 22), **settings):
    mask, low, high = between(build, size, **settings)
    expected = down(lead(high, low.shape[1:]) * low, size, (3, 3), before=(1, 1))
    np.testing.assert_allclose(mask, scaled(expected), atol=1e-5, rtol=0)


def unchanged(mask, size):
    return mask


def shuffle(net, x):
    shape = net.node("Shape", x)
    batch, rows = (net.node("Slice", shape, np.int64([one]), np.int64([end])) for one, end in ((0, 1), (2, 4)))
    apart = net.node("Reshape", x, net.node("Concat", batch, np.int64([2, 2]), rows, axis=0))
    return net.node("Reshape", net.node("Transpose", apart, perm=[0, 2, 1, 3, 4]), np.int64([-1, 4, 20, 22]))


def gate(net, x):
    pooled = net.node("ReduceMean", x, axes=[2, 3], keepdims=1)
    return net.node("Mul", x, net.node("HardSigmoid", net.convolution(pooled, (4, 4), (1, 1))))


def layer_norm_by_hand(net, x):
    centred = net.node("Sub", x, net.node("ReduceMean", x, axes=[1]))
    squared = net.node("ReduceMean", net.node("Pow", centred, np.float32(2)), axes=[1])
    return net.node("Div", centred, net.node("Sqrt", net.node("Add", squared, np.float32(1e-5))))


def channels_last(net, x):
    turned = net.node("Transpose", x, perm=[0, 2, 3, 1])
    product = net.node("MatMul", turned, net.random.normal(size=(4, 4)).astype(np.float32))
    return net.node("Transpose", product, perm=[0, 3, 1, 2])


def group_norm(net, x):
    grouped = net.node("Reshape", x, np.int64([0, 2, -1]))
    norm = net.node("InstanceNormalization", grouped, np.ones(2, np.float32), np.zeros(2, np.float32))
    return net.node("Mul", net.node("Reshape", norm, net.node("Shape", x)), np.float32(2))


def regrouped(net, x):
    return net.node("Reshape", net.node("Reshape", x, np.int64([0, 2, -1])), np.int64([0, 4, 22, 20]))


def flat(operator, other):
    """Arithmetic on a flattened map and what is computed from it or another, in the map's own shape again."""

    def build(net, x):
        one = net.node("Reshape", x, np.int64([0, 4, -1]))
        return net.node("Reshape", net.node(operator, one, other(net, x, one)), np.int64([0, 4, 20, 22]))

    return build


def attention(net, _, one):
    scores = net.node("MatMul", net.node("Transpose", one, perm=[0, 2, 1]), one)
    return net.node("MatMul", one, net.node("Softmax", scores, axis=-1))


def shares(net, _, one):
    return net.node("Softmax", one, axis=-1)


def branch(net, x, _):
    return net.node("Reshape", net.node("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4), np.int64([0, 4, -1]))


def halves(net, x):
    one, other = net.node("Split", x, outputs=2, axis=1)
    return net.node("Concat", other, one, axis=1)


def again(net, x):
    row = net.node("Relu", net.node("Flatten", x))
    return net.node("Reshape", row, np.int64([0, 4, 20, 22]))


def beside(net, x):
    """Images and channels in one axis, normed there, and back in another order."""
    one = net.node("Reshape", x, np.int64([0, 2, -1]))
    return net.node("Reshape", net.node("Mul", one, np.float32(2)), np.int64([-1, 2, 20, 22]))


def of_another_shape(net, x):
    """A map that is read for its shape and type alone."""
    other = net.node("Relu", net.convolution(x, (4, 4), **TOP))
    scaled = net.node("Mul", x, net.node("Cast", net.node("Size", other), to=TensorProto.FLOAT))
    return net.node("Reshape", net.node("CastLike", scaled, other), net.node("Shape", other))


def shares_of_channels(net, x):
    return net.node("Mul", net.node("Softmax", x, axis=1), x)


KEEPING = [
    shuffle,
    of_another_shape,
    shares_of_channels,
    gate,
    layer_norm_by_hand,
    channels_last,
    group_norm,
    halves,
    flat("Mul", lambda net, _, one: one),
]


@pytest.mark.parametrize("build", KEEPING)
def test_pixels_stay_in_their_places(build):
    assert_leads(build, unchanged)


@pytest.mark.parametrize("between", ["", "Identity", "Dropout"])
def test_branches_are_averaged(between):
    """Nested sums are one, also where an operator that changes nothing lies between them."""

    def build(net, x):
        left = net.node("Relu", net.convolution(x, (4, 4), (3, 3), **TOP))
        inner = net.node("Add", net.convolution(left, (4, 4), (1, 1)), x)
        return net.node("Add", net.node(between, inner) if between else inner, x)

    mask, low, high = between_join(build)
    expected = (down(high, low.shape[1:], (3, 3), before=(1, 1)) + 2 * high) / 3
    np.testing.assert_allclose(mask, scaled(down(expected * low, (20, 22), (3, 3), before=(1, 1))), atol=1e-5, rtol=0)


def between_join(build):
    """As `between`, where the join itself is the stage."""
    net = Net(("n", 3, 20, 22))
    first = net.node("Relu", net.convolution("image", (3, 4), **TOP))
    second = net.node("Identity", build(net, first))
    joined = net.nodes[-1].input[0]
    model, image = net.model(second), image_of((2, 3, 20, 22))
    low, high = (averaged(value) for value in run(showing(model, first, joined), image).values())
    attached = attach(model)
    assert attached.stages == (first, joined)
    return run(attached.model, image)["mask"], low, high


def test_padding_cropping_and_pooling():
    def build(net, x):
        padded = net.node("Pad", x, np.int64([0, 0, 2, 1, 0, 0, 0, 3]))
        cut = net.node("Slice", padded, np.int64([1, 0]), np.int64([-2, 1000]), np.int64([2, 3]), np.int64([1, 2]))
        return net.node("AveragePool", cut, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1)

    def lead(mask, size):
        # 20 x 22 is padded to 22 x 26, cut to 19 x 13, pooled to 10 x 6
        mask = down(mask, (19, 13), (2, 3), (2, 2))
        mask = down(mask, (22, 26), stride=(1, 2), before=(-1, 0))
        return down(mask, size, before=(2, 1))

    assert_leads(build, lead)


def test_padding_that_is_computed_in_floats_and_then_again_from_the_size_that_it_gave():
    """As torch's older exporter writes TensorFlow's padding: ONNX itself infers no size behind it."""

    def padded(net, x):
        lengths = net.node("Cast", net.node("Slice", net.node("Shape", x), np.int64([2]), np.int64([4])), to=1)
        half = net.node("Ceil", net.node("Div", lengths, np.float32(2)))
        missing = net.node("Sub", net.node("Mul", half, np.float32(2)), lengths)
        pads = net.node("Concat", np.int64([0] * 6), net.node("Cast", missing, to=TensorProto.INT64), axis=0)
        return net.node("MaxPool", net.node("Pad", x, pads), kernel_shape=[2, 2], strides=[2, 2])

    def lead(mask, size):
        # 13 x 22 to 7 x 11, and 4 x 6
        assert mask.shape[1:] == (4, 6)
        return down(down(mask, (8, 12), (2, 2), (2, 2))[:, :7, :11], (14, 22), (2, 2), (2, 2))[:, :13]

    assert_leads(lambda net, x: padded(net, padded(net, x)), lead, (13, 22))


@pytest.mark.parametrize("size", [(20, 22), (9, 8)])
def test_a_transposed_convolution_is_led_down_by_a_convolution(size):
    settings = {"strides": [2, 3], "pads": [1, 0, 0, 2], "output_padding": [1, 2], "dilations": [1, 2]}

    def build(net, x):
        weight = net.random.normal(size=(4, 4, 3, 2)).astype(np.float32)
        return net.node("ConvTranspose", x, weight, **settings)

    def lead(mask, size):
        found = np.zeros((len(mask), *size))
        rows, columns = mask.shape[1:]
        for y in range(size[0]):
            for x in range(size[1]):
                for i in range(3):
                    for j in range(2):
                        row, column = 2 * y + i - 1, 3 * x + 2 * j
                        if 0 <= row < rows and 0 <= column < columns:
                            found[:, y, x] += mask[:, row, column]
        return found

    assert_leads(build, lead, size)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_channels_that_become_squares_of_pixels_add_up(mode):
    def lead(mask, size):
        rows, columns = size
        return mask.reshape(len(mask), rows, 3, columns, 3).sum((2, 4))

    def build(net, x):
        return net.convolution(net.node("DepthToSpace", x, blocksize=3, mode=mode), (1, 9), (1, 1))

    assert_leads(build, lead, (7, 8), channels=9)


def test_squares_of_pixels_that_become_channels_are_windows():
    def build(net, x):
        return net.convolution(net.node("SpaceToDepth", x, blocksize=2), (16, 4), (1, 1))

    assert_leads(build, lambda mask, size: down(mask, size, (2, 2), (2, 2)))


@pytest.mark.parametrize("operator", ["DepthToSpace", "SpaceToDepth"])
def test_squares_of_other_axes_than_rows_and_columns_are_refused(operator):
    net = Net()
    first = net.node("Relu", net.convolution("image", (3, 4), **TOP))
    moved = net.node(operator, net.node("Transpose", first, perm=[0, 2, 3, 1]), blocksize=2)
    with pytest.raises(ModelError, match=f"whose last two axes are not the image's rows and columns: {operator}"):
        attach(net.model(net.convolution(moved, (80, 4))))


def test_padding_that_is_computed_from_a_known_size():
    """As exporters write TensorFlow's padding: ceil(rows / 2) * 2 - rows, by operators."""

    def build(net, x):
        shape = net.node("Shape", x)
        two, axis = net.constant(np.int64(2)), net.constant(np.int64([0]))
        rows = net.node("Gather", shape, net.constant(np.int64(2)), axis=0)
        columns = net.node("Squeeze", net.node("Slice", shape, np.int64([-1]), np.int64([9])), axis)
        zeros = np.int64([0, 0, 0, 0, 0, 0])
        pads = [net.node("Unsqueeze", net.node("Mod", length, two), axis) for length in (rows, columns)]
        padded = net.node("Pad", x, net.node("Concat", zeros, *pads, axis=0))
        return net.node("MaxPool", padded, kernel_shape=[2, 2], strides=[2, 2])

    def lead(mask, size):
        return down(down(mask, (10, 14), (2, 2), (2, 2)), size)

    assert_leads(build, lead, (9, 13))


RESIZING = [
    ("nearest", "asymmetric", "floor", [2, 1.5]),
    ("nearest", "half_pixel", "round_prefer_floor", [1.7, 0.6]),
    ("nearest", "half_pixel", "round_prefer_ceil", [2, 2]),
    ("nearest", "pytorch_half_pixel", "ceil", [2, 1]),
    ("linear", "half_pixel", "floor", [2, 0.5]),
    ("linear", "align_corners", "floor", [1.5, 2]),
    ("linear", "asymmetric", "floor", [2, 3]),
    ("linear", "pytorch_half_pixel", "floor", [0.1, 2]),
    ("nearest", "asymmetric", "floor", [1.7, 1.3]),
    ("nearest", "asymmetric", "floor", [1.05, 1.05]),  # of no effect: runtimes copy
    ("linear", "half_pixel", "floor", [1.05, 1.2]),
]


@pytest.mark.parametrize(("mode", "coordinates", "rounding", "scales"), RESIZING)
def test_resizing_is_led_down_by_its_own_weights(mode, coordinates, rounding, scales):
    settings = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    size = (10, 12)

    def build(net, x):
        return net.node("Resize", x, "", np.float32([1, 1, *scales]), **settings)

    def lead(mask, size):
        """Each pixel below asks what it gives to the pixels above, by the layer itself."""
        pixels = np.eye(size[0] * size[1], dtype=np.float32).reshape(-1, 1, *size)
        above = run(resizing(pixels.shape, scales, settings), pixels)["y"]
        weights = above.reshape(size[0] * size[1], -1)
        return (mask.reshape(len(mask), -1) @ weights.T).reshape(-1, *size)

    assert_leads(build, lead, size)


def test_scales_of_some_axes_alone():
    def build(net, x):
        net.opset = 18
        return net.node("Resize", x, "", np.float32([1.7]), axes=[-1], mode="nearest", **FLOOR)

    def lead(mask, size):
        found = np.zeros((len(mask), *size))
        for column in range(mask.shape[2]):
            found[..., int(column / np.float32(1.7))] += mask[..., column]
        return found

    assert_leads(build, lead, (10, 12))


FLOOR = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


@pytest.mark.parametrize(
    ("settings", "last"),
    [({"mode": "linear", "antialias": 1}, [7, 8]), ({"keep_aspect_ratio_policy": "not_larger"}, [7, 8])],
)
def test_resizing_of_newer_kinds_is_refused(settings, last):
    net = Net(opset=18)
    first = net.node("Relu", net.convolution("image", (3, 4), **TOP))
    resized = net.node("Resize", first, "", "", np.int64(last), axes=[2, 3], **settings)
    with pytest.raises(ModelError, match="that resizes in a mode other than nearest and linear: Resize 'node2'"):
        attach(net.model(net.convolution(resized, (4, 4))))


def resizing(shape, scales, settings):
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], **settings)
    constant = onnx.numpy_helper.from_array(np.float32([1, 1, *scales]), "scales")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    values[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    graph = helper.make_graph([node], "resize", values[:1], values[1:], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def silu(net, x):
    return net.node("Mul", x, net.node("Sigmoid", x))


def gelu(net, x):
    bent = net.node("Add", net.node("Erf", net.node("Div", x, np.float32(1.4))), np.float32(1))
    return net.node("Mul", net.node("Mul", x, np.float32(0.5)), bent)


def tanh_gelu(net, x):
    cubed = net.node("Add", x, net.node("Mul", net.node("Pow", x, np.float32(3)), np.float32(0.04)))
    return net.node("Mul", x, net.node("Add", net.node("Tanh", cubed), np.float32(1)))


def hard_swish(net, x):
    bounded = net.node("Clip", net.node("Add", x, np.float32(3)), np.float32(0), np.float32(6))
    return net.node("Div", net.node("Mul", x, bounded), np.float32(6))


def mish(net, x):
    return net.node("Mul", x, net.node("Tanh", net.node("Softplus", x)))


def leaky_by_bounds(net, x):
    return net.node("Max", net.node("Mul", x, np.float32(0.1)), x)


@pytest.mark.parametrize("bend", [silu, gelu, tanh_gelu, hard_swish, mish, leaky_by_bounds])
def test_an_activation_of_several_operators_is_one(bend):
    net = Net()
    first = bend(net, net.convolution("image", (3, 4), **TOP))
    added = net.node("Add", net.convolution(first, (4, 4), **TOP), first)
    top = bend(net, added)
    model = net.model(net.convolution(top, (4, 4)))
    # HardSwish ends in a division, which changes no mask
    ends = [net.nodes[-2].output[0], top] if bend is hard_swish else [top]
    stages = attach(model).stages
    assert len(stages) == 2
    assert added not in stages
    assert stages[1] in {*ends, *net.nodes[-3].output}


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda net, x: net.node("Concat", x, x, axis=2), "that sets maps side by side"),
        (lambda net, x: net.node("CumSum", x, np.int64(3)), "that cannot be followed: CumSum 'node2'"),
        (lambda net, x: net.node("Softmax", x, axis=2), "that weighs pixels against each other: Softmax 'node2'"),
        (again, "that moves pixels: Flatten 'node2'"),
        (lambda net, x: net.node("Reshape", x, np.int64([-1, 2, 20, 22])), "that mixes the images of a batch, or lays"),
        (lambda net, x: net.node("Reshape", x, np.int64([1, -1, 20, 22])), "that mixes the images of a batch, or lays"),
        (beside, "that moves pixels: Reshape 'node2'"),
        (lambda net, x: net.node("Concat", x, x, axis=0), "that sets maps side by side"),
        (lambda net, x: net.node("Slice", x, np.int64([0]), np.int64([1]), np.int64([0])), "that picks images"),
        (lambda net, x: net.node("Gather", x, np.int64([0]), axis=0), "that picks images"),
        (lambda net, x: net.node("Pad", x, np.int64([0] * 4 + [2, 0, 0, 0])), "that adds or drops images: Pad 'node2'"),
        (lambda net, x: net.node("ReduceMax", x, axes=[0]), "that mixes the images of a batch, or lays"),
        (lambda net, x: net.node("Transpose", x, perm=[1, 0, 2, 3]), "that moves the images to another axis"),
        (lambda net, x: net.node("Reshape", x, np.int64([0, 4, 22, 20])), "that moves pixels: Reshape"),
        (
            lambda net, x: net.node("Slice", x, np.int64([0]), np.int64([5]), np.int64([2]), np.int64([-1])),
            "that picks",
        ),
        (regrouped, "that moves pixels: Reshape 'node2'"),
        (flat("Add", attention), "that moves pixels: Reshape 'node2'"),
        (flat("Mul", shares), "that moves pixels: Reshape 'node2'"),
        (flat("Add", branch), "that moves pixels: Reshape 'node2'"),
        (lambda net, x: net.node("ReduceMax", x, axes=[2]), "that reduces rows without columns"),
        (lambda net, x: net.node("Resize", x, "", np.float32([1, 1, 2, 2]), mode="cubic"), "other than nearest and"),
        (lambda net, x: net.node("MaxPool", x, outputs=2, kernel_shape=[1, 1])[1], "whose second result is used"),
    ],
)
def test_what_cannot_be_followed_is_named(build, sentence):
    net = Net()
    first = net.node("Relu", net.convolution("image", (3, 4), **TOP))
    with pytest.raises(ModelError, match="the graph has an operator ") as refusal:
        attach(net.model(net.convolution(build(net, first), (4, 4))))
    assert sentence in str(refusal.value)


def attended(net, times):
    x = net.node("Relu", net.convolution("image", (3, 4), **TOP))
    one = net.node("Reshape", net.node("Relu", net.convolution(x, (4, 4), **TOP)), np.int64([0, 4, -1]))
    for _ in range(times):
        one = net.node("Add", one, attention(net, x, one))
    return net.model(net.node("ReduceMean", one, axes=[2]))


def test_attention_is_refused_by_name_and_what_lies_below_is_explained_if_it_is_named():
    model = attended(Net(), 2)
    with pytest.raises(
        ModelError,
        match=r"^the graph has an operator that moves pixels: Reshape 'node4', for attention in Softmax 'node7'\. "
        r"The stages below can be explained: name the last one, relu3, in `stages`\.$",
    ):
        attach(model)
    assert attach(model, stages=["relu3"]).stages == ("relu3",)
    assert attach(model, stages=["all", "relu3"]).stages == ("relu1", "relu3")
    # one alone pools, as CLIP's head does
    assert attach(attended(Net(), 1)).stages == ("relu1", "relu3")


def test_a_map_of_which_only_the_shape_is_read_is_no_end_of_a_path():
    net = Net()
    first = net.node("Relu", net.convolution("image", (3, 4), **TOP))
    side = net.node("Relu", net.convolution(first, (4, 4), **TOP))
    top = net.node("Relu", net.convolution(first, (4, 4), **TOP))
    pooled = net.node("ReduceMean", top, axes=[2, 3], keepdims=1)
    model = net.model(net.node("Expand", pooled, net.node("Shape", side)))
    assert attach(model).stages == (first, top)


def test_behind_the_last_convolution_anything_may_come():
    net = Net()
    first = net.node("Relu", net.convolution("image", (3, 4), **TOP))
    assert attach(net.model(net.node("Softmax", net.node("Fancy", first, domain="com.example"), axis=1))).stages
