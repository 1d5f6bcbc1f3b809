"""Networks whose data splits and joins: which maps are stages, and what lies between two of them."""

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models, ops

from vbp.errors import ModelError
from vbp.saliency import VisualBackProp
from vbp.saliency.cuts import Strand
from vbp.saliency.geometry import Branches, Pooling, Resampling, Window, map_sizes
from vbp.saliency.trace import trace

CONVOLUTION = Window((3, 3), before=(1, 1), after=(1, 1))
POINT = Window((1, 1))


def convolution(inputs=4, outputs=4, kernel=3, **settings):
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **settings})


class Net(nn.Module):
    """A stem of one convolution and ReLU, then what `forward` of a test does with layers a to e."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.stem, self.relu, self.rest = convolution(3), nn.ReLU(), forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.rest(self, self.relu(self.stem(x)))


def stages(forward, **layers):
    """The stages above the stem's."""
    first, *others = trace(Net(forward, **layers)).stages
    assert (first.name, first.steps, first.signed) == ("relu", (CONVOLUTION,), False)
    return others


def in_place_sum(one, other):
    one += other
    return one


@pytest.mark.parametrize("add", [operator.add, torch.add, in_place_sum, lambda x, y: x.add_(y), lambda x, y: x.add(y)])
def test_residual_block_ends_in_the_activation_behind_its_addition(add):
    (stage,) = stages(
        lambda net, x: F.relu(add(net.b(F.relu(net.a(x))), x)), a=convolution(stride=1), b=convolution(kernel=5)
    )
    five = Window((5, 5), before=(2, 2), after=(2, 2))
    assert stage.steps == (Branches((Strand((0,), (CONVOLUTION, five)), Strand((1, 0)))),)
    assert not stage.signed


def test_block_without_a_last_activation_ends_in_its_clamped_join():
    (stage,) = stages(lambda net, x: torch.flatten(x + net.b(F.gelu(net.a(x))), 1), a=convolution(), b=convolution())
    assert stage.name == "add"
    assert stage.signed
    assert stage.steps == (Branches((Strand((0,), (CONVOLUTION, CONVOLUTION)), Strand((0, 1)))),)


def test_preactivation_residual_network():
    """BN and ReLU lie in the branch, so additions are the stages, but for the last, which BN and ReLU follow."""

    def forward(net, x):
        x = x + net.a(F.relu(net.norm(x)))
        x = x + net.b(F.relu(net.norm(x)))
        return F.relu(net.norm(x)).mean((2, 3))

    found = stages(forward, a=convolution(), b=convolution(), norm=nn.BatchNorm2d(4))
    assert [(stage.name, stage.signed) for stage in found] == [("add", True), ("relu_3", False)]
    assert {stage.steps for stage in found} == {(Branches((Strand((0,), (CONVOLUTION,)), Strand((0, 1)))),)}


def test_concatenation_of_activations_needs_no_clamp():
    def forward(net, x):
        return torch.cat([F.relu(net.a(x)), F.relu(net.b(F.relu(net.c(x)))), F.max_pool2d(x, 3, 1, 1)], 1)

    (stage,) = stages(forward, a=convolution(kernel=1), b=convolution(), c=convolution(kernel=1))
    assert stage.name == "cat"
    assert not stage.signed
    pool = Pooling((3, 3), before=(1, 1), after=(1, 1), maximum=True)
    strands = (Strand((0,), (POINT,)), Strand((0,), (POINT, CONVOLUTION)), Strand((0,), (pool,)))
    assert stage.steps == (Branches((*strands, Strand((1, 2, 3)))),)


def test_concatenation_with_a_signed_part_is_clamped():
    (stage,) = stages(lambda net, x: torch.cat((x, net.a(x)), dim=-3), a=convolution())
    assert stage.signed


