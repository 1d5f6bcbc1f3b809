"""Masks against the oracle, and the promises about batches, flat maps, infinities and the model."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests import reference
from vbp.errors import ImageError, ModelError, UsageError
from vbp.saliency import VisualBackProp
from vbp.saliency.visualbackprop import visual_backprop

from .conftest import randomise, small_vgg


def alexnet_like():
    return randomise(
        nn.Sequential(
            nn.Conv2d(3, 5, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(5, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(8, 6, 3, padding=1, groups=2), nn.ReLU(inplace=True),
        )
    )  # fmt: skip


def driving_like():
    widths = [3, 4, 4, 6, 6]
    modules = []
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        modules += [nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride=1 + i % 2), nn.ReLU()]
    return randomise(nn.Sequential(*modules, nn.BatchNorm2d(6), nn.Flatten()))


def odd_windows():
    return randomise(
        nn.Sequential(
            nn.Conv2d(3, 4, (5, 2), stride=(1, 3), padding=(0, 1), dilation=(2, 1)), nn.ReLU(),
            nn.AvgPool2d((2, 3), stride=(3, 2), padding=(1, 1)), nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, 5, 3, dilation=2, padding=3), nn.ReLU(),
        )
    )  # fmt: skip


@pytest.mark.parametrize("model", [small_vgg(), small_vgg(norm=True), alexnet_like(), driving_like(), odd_windows()])
@pytest.mark.parametrize("size", [(64, 64), (63, 50)])
def test_paper_masks_equal_the_oracle(model, size):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    result = VisualBackProp(model).explain(images)
    assert result.mask.shape == (2, 1, *size)
    assert result.mask.dtype is torch.float32
    layers = reference.layers_of(features_of(model))
    for i, image in enumerate(images.double().numpy()):
        mask, log10_max = reference.paper_mask(layers, image)
        np.testing.assert_allclose(result.mask[i, 0].numpy(), mask, atol=1e-5)
        assert result.log10_max[i].item() == pytest.approx(log10_max, abs=1e-5)


class Residual(nn.Module):
    """A stem, a residual block that halves the map, and an inception block with three branches."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.long, self.longer = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.shortcut = nn.Conv2d(4, 6, 1, 2)
        self.point, self.wide = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 3, 5, padding=2)
        self.tall = nn.Conv2d(6, 4, (3, 1), padding=(1, 0))

    def forward(self, x):
        return self.maps(x)[-1].amax((2, 3))

    def maps(self, x):
        stem = self.stem(x).relu()
        block = (self.longer(self.long(stem).relu()) + self.shortcut(stem)).relu()
        pooled = nn.functional.avg_pool2d(block, 3, 1, 1)
        return stem, block, torch.cat([self.wide(self.point(block).relu()), self.tall(block), pooled], 1)


def ones(mask, *kernel, **settings):
    return nn.functional.conv_transpose2d(mask, torch.ones(1, 1, *kernel), **settings)


def test_branching_network_equals_its_written_out_chain():
    model = randomise(Residual())
    image = torch.randn(2, 3, 16, 21, generator=torch.Generator().manual_seed(11))
    stem, block, joined = (kept.detach().clamp(min=0).mean(1, keepdim=True) for kept in model.maps(image))
    branches = (
        ones(ones(joined, 5, 5, padding=2), 1, 1),
        ones(joined, 3, 1, padding=(1, 0)),
        ones(joined, 3, 3, padding=1),
    )
    mask = sum(branches) / 3 * block
    long = ones(ones(mask, 3, 3, padding=1), 3, 3, stride=2, padding=1, output_padding=(1, 0))
    mask = (long + ones(mask, 1, 1, stride=2, output_padding=(1, 0))) / 2 * stem
    mask = ones(mask, 3, 3, padding=1)
    largest, least = mask.amax((1, 2, 3), True), mask.amin((1, 2, 3), True)
    result = VisualBackProp(model).explain(image)
    torch.testing.assert_close(result.mask, (mask - least) / (largest - least), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.log10_max, largest.flatten().double().log10(), atol=1e-5, rtol=0)
    assert torch.equal(result.output, model(image))


