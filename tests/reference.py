"""The oracle: VisualBackProp in NumPy float64, by plain loops. It shares no code with vbp and imports none of it.

A network is a list of layers, each a dict with its `kind`: conv, norm, relu, max, average. Images are (C, H, W).
"""

import numpy as np


def layers_of(modules):
    """The layers of a sequence of torch modules in order; what leaves pixels alone is left out."""
    layers = []
    for module in modules:
        name = type(module).__name__
        if name == "Conv2d":
            before, after = convolution_padding(module)
            bias = np.zeros(module.out_channels) if module.bias is None else module.bias.detach().double().numpy()
            layers.append(
                {
                    "kind": "conv",
                    "weight": module.weight.detach().double().numpy(),
                    "bias": bias,
                    "groups": module.groups,
                    "kernel": module.kernel_size,
                    "stride": module.stride,
                    "padding": before,
                    "after": after,
                    "dilation": module.dilation,
                    "ceil_mode": False,
                }
            )
        elif name in ("MaxPool2d", "AvgPool2d"):
            layers.append(
                {
                    "kind": "max" if name == "MaxPool2d" else "average",
                    "kernel": pair(module.kernel_size),
                    "stride": pair(module.stride),
                    "padding": pair(module.padding),
                    "dilation": pair(getattr(module, "dilation", 1)),
                    "ceil_mode": module.ceil_mode,
                }
            )
        elif name == "BatchNorm2d":
            scale = module.weight.detach().double().numpy() / np.sqrt(module.running_var.double().numpy() + module.eps)
            shift = module.bias.detach().double().numpy() - module.running_mean.double().numpy() * scale
            layers.append({"kind": "norm", "scale": scale, "shift": shift})
        elif name == "ReLU":
            layers.append({"kind": "relu"})
        elif name not in ("Dropout", "Identity"):
            raise NotImplementedError(name)
    return layers


def convolution_padding(module):
    """(rows, columns) above and left, and below and right; `same` sets the odd one below and right."""
    if module.padding != "same":
        return module.padding, module.padding
    total = [gap * (length - 1) for gap, length in zip(module.dilation, module.kernel_size, strict=True)]
    return tuple(sum_ // 2 for sum_ in total), tuple(sum_ - sum_ // 2 for sum_ in total)


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def output_length(length, kernel, stride, before, after, dilation, ceil_mode):
    """How many windows fit, counted one by one."""
    reach = dilation * (kernel - 1) + 1
    count = 0
    while count * stride + reach <= length + before + after:
        count += 1
    # One more that sticks out on the right, if it starts before the right padding.
    if ceil_mode and (count - 1) * stride + reach < length + before + after and count * stride < length + before:
        count += 1
    return count


def output_size(size, layer):
    return tuple(
        output_length(
            size[axis],
            layer["kernel"][axis],
            layer["stride"][axis],
            layer["padding"][axis],
            layer.get("after", layer["padding"])[axis],
            layer["dilation"][axis],
            layer["ceil_mode"],
        )
        for axis in (0, 1)
    )


def slide(image, layer, fill):
    """(taps, C, rows, columns): what every window sees, tap by tap; `fill` outside the image."""
    (kernel_rows, kernel_columns), (row_step, column_step) = layer["kernel"], layer["stride"]
    (top, left), (row_gap, column_gap) = layer["padding"], layer["dilation"]
    rows, columns = output_size(image.shape[1:], layer)
    margin = 2 * max(kernel_rows * row_gap + row_step, kernel_columns * column_gap + column_step)
    padded = np.pad(image, ((0, 0), (top, top + margin), (left, left + margin)), constant_values=fill)
    views = []
    for i in range(kernel_rows):
        for j in range(kernel_columns):
            y, x = i * row_gap, j * column_gap
            stop_y, stop_x = y + (rows - 1) * row_step + 1, x + (columns - 1) * column_step + 1
            views.append(padded[:, y:stop_y:row_step, x:stop_x:column_step])
    return np.stack(views)


def forward(layers, image):
    """The averaged maps, and for each the sliding layers between the map below (or the image) and it."""
    maps, ways, way = [], [], []
    value = image.astype(np.float64)
    for layer in layers:
        kind = layer["kind"]
        if kind in ("conv", "max", "average"):
            way.append((layer, value.shape[1:]))
        if kind == "conv":
            views = slide(value, layer, 0.0)
            outputs, inputs = layer["weight"].shape[0] // layer["groups"], layer["weight"].shape[1]
            parts = []
            for group in range(layer["groups"]):
                weight = layer["weight"][group * outputs : (group + 1) * outputs].reshape(outputs, inputs, -1)
                seen = views[:, group * inputs : (group + 1) * inputs]
                parts.append(np.einsum("oct,tchw->ohw", weight, seen, optimize=True))
            value = np.concatenate(parts) + layer["bias"][:, None, None]
        elif kind == "max":
            value = slide(value, layer, -np.inf).max(0)
        elif kind == "average":
            value = slide(value, layer, 0.0).mean(0)
        elif kind == "norm":
            value = value * layer["scale"][:, None, None] + layer["shift"][:, None, None]
        elif kind == "relu":
            value = np.maximum(value, 0)
            if any(seen["kind"] == "conv" for seen, _ in way):
                maps.append(value.mean(0))
                ways.append(way)
                way = []
    return maps, ways


def spread(plane, layer, size):
    """The all-ones deconvolution: every value is added to each pixel under its window."""
    (kernel_rows, kernel_columns), (row_step, column_step) = layer["kernel"], layer["stride"]
    (top, left), (row_gap, column_gap) = layer["padding"], layer["dilation"]
    result = np.zeros(size)
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            for i in range(kernel_rows):
                for j in range(kernel_columns):
                    row, column = y * row_step - top + i * row_gap, x * column_step - left + j * column_gap
                    if 0 <= row < size[0] and 0 <= column < size[1]:
                        result[row, column] += plane[y, x]
    return result


def descend(plane, way):
    for layer, size in reversed(way):
        plane = spread(plane, layer, size)
    return plane


def stretch(plane):
    low, high = plane.min(), plane.max()
    return np.zeros_like(plane) if high == low else (plane - low) / (high - low)


def paper_product(layers, image):
    """The mask of the paper before its normalisation."""
    maps, ways = forward(layers, image)
    mask = maps[-1]
    for depth in range(len(maps) - 1, 0, -1):
        mask = descend(mask, ways[depth]) * maps[depth - 1]
    return descend(mask, ways[0])


def paper_mask(layers, image):
    """The mask of the paper (no normalisation but the last) and log10 of its maximum before it."""
    mask = paper_product(layers, image)
    return stretch(mask), np.log10(mask.max()) if mask.max() > 0 else -np.inf


def reference_mask(layers, image):
    """The mask of the project devansh20la/VisualBackprop."""
    maps, _ = forward(layers, image)
    same = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    double = {"kernel": (4, 4), "stride": (2, 2), "padding": (1, 1), "dilation": (1, 1)}
    mask = maps[-1]
    for below in maps[-2::-1]:
        mask = stretch(spread(mask, same if mask.shape == below.shape else double, below.shape) * below)
    return mask