def test_dense_block_is_one_step():
    """Every layer reads all below it: only the ends of the block are crossed by every path."""

    def forward(net, x):
        first = net.a(F.relu(x))
        second = net.b(F.relu(torch.cat([x, first], 1)))
        return F.relu(net.norm(torch.cat([x, first, second], 1)))

    (stage,) = stages(forward, a=convolution(), b=convolution(8), norm=nn.BatchNorm2d(12))
    strands = (
        Strand((0,), (CONVOLUTION,)),
        Strand((0, 1), (CONVOLUTION,)),
        Strand((0, 1, 2)),
    )
    assert stage.steps == (Branches(strands),)
    assert stage.name == "relu_3"


@pytest.mark.parametrize(
    "join",
    [
        lambda one, two, three: one + two + three,
        lambda one, two, three: one + (two + three),
        lambda one, two, three: torch.cat([torch.cat([one, two], 1), three], 1),
        lambda one, two, three: torch.cat([one, two, three], 1),
    ],
)
def test_brackets_in_a_join_play_no_part(join):
    (stage,) = stages(lambda net, x: F.relu(join(x, net.a(x), net.b(x))), a=convolution(), b=convolution(kernel=1))
    strands = (Strand((0,), (CONVOLUTION,)), Strand((0,), (POINT,)), Strand((0, 1, 2)))
    assert stage.steps == (Branches(strands),)


@pytest.mark.parametrize("unchanged", [nn.Identity(), nn.Dropout(), lambda x: F.dropout(x, training=False)])
def test_what_changes_nothing_plays_no_part_in_a_join(unchanged):
    """RepVGG has a drop-path between its two sums, which does nothing in evaluation."""

    def forward(net, x):
        return F.relu(x + unchanged(net.a(x) + net.b(x)))

    modules = {"drop": unchanged} if isinstance(unchanged, nn.Module) else {}
    (stage,) = stages(forward, a=convolution(), b=convolution(kernel=1), **modules)
    strands = (Strand((0,), (CONVOLUTION,)), Strand((0,), (POINT,)), Strand((0, 1, 2)))
    assert [strand for strand in stage.steps[0].strands if strand.steps] == list(strands[:2])
    assert sorted(stage.steps[0].strands[-1].sources) == [0, 1, 2]


def test_joins_of_unlike_kind_stay_nested():
    def forward(net, x):
        left = net.a(x)
        inner = net.b(left) + net.c(left)
        return F.relu(torch.cat([x, inner], 1))

    (stage,) = stages(forward, a=convolution(kernel=1), b=convolution(), c=convolution(kernel=1))
    strands = (
        Strand((0,), (POINT,)),
        Strand((1,), (CONVOLUTION,)),
        Strand((1,), (POINT,)),
        Strand((2, 3)),
        Strand((0, 4)),
    )
    assert stage.steps == (Branches(strands),)


@pytest.mark.parametrize(
    "gate",
    [
        lambda net, x: torch.sigmoid(net.c(F.relu(net.b(F.adaptive_avg_pool2d(x, 1))))),
        lambda net, x: torch.sigmoid(net.c(net.b(F.avg_pool2d(x, x.shape[2:])))),
        lambda net, x: torch.sigmoid(net.c(net.b(F.avg_pool2d(x, (x.size(2), x.shape[3]))))),
        lambda net, x: F.hardsigmoid(net.d(x.mean([2, 3])))[:, :, None, None],
        lambda net, x: torch.sigmoid(net.c(net.b(x.mean((2, 3), True)))).expand_as(x),
        lambda net, x: torch.sigmoid(net.d(torch.flatten(x.mean((2, 3), True), 1))).view(x.size(0), -1, 1, 1),
        lambda net, x: net.e(x),
        lambda net, x: F.adaptive_max_pool2d(net.a(x), (1, 1)).sigmoid(),
    ],
)
def test_gate_is_neither_stage_nor_path(gate):
    def forward(net, x):
        x = F.relu(net.a(x))
        return F.relu(net.a(gate(net, x) * x))

    layers = {"b": convolution(4, 2, 1), "c": convolution(2, 4, 1), "d": nn.Linear(4, 4)}
    found = stages(forward, a=convolution(), e=_Scale(), **layers)
    assert [stage.steps for stage in found] == [(CONVOLUTION,), (CONVOLUTION,)]