def features_of(model):
    return [m for m in model if not isinstance(m, nn.AdaptiveAvgPool2d | nn.Flatten | nn.Linear)]


@pytest.mark.long
def test_full_vgg11_equals_the_oracle():
    model = torchvision.models.vgg11(weights=None).features
    randomise(model)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    mask, log10_max = reference.paper_mask(reference.layers_of(model), image[0].double().numpy())
    result = VisualBackProp(model).explain(image)
    np.testing.assert_allclose(result.mask[0, 0].numpy(), mask, atol=1e-5)
    assert result.log10_max.item() == pytest.approx(log10_max, abs=1e-5)


@pytest.mark.parametrize("norm", [False, True])
def test_reference_masks_equal_the_oracle(norm):
    model = small_vgg(norm)
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    masks = VisualBackProp(model, preset="reference")(images)[:, 0].numpy()
    layers = reference.layers_of(features_of(model))
    expected = np.stack([reference.reference_mask(layers, image) for image in images.double().numpy()])
    np.testing.assert_allclose(masks, expected, atol=5e-6)
    levels = [np.floor(255 * mask + 0.5) for mask in (masks, expected)]
    difference = np.abs(levels[0] - levels[1])
    assert difference.max() <= 1
    assert (difference > 0).sum() <= difference.size / 10_000


def test_neighbours_never_change_a_bit_of_a_branching_network():
    model = randomise(Residual())
    model.wide = nn.Sequential(nn.AdaptiveAvgPool2d((3, 4)), nn.Upsample((8, 11), mode="bilinear"), model.wide)
    vbp = VisualBackProp(model)
    images = torch.randn(4, 3, 16, 21, generator=torch.Generator().manual_seed(12))
    expected = vbp(images)
    alone = torch.cat([vbp(image[None]) for image in images])
    torch.testing.assert_close(expected, alone, atol=1e-6, rtol=0)
    images[0], images[1], images[3] = torch.nan, 0, 1e30
    assert torch.equal(vbp(images)[2], expected[2])


def test_chosen_stages_are_multiplied_and_the_others_led_through():
    model = randomise(Residual())
    image = torch.randn(2, 3, 16, 21, generator=torch.Generator().manual_seed(11))
    vbp = VisualBackProp(model, stages=["relu", "cat"])
    assert [stage.name for stage in vbp.stages] == ["relu", "cat"]
    stem, _, joined = (kept.detach().clamp(min=0).mean(1, keepdim=True) for kept in model.maps(image))
    mask = (ones(joined, 5, 5, padding=2) + ones(joined, 3, 1, padding=(1, 0)) + ones(joined, 3, 3, padding=1)) / 3
    long = ones(ones(mask, 3, 3, padding=1), 3, 3, stride=2, padding=1, output_padding=(1, 0))
    mask = ones((long + ones(mask, 1, 1, stride=2, output_padding=(1, 0))) / 2 * stem, 3, 3, padding=1)
    largest, least = mask.amax((1, 2, 3), True), mask.amin((1, 2, 3), True)
    torch.testing.assert_close(vbp(image), (mask - least) / (largest - least), atol=1e-5, rtol=0)


def test_last_chosen_stage_ends_the_feature_part(vgg, images_BCHW):
    result = VisualBackProp(vgg, stages=["1"]).explain(images_BCHW)
    assert len(result.maps) == 1
    assert torch.equal(result.output, vgg(images_BCHW))


@pytest.mark.parametrize(
    ("stages", "reason"),
    [(["one"], "'one' is none of all, last, 1, 3, 6, 9"), (["last", "10"], "'10' is none"), ([], "at least one")],
)
def test_stages_that_are_not_there_are_named(vgg, stages, reason):
    with pytest.raises(UsageError, match=reason):
        VisualBackProp(vgg, stages=stages)


def test_last_goes_with_names(vgg):
    assert [stage.name for stage in VisualBackProp(vgg, stages="last").stages] == ["3", "6", "9"]
    assert [stage.name for stage in VisualBackProp(vgg, stages=["last", "1"]).stages] == ["1", "3", "6", "9"]
    assert [stage.name for stage in VisualBackProp(vgg, stages=["9", "last"]).stages] == ["3", "6", "9"]
    assert len(VisualBackProp(vgg, stages=["1", "all"]).stages) == 4


def test_stages_are_a_short_list_also_of_deep_networks():
    with torch.device("meta"):
        network = torchvision.models.densenet121(weights=None)
    assert (
        str(VisualBackProp(network, stages="last").stages[-2:]) == "(<Stage features.transition3.relu>, <Stage relu>)"
    )
    with torch.device("meta"):
        network = torchvision.models.resnet50(weights=None)
    with pytest.raises(UsageError, match="'layer3.relu' is none of") as caught:
        VisualBackProp(network, stages="layer3.relu")
    assert "layer3.0.relu" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_input_may_be_multiplied_in(vgg, images_BCHW):
    images = images_BCHW[..., :32]
    images[2] = -1
    plain = VisualBackProp(vgg, "reference").explain(images)
    result = VisualBackProp(vgg, "reference", multiply_input=True).explain(images)
    product = plain.mask[:2] * images[:2].mean(1, keepdim=True).clamp(min=0)
    torch.testing.assert_close(result.mask[:2], product / product.amax((1, 2, 3), True), atol=1e-6, rtol=0)
    assert result.flat.tolist() == [False, False, True]


def test_output_and_maps_come_from_the_same_pass(vgg, images_BCHW):
    result = VisualBackProp(vgg).explain(images_BCHW)
    assert torch.equal(result.output, vgg(images_BCHW))
    assert [tuple(kept.shape) for kept in result.maps] == [(3, 1, 32, 40)] * 2 + [(3, 1, 16, 20), (3, 1, 8, 10)]
    assert [kept.shape for kept in result.masks] == [kept.shape for kept in result.maps]
    assert torch.equal(result.maps[0], vgg[1](vgg[0](images_BCHW)).mean(1, keepdim=True))
    assert not result.mask.requires_grad


def test_feature_part_alone_gives_the_same_mask(vgg, images_BCHW):
    vbp = VisualBackProp(vgg)
    short = vbp.explain(images_BCHW, classify=False)
    assert short.output is None
    assert torch.equal(short.mask, vbp.explain(images_BCHW).mask)


def test_an_activation_that_a_later_layer_overwrites_is_averaged_before():
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Hardtanh(0, 0.1, inplace=True)))
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    (kept,) = VisualBackProp(model).explain(image).maps
    torch.testing.assert_close(kept, model[0](image).relu().mean(1, keepdim=True))