@pytest.mark.parametrize(
    "gate",
    [
        lambda net, x: net.line(x.mean((2, 3)).view(x.shape[0], 1, -1)).view(x.shape[0], -1, 1, 1).expand_as(x),
        lambda net, x: torch.sigmoid(net.d(x.mean((2, 3)))).view(x.size(0), 4, 1, 1).expand(-1, -1, *x.shape[2:]),
        lambda net, x: F.interpolate(F.adaptive_avg_pool2d(x, 1), x.shape[2:]),
        lambda net, x: x.flatten(2) @ net.c(x).flatten(2).softmax(-1).transpose(1, 2)[:, :, :1] @ torch.ones(1, 1, 1),
    ],
)
def test_gate_is_spread_over_the_map_in_any_way(gate):
    def forward(net, x):
        weights = gate(net, x)
        return F.relu(net.a(x * (weights if weights.ndim == 4 else weights.unsqueeze(-1))))

    line = nn.Conv1d(1, 1, 3, padding=1)
    (stage,) = stages(forward, a=convolution(), c=convolution(kernel=1), d=nn.Linear(4, 4), line=line)
    assert stage.steps == (CONVOLUTION,)


@pytest.mark.parametrize(
    "norm",
    [
        lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt(),
        lambda x: x * torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + 1e-6).to(x),
        lambda x: x / x.norm(p=2, dim=1, keepdim=True).clamp(min=1e-6).expand_as(x),
        lambda x: x / (torch.linalg.vector_norm(x, 2, (2, 3), keepdim=True).mean(1, keepdim=True) + 1e-6),
        lambda x: F.normalize(x, dim=1),
        lambda x: (x - torch.var_mean(x, [1, 2, 3], keepdim=True)[1]) / x.std((1, 2, 3), keepdim=True),
        lambda x: (lambda pair: (x - pair[1]) * pair[0].rsqrt())(torch.var_mean(x, 1, keepdim=True)),
        lambda x: (x.view(x.size(0), 2, -1, *x.shape[2:]) / x.std()).view(x.shape),
    ],
)
def test_norm_of_the_networks_own_is_no_stage(norm):
    (stage,) = stages(lambda net, x: F.relu(net.b(norm(net.a(x)))), a=convolution(), b=convolution())
    assert stage.name == "relu_1"
    assert stage.steps == (CONVOLUTION, CONVOLUTION)


def test_mean_of_another_map_is_a_branch():
    """Only a map's own mean makes a norm of it."""
    (stage,) = stages(lambda net, x: x.mean(1, keepdim=True) + net.a(x), a=convolution())
    assert stage.name == "add"
    assert stage.steps == (Branches((Strand((0,), (CONVOLUTION,)), Strand((0, 1)))),)


def test_branches_that_are_stacked_and_weighed_are_averaged():
    """SK's: the softmax over the branches, of what is pooled from all of them."""

    def forward(net, x):
        both = torch.stack([net.a(x), net.b(x)], dim=1)
        weights = net.c(both.sum(1).mean((2, 3), keepdim=True)).view(x.size(0), 2, 4, 1, 1).softmax(1)
        return F.relu((both * weights).sum(dim=1))

    (stage,) = stages(forward, a=convolution(), b=convolution(kernel=1), c=convolution(4, 8, 1))
    strands = (Strand((0,), (CONVOLUTION,)), Strand((0,), (POINT,)), Strand((1, 2)))
    assert stage.steps == (Branches(strands),)
    assert stage.name == "relu_1"