def test_negative_activations_are_clamped():
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.5)))
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    (kept,) = VisualBackProp(model).explain(image).maps
    torch.testing.assert_close(kept, model[0](image).relu().mean(1, keepdim=True))


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_batch_of_many_equals_batches_of_one(vgg, images_BCHW, preset):
    vbp = VisualBackProp(vgg, preset)
    alone = torch.cat([vbp(image[None]) for image in images_BCHW])
    torch.testing.assert_close(vbp(images_BCHW), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neighbours_never_change_a_bit(preset, layout, dtype):
    vbp = VisualBackProp(small_vgg().to(dtype, memory_format=layout), preset)
    generator = torch.Generator().manual_seed(8)
    first, others = torch.randn(1, 3, 40, 40, generator=generator), torch.randn(9, 3, 40, 40, generator=generator)
    others[1], others[2], others[4] = 0, torch.nan, 1e30

    def mask(position, neighbours):
        batch = torch.cat([neighbours[:position], first, neighbours[position:]]).to(dtype)
        return vbp(batch.contiguous(memory_format=layout))[position]

    expected = mask(0, others[:7])
    assert expected.max() == 1
    for position in range(8):
        assert torch.equal(mask(position, others[2:]), expected), position


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_flat_map_gives_zeros_and_says_so(vgg, preset):
    with torch.no_grad():
        for module in vgg:
            if isinstance(module, nn.Conv2d):
                module.bias.fill_(-1e-3)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    images[1] = 0
    result = VisualBackProp(vgg, preset).explain(images)
    assert result.flat.tolist() == [False, True, False]
    assert result.finite.all()
    assert result.mask.amax((1, 2, 3)).tolist() == [1, 0, 1]
    assert result.log10_max[1].item() == -torch.inf
    assert not any(kept.isnan().any() for kept in result.masks)


@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_infinity_costs_its_own_image_alone(vgg, images_BCHW, preset, bad):
    images = images_BCHW[:, :, :32, :32].clone()
    vbp = VisualBackProp(vgg, preset)
    expected = vbp(images)
    images[1, 0, 5, 5] = bad
    result = vbp.explain(images)
    assert result.finite.tolist() == [True, False, True]
    assert not result.flat.any()
    assert result.log10_max[1].isnan()
    assert result.mask[1].eq(0).all()
    assert torch.equal(result.mask[[0, 2]], expected[[0, 2]])


SETTINGS = [
    {}, {"preset": "reference"}, {"pooling": "merged"}, {"pooling": "unpool"}, {"multiply_input": True}, {"smooth": 2},
    {"stages": "last"}, {"stages": ["9"]}, {"preset": "reference", "stages": ["1"]}, {"target": 1},
]  # fmt: skip


def explained(network, images, target=None, **settings):
    return VisualBackProp(network, **settings).explain(images, target=target)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_on_the_way_stays_so(settings, bad, dtype):
    network = small_vgg()
    network[0].weight.data[:, 0, 1, 1] = bad
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(13))
    result = explained(network.to(dtype), images.to(dtype), **settings)
    assert not result.finite.any()
    assert not result.flat.any()
    assert result.mask.eq(0).all()
    assert result.log10_max.isnan().all()


def test_overflow_on_the_way_is_not_finite():
    network = small_vgg()
    network[0].weight.data *= 1e37
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(13))
    images[1] *= 1e-30
    for dtype in (torch.float32, torch.bfloat16):
        network[2].weight.data *= 1e4
        result = explained(network.to(dtype), images.to(dtype), stages=["9"])
        assert result.finite.tolist() == [False, True]


@pytest.mark.parametrize("join", [False, True])
def test_minus_infinity_is_no_negative_activation(join):
    """Max pooling would hide it from all that follows."""

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            x = x.mean(1, keepdim=True) + self.first(x) if join else nn.functional.leaky_relu(self.first(x))
            return self.last(nn.functional.max_pool2d(x, 4)).relu()

    network = randomise(Late())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(14))
    network.first.weight.data.zero_()[2, 0, 1, 1] = 1e30
    images[1, 0, 9, 9] = -1e30
    assert network(images).isfinite().all()
    assert VisualBackProp(network).explain(images).finite.tolist() == [True, False]