class ChannelsLast(nn.Module):
    """MambaOut's: maps are (B, H, W, C) but for the convolutions; blocks end in an addition in this order."""

    def __init__(self, last):
        super().__init__()
        self.stem, self.mix, self.point, self.last = convolution(3), convolution(), nn.Linear(4, 4), last

    def forward(self, x):
        x = F.gelu(self.stem(x))
        if not self.last:
            x = x + F.relu(self.mix(x))
            return (x + self.point(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).mean((2, 3))
        x = x.permute(0, 2, 3, 1)
        x = x + F.relu(self.mix(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return (x + self.point(x)).mean((1, 2))


@pytest.mark.parametrize("target", [None, 2])
def test_maps_that_are_kept_channels_last_are_averaged_over_their_channels(target):
    first, last = ChannelsLast(False), ChannelsLast(True)
    last.load_state_dict(first.state_dict())
    images = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(8))
    one, other = (VisualBackProp(model).explain(images, target=target) for model in (first, last))
    assert [kept.shape for kept in other.maps] == [(2, 1, 6, 5)] * 3
    for expected, found in zip(one.maps, other.maps, strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(other.mask, one.mask, rtol=0, atol=1e-5)


class _Scale(ops.SqueezeExcitation):
    def __init__(self):
        super().__init__(4, 2)

    def forward(self, x):
        return self._scale(x)


@pytest.mark.parametrize("bend", [lambda x: x * torch.sigmoid(x), lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5))])
def test_written_out_activation_is_a_clamped_stage(bend):
    (stage,) = stages(lambda net, x: bend(net.a(x)), a=convolution())
    assert stage.signed
    assert stage.steps == (CONVOLUTION,)


@pytest.mark.parametrize(
    "like",
    [
        lambda constant, x: constant.expand_as(x),
        lambda constant, x: constant.expand(x.shape),
        lambda constant, x: constant.type_as(x),
        lambda constant, x: constant.to(x),
    ],
)
def test_constant_that_is_made_like_a_map_moves_no_pixel(like):
    (stage,) = stages(lambda net, x: F.relu(net.a(x + like(net.a.weight[:, :1, :1, 0], x))), a=convolution())
    assert stage.steps == (CONVOLUTION,)


def test_vector_of_the_type_of_a_map_is_still_one():
    (stage,) = stages(lambda net, x: F.relu(net.a(x * x.mean((2, 3), True).type_as(x))), a=convolution())
    assert stage.steps == (CONVOLUTION,)


@pytest.mark.parametrize(
    "like",
    [
        lambda x, other: x.type_as(other),
        lambda x, other: x.to(other),
        lambda x, other: x + torch.zeros_like(other),
        lambda x, other: x + other.new_ones(other.shape),
        lambda x, other: F.interpolate(x, other.shape[2:]),
        lambda x, other: x.view_as(other),
        lambda x, other: x * x.mean((2, 3), keepdim=True).expand_as(other),
    ],
)
def test_map_of_which_only_shape_or_type_is_read_is_no_branch(like):
    def forward(net, x):
        side = F.relu(net.b(F.relu(net.b(x))))
        return F.relu(net.a(like(x, side)))

    (stage,) = stages(forward, a=convolution(), b=convolution(4, 4, 1))
    assert stage.name == "relu_3"
    resized = Resampling("nearest", (224, 224))
    assert stage.steps in ((CONVOLUTION,), (resized, CONVOLUTION))


def test_window_of_the_size_of_another_map_does_not_pool_everything():
    def forward(net, x):
        side = net.b(x)
        return F.relu(net.a(F.avg_pool2d(x, side.shape[2:], 1)))

    (stage,) = stages(forward, a=convolution(), b=convolution(padding=0))
    assert stage.steps == (Pooling((222, 222)), CONVOLUTION)
    gated = stages(lambda net, x: F.relu(net.a(x * F.avg_pool2d(F.relu(x), x.shape[2:]))), a=convolution())
    assert gated[0].steps == (CONVOLUTION,)


def conditional(net, x):
    """CondConv's: weights that depend on the image, so that every image is a group of channels."""
    images, channels, rows, columns = x.shape
    scales = x.mean((2, 3)).mean(1).view(images, 1, 1, 1, 1)
    weights = (scales * net.a.weight).flatten(0, 1)
    y = F.conv2d(x.reshape(1, images * channels, rows, columns), weights, padding=1, groups=images)
    return F.relu(y.permute(1, 0, 2, 3).view(images, 4, rows, columns))


def in_groups(net, x):
    """Half of the channels at a time, as if each were an image."""
    images, channels, rows, columns = x.shape
    halves = net.b(x.reshape(images * 2, channels // 2, rows, columns))
    return F.relu(halves.reshape(images, channels, rows, columns))


@pytest.mark.parametrize("forward", [conditional, in_groups])
def test_images_may_lie_in_one_axis_with_their_channels_for_a_while(forward):
    network = Net(forward, a=convolution(), b=convolution(2, 2))
    vbp = VisualBackProp(network)
    assert [stage.steps for stage in vbp.stages] == [(CONVOLUTION,), (CONVOLUTION,)]
    images = torch.rand(3, 3, 7, 6, generator=torch.Generator().manual_seed(1))
    masks = torch.cat([vbp(image[None]) for image in images])
    torch.testing.assert_close(vbp(images), masks, rtol=0, atol=1e-6)


def test_stage_whose_images_lie_in_one_axis_with_channels_is_refused():
    def forward(net, x):
        images, channels, rows, columns = x.shape
        halves = F.relu(net.b(x.reshape(images * 2, channels // 2, rows, columns)))
        return F.relu(net.a(halves.reshape(images, channels, rows, columns)))

    with pytest.raises(ModelError, match="^Net lays the images of a batch into one axis .* image by image: relu_1"):
        stages(forward, a=convolution(), b=convolution(2, 2))


def test_images_may_lie_along_another_axis_for_a_while():
    network = Net(lambda net, x: net.a(F.relu(net.a(x).transpose(0, 1)).transpose(0, 1)), a=convolution())
    vbp = VisualBackProp(network)
    images = torch.rand(3, 3, 7, 6, generator=torch.Generator().manual_seed(1))
    assert [stage.name for stage in vbp.stages] == ["relu", "relu_1"]
    mean = network.a(network.relu(network.stem(images))).relu().mean(1, keepdim=True)
    torch.testing.assert_close(vbp.explain(images).maps[1], mean)


def test_channel_shuffle_keeps_every_pixel():
    """ShuffleNet's: split, convolve one half, concatenate, shuffle by view and transpose."""

    def shuffled(x):
        batch, channels, rows, columns = x.size()
        x = x.view(batch, 2, channels // 2, rows, columns)
        return torch.transpose(x, 1, 2).contiguous().view(batch, -1, rows, columns)

    def forward(net, x):
        for layer in (net.a, net.b):
            left, right = x.chunk(2, dim=1)
            x = shuffled(torch.cat((left, F.relu(layer(right))), dim=1))
        return x

    found = stages(forward, a=convolution(2, 2), b=convolution(2, 2, 1))
    assert [stage.steps for stage in found] == [
        (Branches((Strand((0,), (window,)), Strand((0, 1)))),) for window in (CONVOLUTION, POINT)
    ]
    assert not any(stage.signed for stage in found)


def test_channels_last_part_is_followed():
    """ConvNeXt's: a depthwise convolution, then linear layers over the channels."""

    def forward(net, x):
        y = F.gelu(net.b(net.norm(net.a(x).permute(0, 2, 3, 1)))).permute([0, 3, 1, 2])
        return F.relu(x + y)

    (stage,) = stages(forward, a=convolution(groups=4), b=nn.Linear(4, 4), norm=nn.LayerNorm(4))
    assert stage.steps == (Branches((Strand((0,), (CONVOLUTION,)), Strand((0, 1)))),)


def test_linear_layer_over_the_channels_is_a_stage_without_geometry():
    model = Net(lambda net, x: F.relu(net.b(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), b=nn.Linear(4, 5))
    stem, top = trace(model).stages
    assert (stem.steps, top.steps) == ((CONVOLUTION,), ())
    assert map_sizes([stem, top], (7, 6)) == [(7, 6), (7, 6)]


def test_channels_of_the_input_may_be_taken_apart():
    class Transformed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = convolution(3)

        def forward(self, x):
            planes = [torch.unsqueeze(x[:, i], 1) * (i + 1) for i in range(3)]
            return F.relu(self.a(torch.cat(planes, 1)))

    (stage,) = trace(Transformed()).stages
    assert stage.steps == (CONVOLUTION,)


def test_crops_pads_and_resampling_are_geometry():
    def forward(net, x):
        y = F.interpolate(net.a(F.pad(x, (1, 2, 3, 4))), scale_factor=(2, 1), mode="bilinear", align_corners=False)
        y = net.up(F.adaptive_max_pool2d(y, (None, 6)))[:, :, 1:-2, ::3]
        return F.relu(net.a(y))

    (stage,) = stages(forward, a=convolution(), up=nn.Upsample((8, 9)))
    assert stage.steps == (
        Window((1, 1), before=(3, 1), after=(4, 2)),
        CONVOLUTION,
        Resampling("linear", scale=(2, 1), align_corners=False),
        Resampling("adaptive", (None, 6)),
        Resampling("nearest", (8, 9)),
        Window((1, 1), stride=(1, 3), before=(-1, 0), after=(-2, 0)),
        CONVOLUTION,
    )


def test_gate_with_pixels_is_a_branch():
    """CBAM's: the mean and the maximum over channels, a convolution, a sigmoid."""

    def forward(net, x):
        gate = net.a(torch.cat([x.mean(1, keepdim=True), x.max(1).values.unsqueeze(1), torch.amax(x, 1, True)], 1))
        return F.relu(net.b(x * torch.sigmoid(gate)))

    gated, last = stages(forward, a=convolution(3, 1), b=convolution())
    assert (gated.name, gated.signed) == ("mul", True)
    assert gated.steps == (Branches((Strand((0,), (CONVOLUTION,)), Strand((0, 1)))),)
    assert last.steps == (CONVOLUTION,)


def test_pooled_side_path_is_left_out_of_a_join():
    """The image pooling of an atrous pyramid gives every pixel the same."""

    def forward(net, x):
        pooled = F.interpolate(net.a(F.adaptive_avg_pool2d(x, 1)), size=(8, 8))
        return F.relu(torch.cat([net.b(x), pooled], 1))

    (stage,) = stages(forward, a=convolution(kernel=1), b=convolution(padding=2, dilation=2))
    assert stage.steps == (Window((3, 3), before=(2, 2), after=(2, 2), dilation=(2, 2)),)


def test_of_several_heads_the_shared_trunk_counts():
    def forward(net, x):
        x = F.relu(net.a(x))
        return F.relu(net.a(x)), F.relu(net.b(x)).mean((2, 3))

    assert [stage.name for stage in stages(forward, a=convolution(), b=convolution())] == ["relu_1"]


def test_branch_that_leads_nowhere_is_ignored():
    def forward(net, x):
        F.relu(net.b(x))
        return F.relu(net.a(x))

    assert len(stages(forward, a=convolution(), b=convolution())) == 1


def in_windows(x):
    """Pixels stay in their places, as no layer stands between; a layer there would spread them over their windows."""
    images, channels, rows, columns = x.shape
    windows = x.view(images, channels, rows // 7, 7, columns // 7, 7).permute(0, 2, 4, 1, 3, 5)
    return F.relu(windows).permute(0, 3, 1, 4, 2, 5).reshape(images, channels, rows, columns)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (lambda x: x.flatten(2).softmax(-1), "moves pixels: flatten"),
        (lambda x: x.view(x.size(0), 4, 2, -1, x.size(3)), "moves pixels: view"),
        (lambda x: x.view(x.size(0), -1, x.size(3), x.size(2)), "moves pixels: view"),
        (lambda x: x.transpose(2, 3), "image whose last axes are not rows and columns"),
        (lambda x: torch.cat([x, x + 1], 2), "sets maps side by side: cat"),
        (lambda x: x + x.transpose(2, 3), "joins rows with other axes: add"),
        (lambda x: x.mean(3, keepdim=True), "reduces rows without columns: mean"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), "other than nearest and bilinear"),
        (lambda x: x[:, :, 1], "picks pixels: getitem"),
        (lambda x: torch.chunk(x, 2, -1)[0], "cuts maps: chunk"),
        (lambda x: F.linear(x, torch.ones(5, 5)), "mixes the pixels of a row: linear"),
        (lambda x: x + torch.cumsum(x, 3), "that tracing does not know: cumsum"),
        (lambda x: x.mT, "not know: .*getattr"),
        # of one size whatever size the images have, and still with pixels
        (lambda x: F.adaptive_avg_pool2d(x.flip(3), 7), "not know: .*flip"),
        (lambda x: x.flip(3)[:, :, :5, :5], "not know: .*flip"),
        (lambda x: (x.flip(3).flatten(2) @ x.flatten(2).mT @ x.new_ones(4, 25)).view(-1, 4, 5, 5), "not know: .*flip"),
        (in_windows, "moves pixels: .*reshape"),
        # laid out again
        (lambda x: x.flatten(1).view(x.shape), "moves pixels: flatten"),
        (lambda x: F.relu(x.view(x.size(0), -1)).reshape_as(x), "moves pixels: view"),
        # images of the batch
        (lambda x: x.view(1, -1, *x.shape[2:]), "mixes the images of a batch: a"),
        (
            lambda x: x.permute(1, 0, 2, 3).reshape(-1, 2, *x.shape[2:]),
            "axes are not images, channels, rows and columns",
        ),
        (lambda x: x.flatten(0, 1)[None], "mixes the images of a batch: flatten"),
        (lambda x: x - x.mean(0), "mixes the images of a batch: mean"),
        (lambda x: x.softmax(0), "weighs pixels against each other: softmax"),
        (lambda x: torch.cat([x, x]), "sets maps side by side: cat"),
        (lambda x: x.repeat(2, 1, 1, 1), "mixes the images of a batch: repeat"),
        (lambda x: x[:1], "picks images: getitem"),
        (lambda x: x.transpose(0, 1), "axes are not images, channels, rows and columns"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_a_convolution(operation, reason):
    with pytest.raises(ModelError, match=f"^Net has an operation .*{reason}"):
        stages(lambda net, x: F.relu(net.a(operation(x))), a=convolution())
    assert stages(lambda net, x: operation(x)) == []


def attended(net, x):
    """Two blocks of attention over the pixels behind two stages."""
    x = F.relu(net.a(x))
    for _ in range(2):
        tokens = x.flatten(2)
        x = (tokens @ (tokens.transpose(1, 2) @ tokens).softmax(-1)).view(x.shape)
    return F.relu(net.b(x))


def test_attention_is_refused_by_name_and_what_lies_below_is_explained_if_it_is_named():
    network = Net(attended, a=convolution(), b=convolution())
    with pytest.raises(
        ModelError, match=r"moves pixels: .*flatten, for attention in softmax\. .* last one, relu_1, in"
    ):
        VisualBackProp(network)
    for asked, names in (("relu_1", ["relu_1"]), (["all", "relu_1"], ["relu", "relu_1"])):
        vbp = VisualBackProp(network, stages=asked)
        assert [stage.name for stage in vbp.stages] == names
        assert vbp(torch.rand(2, 3, 5, 4)).shape == (2, 1, 5, 4)


def test_writing_into_a_part_of_a_map_is_refused():
    def forward(net, x):
        x[:, :, 0] = 0
        return F.relu(net.a(x))

    with pytest.raises(ModelError, match="cannot be traced by torch.fx: .* item assignment"):
        stages(forward, a=convolution())


def test_names_say_where_a_stage_is():
    with torch.device("meta"):
        dense, incepted = models.densenet121(weights=None), models.googlenet(weights=None, init_weights=False)
    names = [stage.name for stage in trace(dense).stages]
    transitions = [f"features.transition{i}.relu" for i in (1, 2, 3)]
    assert names == ["features.relu0", *transitions, "relu"]
    blocks = [f"inception{block}.cat" for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
    assert [stage.name for stage in trace(incepted).stages] == ["conv1.relu", "conv2.relu", "conv3.relu", *blocks]