class NoFloat64(TorchDispatchMode):
    """A device such as Apple's, on which torch raises this for float64; bfloat16 is not everywhere there either."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and tensor.dtype in (torch.float64, torch.bfloat16):
                raise TypeError(
                    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
                )
        return found


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_device_needs_no_float64(vgg, images_BCHW, settings):
    images = images_BCHW[..., :32]
    images[1] = torch.nan
    expected = explained(vgg, images, **settings)
    with NoFloat64():
        result = explained(vgg, images, **settings)
    assert torch.equal(result.mask, expected.mask)
    assert torch.equal(result.finite, expected.finite)
    assert result.log10_max.dtype is torch.float64
    torch.testing.assert_close(result.log10_max, expected.log10_max, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.long
def test_large_activations_do_not_overflow():
    """Without biases, 1e4 times the input gives 1e4 times every map; the raw product of 8 maps would reach 1e39."""
    model = randomise(torchvision.models.vgg11(weights=None).features)
    for module in model:
        if isinstance(module, nn.Conv2d):
            module.bias.data.zero_()
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(10))
    plain, large = (VisualBackProp(model).explain(factor * image) for factor in (1, 1e4))
    torch.testing.assert_close(large.mask, plain.mask, atol=1e-5, rtol=0)
    assert large.log10_max.item() == pytest.approx(plain.log10_max.item() + 32, abs=1e-5)
    assert large.log10_max.item() > 38


@pytest.mark.parametrize("factor", [1e-6, 1e4])
def test_scale_of_the_maps_never_matters(vgg, images_BCHW, factor):
    vbp = VisualBackProp(vgg)
    result = vbp.explain(images_BCHW)
    scaled = visual_backprop([kept * factor for kept in result.maps], vbp.stages, (32, 40))
    torch.testing.assert_close(scaled.mask_N1HW, result.mask, atol=1e-6, rtol=0)
    shift = len(result.maps) * np.log10(factor)
    torch.testing.assert_close(scaled.log10_max_N, result.log10_max + shift, atol=1e-5, rtol=0)


def test_training_mode_is_left_for_the_pass_and_restored(images_BCHW):
    model = small_vgg(norm=True)
    model.insert(3, nn.Dropout(0.5))
    expected = VisualBackProp(model)(images_BCHW)
    statistics = model[1].running_mean.clone()
    model.train()
    model[1].eval()
    vbp = VisualBackProp(model)
    assert torch.equal(vbp(images_BCHW), expected)
    assert torch.equal(model[1].running_mean, statistics)
    assert [module.training for module in model] == [i != 1 for i in range(len(model))]


def test_nothing_stays_behind_after_success_or_failure(vgg, images_BCHW):
    vgg.train()
    before = {name: tensor.clone() for name, tensor in vgg.state_dict().items()}
    vbp = VisualBackProp(vgg)
    vbp(images_BCHW)
    vgg[-1].in_features, vgg[-1].weight = 7, nn.Parameter(torch.ones(5, 7))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        vbp.explain(images_BCHW)
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in vgg.modules()) == 0
    assert all(module.training for module in vgg.modules())
    del before["13.weight"]
    assert all(torch.equal(vgg.state_dict()[name], tensor) for name, tensor in before.items())


def test_small_or_misshapen_images_are_refused(vgg):
    vbp = VisualBackProp(vgg)
    assert vbp(torch.ones(1, 3, 4, 4)).shape == (1, 1, 4, 4)
    with pytest.raises(ImageError, match="3x9 pixels is too small"):
        vbp(torch.ones(1, 3, 3, 9))
    with pytest.raises(UsageError, match="4 dimensions"):
        vbp(torch.ones(3, 9, 9))


def test_a_layer_that_does_not_do_what_its_settings_say_is_noticed():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    network[0].register_forward_hook(lambda layer, inputs, output: nn.functional.pad(output, (1, 1, 1, 1)))
    vbp = VisualBackProp(network)
    with pytest.raises(ModelError, match=r"gives 1 the size \(9, 9\), but its layers' settings say \(7, 7\)"):
        vbp(torch.ones(1, 3, 9, 9))


def test_presets_are_checked(vgg):
    with pytest.raises(UsageError, match="'papers' is none of paper, reference"):
        VisualBackProp(vgg, "papers")
    with pytest.raises(ModelError, match="needs a first map of input size"):
        VisualBackProp(driving_like(), "reference")(torch.ones(1, 3, 64, 64))
    thirds = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(3), nn.Conv2d(4, 4, 1), nn.ReLU())
    with pytest.raises(ModelError, match="needs maps that halve"):
        VisualBackProp(thirds, "reference")(torch.ones(1, 3, 9, 9))
