"""The pass for CUDA, on a CPU: what cuDNN and cuBLAS do there is done by torch here, all else is the pass's own."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from vbp.explainer import true_float32
from vbp.saliency import VisualBackProp
from vbp.saliency.forward import ForwardPass, channel_mean, last_tap, positive_mean
from vbp.saliency.prepared import cuda
from vbp.saliency.prepared.cuda import FusedConvolution, PoolingWithoutIndices, fewer_kernels
from vbp.saliency.prepared.switches import Switches

from ..conftest import randomise, small_vgg

CPU = torch.device("cpu")


def as_cudnn(sum_NCHW):
    """cuDNN's ReLU, which gives 0 for NaN."""
    return sum_NCHW.relu().nan_to_num(nan=0, posinf=torch.inf)


def convolution_relu(map_NCHW, weight, bias, stride, padding, dilation, groups):
    return as_cudnn(F.conv2d(map_NCHW, weight, bias, stride, padding, dilation, groups))


def convolution_add_relu(map_NCHW, weight, other_NCHW, alpha, bias, stride, padding, dilation, groups):
    return as_cudnn(F.conv2d(map_NCHW, weight, bias, stride, padding, dilation, groups) + alpha * other_NCHW)


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    """cuDNN's and cuBLAS's operations; each test asks anew what they can do."""
    monkeypatch.setattr(torch, "cudnn_convolution_relu", convolution_relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", convolution_add_relu)
    monkeypatch.setattr(cuda, "_wide_product", lambda first, second: first.float() @ second.float())
    for asked in (cuda.can_fuse, cuda.can_multiply_wide, cuda._say_once):
        asked.cache_clear()
    yield
    for asked in (cuda.can_fuse, cuda.can_multiply_wide, cuda._say_once):
        asked.cache_clear()


def prepared(model, switches=None, **settings):
    """As `VisualBackProp.prepare` does it for a CUDA device."""
    vbp = VisualBackProp(model, **settings)
    vbp._faster = lambda forward: fewer_kernels(forward, CPU, switches or Switches())
    vbp._forward = vbp._faster(vbp._forward)
    vbp._in_few_kernels = (switches or Switches()).descent
    vbp.stages = vbp._quickened(vbp.stages)
    return vbp


def layers(vbp, kind):
    return [module for module in vbp._forward.model.modules() if isinstance(module, kind)]


def both(network, images, **settings):
    with torch.inference_mode():
        return VisualBackProp(network, **settings).explain(images.clone()), prepared(network, **settings).explain(
            images
        )


def random_images(*shape, seed=4):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


FAMILIES = {  # number of fused convolutions, with an addition, and pools without indices
    "vgg11_bn": (8, 0, 4),
    "resnet18": (17, 8, 0),
    "densenet121": (59, 0, 0),
    "mobilenet_v3_small": (11, 0, 0),
    "efficientnet_b0": (0, 0, 0),
    "shufflenet_v2_x0_5": (37, 0, 0),
    "convnext_tiny": (0, 0, 0),
    "googlenet": (57, 0, 4),
    "inception_v3": (94, 0, 4),
    "alexnet": (5, 0, 2),
}


def network_of(name):
    aux = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return randomise(torchvision.models.get_model(name, weights=None, **aux))


@pytest.mark.long
@pytest.mark.parametrize("name", [*(name for name in FAMILIES if name not in ("vgg11_bn", "alexnet")), "small"])
def test_masks_of_all_families_are_the_same(name):
    """Of VGG a small one: the large ones' classifiers take seconds to fill."""
    network = small_vgg(norm=True) if name == "small" else network_of(name)
    images = random_images(2, 3, 96, 96)
    expected, found = both(network, images)
    spread = expected.output.std().item()
    np.testing.assert_allclose(found.mask, expected.mask, atol=1e-4)
    np.testing.assert_allclose(found.log10_max, expected.log10_max, atol=1e-4)
    np.testing.assert_allclose(found.output, expected.output, atol=1e-4 * spread, rtol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_replaced_in_each_family(name, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda tensor: torch.ones(()))
    aux = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None, **aux).eval()
    fast = prepared(network)
    fused = {node.target: len(node.args) for node in fast._forward.graph.nodes if "fused_" in str(node.target)}
    counts = len(fused), sum(inputs == 2 for inputs in fused.values()), len(layers(fast, PoolingWithoutIndices))
    assert counts == FAMILIES[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_batch_norm_every_bit_stays(dtype):
    network = randomise(torchvision.models.vgg11(weights=None).features).to(dtype, memory_format=torch.channels_last)
    images = random_images(2, 3, 64, 64).to(dtype).contiguous(memory_format=torch.channels_last)
    expected, found = both(network, images)
    assert torch.equal(found.output, expected.output)
    torch.testing.assert_close(found.maps, expected.maps, rtol=1e-5, atol=0)


def test_maps_stay_channels_last():
    seen = []
    network = small_vgg(norm=True).to(torch.bfloat16, memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    fast = prepared(network)
    for layer in [*layers(fast, FusedConvolution), *layers(fast, PoolingWithoutIndices)]:
        layer.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
    with torch.inference_mode():
        fast(random_images(2, 3, 32, 32).to(torch.bfloat16, memory_format=torch.channels_last))
    assert len(seen) == 2 * (4 + 2)
    assert all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in seen)


class Block(nn.Module):
    """A block that adds its input as a network of one's own may do it."""

    def __init__(self, join):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.join = join

    def forward(self, images):
        below = F.relu(self.first(images))
        return self.join(self.norm(self.second(below)), below)


def added_in_place(branch, below):
    branch.add_(below)
    return F.relu(branch)  # the trace knows that this is the sum


def changed_in_place(branch, below):
    """`below` is the sum when it is read again."""
    below.add_(branch)
    return F.relu(below) + below


def changed_after_the_sum(branch, below):
    total = branch + below
    below.sub_(0.5)
    return F.relu(total) + below


def changed_before_the_relu(branch, below):
    below.sub_(0.5)
    return F.relu(branch) + below


JOINS = {  # fused convolutions
    "sum": (lambda branch, below: F.relu(branch + below), 2),
    "turned": (lambda branch, below: torch.relu(torch.add(below, branch)), 2),
    "in place": (lambda branch, below: F.relu(branch.add_(below)), 2),
    "in place, under its old name": (added_in_place, 2),
    "doubled": (lambda branch, below: F.relu(branch + branch), 1),
    "weighted": (lambda branch, below: F.relu(torch.add(branch, below, alpha=0.5)), 1),
    "with a number": (lambda branch, below: F.relu(branch + 1.0), 1),
    "without ReLU": (lambda branch, below: branch + below, 1),
    "read twice": (lambda branch, below: F.relu(branch + below) + branch, 1),
    "broadcast": (lambda branch, below: F.relu(branch + below.mean((2, 3), keepdim=True)), 2),
    "of another type": (lambda branch, below: F.relu(branch + below.to(torch.float64)), 2),
    "changed in place": (changed_in_place, 1),
    "changed after the sum": (changed_after_the_sum, 1),
    "changed before the ReLU": (changed_before_the_relu, 1),
}


@pytest.mark.parametrize("name", JOINS)
def test_sums_are_fused_where_that_is_the_same(name):
    join, count = JOINS[name]
    network = randomise(Block(join))
    expected, found = both(network, random_images(2, 3, 16, 16))
    assert len(layers(prepared(network), FusedConvolution)) == count
    np.testing.assert_allclose(found.output, expected.output, atol=1e-5)
    np.testing.assert_allclose(found.mask, expected.mask, atol=1e-5)


class Poolings(nn.Module):
    """Every kind of max pooling."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.layer = nn.MaxPool2d(2)
        self.padded = nn.MaxPool2d(3, 2, padding=1)
        self.spread = nn.MaxPool2d(2, 1, dilation=2)
        self.over = nn.MaxPool2d((3, 2), 2, ceil_mode=True)
        self.last = nn.Conv2d(8, 8, 1)

    def forward(self, images):
        x = self.over(self.spread(self.padded(self.layer(self.first(images)))))
        return torch.relu(self.last(F.max_pool2d(x, 3, stride=(1, 2))))


def test_pooling_gives_the_same_values_without_indices():
    network = randomise(Poolings()).to(memory_format=torch.channels_last)
    fast = prepared(network, Switches(fused=False, means=False))
    assert len(layers(fast, PoolingWithoutIndices)) == 3
    for rows, columns in ((75, 80), (74, 83), (64, 64)):
        images = random_images(2, 3, rows, columns).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            assert torch.equal(fast.explain(images).output, VisualBackProp(network).explain(images).output)


@pytest.mark.parametrize("ceil_mode", [True, False])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_pooling_passes_on_what_is_not_finite(value, ceil_mode):
    map_NCHW = random_images(2, 8, 9, 11)
    map_NCHW[0, :, 3:5, 4:7] = value
    found = PoolingWithoutIndices((3, 3), (2, 2), ceil_mode)(map_NCHW)
    expected = F.max_pool2d(map_NCHW, 3, 2, ceil_mode=ceil_mode)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_a_pooling_with_hooks_or_indices_is_left_alone():
    network = small_vgg()
    network[4].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert len(layers(prepared(network), PoolingWithoutIndices)) == 1
    expected, found = both(network, random_images(1, 3, 32, 32))
    np.testing.assert_allclose(found.mask, expected.mask, atol=1e-5)


@pytest.mark.parametrize("channels", [8, 24, 64, 58])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_an_average_by_a_product_is_the_average(channels, memory_format):
    map_NCHW = random_images(2, channels, 5, 7).bfloat16().contiguous(memory_format=memory_format)
    exact = map_NCHW.double()
    for found, expected in (
        (cuda.product_mean(map_NCHW), exact),
        (cuda.positive_product_mean(map_NCHW), exact.clamp(min=0)),
        (cuda.positive_product_mean_of_activation(map_NCHW), exact.clamp(min=0)),
    ):
        assert found.dtype is torch.float32
        torch.testing.assert_close(found.double(), expected.mean(1, keepdim=True), rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_average_by_a_product_hides_nothing(value):
    map_NCHW = random_images(2, 16, 5, 7).bfloat16().contiguous(memory_format=torch.channels_last)
    map_NCHW[1, 3, 2, 4] = value
    for mean in (cuda.product_mean, cuda.positive_product_mean):
        expected = torch.ones(2, 1, 5, 7, dtype=torch.bool)
        expected[1, 0, 2, 4] = False
        assert torch.equal(mean(map_NCHW).isfinite(), expected)


def overflowing(model):
    """The first convolution exceeds the largest number."""
    with torch.no_grad():
        next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d)).weight.mul_(1e38).abs_()
    return model


def test_an_overflow_is_noticed_although_cudnn_hides_nan():
    images = random_images(2, 3, 32, 32).abs() * 100
    images[1] = 0
    expected, found = both(overflowing(small_vgg()), images)
    assert expected.finite.tolist() == found.finite.tolist() == [False, True]


@pytest.mark.parametrize("place", ["layer1.0.conv1.weight", "layer4.1.bn1.running_mean"])
def test_weights_that_are_not_finite_are_not_hidden(place):
    network = randomise(torchvision.models.resnet18(weights=None))
    network.state_dict()[place].fill_(torch.nan)
    fast = prepared(network)
    assert not layers(fast, FusedConvolution)
    assert not fast.explain(random_images(1, 3, 64, 64)).finite.any()


@pytest.mark.parametrize("off", ["fused", "pools", "means"])
def test_each_switch_leaves_its_part_as_it_was(off):
    network = small_vgg().to(torch.bfloat16)
    fast = prepared(network, Switches(**{off: False}))
    targets = {node.target for node in fast._forward.graph.nodes}
    done = {
        "fused": bool(layers(fast, FusedConvolution)),
        "pools": bool(layers(fast, PoolingWithoutIndices)),
        "means": cuda.product_mean in targets,
    }
    assert done == {name: name != off for name in done}


def test_float32_keeps_its_averages():
    targets = {node.target for node in prepared(small_vgg())._forward.graph.nodes}
    assert channel_mean in targets
    assert cuda.product_mean not in targets


def missing(*_, **__):
    raise AttributeError("module 'torch' has no attribute 'cudnn_convolution_relu'")


def reading_memory(map_NCHW, weight, bias, *geometry):
    """Adds 0 times what lies in new memory."""
    return convolution_relu(map_NCHW, weight, bias, *geometry) + 0 * torch.full((1,), torch.nan)


@pytest.mark.parametrize(("broken", "said"), [(missing, "has no attribute"), (reading_memory, "not close")])
def test_where_cudnn_cannot_fuse_nothing_is_fused_and_the_log_says_why(broken, said, monkeypatch, caplog):
    monkeypatch.setattr(torch, "cudnn_convolution_relu", broken)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", missing)
    fast = prepared(small_vgg())
    assert not layers(fast, FusedConvolution)
    assert layers(fast, PoolingWithoutIndices)
    prepared(small_vgg())
    alone, *others = caplog.messages
    assert alone.startswith("convolutions are not fused alone: ")
    assert said in alone
    assert [line.partition(":")[0] for line in others] == ["convolutions are not fused with zeros"]


@pytest.mark.parametrize("broken", [missing, reading_memory])
def test_where_cudnn_fuses_only_with_another_map_zeros_are_added(broken, monkeypatch, caplog):
    added = []

    def noted(map_NCHW, weight, other_NCHW, alpha, bias, *geometry):
        added.append((tuple(other_NCHW.shape[2:]), alpha))
        return convolution_add_relu(map_NCHW, weight, other_NCHW, alpha, bias, *geometry)

    monkeypatch.setattr(torch, "cudnn_convolution_relu", broken)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", noted)
    network = randomise(torchvision.models.resnet18(weights=None))
    expected, found = both(network, random_images(2, 3, 64, 64))
    np.testing.assert_allclose(found.mask, expected.mask, atol=1e-4)
    assert [line.partition(":")[0] for line in caplog.messages] == ["convolutions are not fused alone"]
    # torch keeps cuDNN's plans by the factor, but not by the shape of what is added
    whole, zeros = ({alpha for shape, alpha in added if (shape == (1, 1)) is is_zeros} for is_zeros in (False, True))
    assert (whole, len(zeros)) == ({1.0}, 1)
    assert not whole & zeros


def test_where_cudnn_adds_no_map_the_others_are_fused(monkeypatch, caplog):
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", missing)
    network = randomise(torchvision.models.resnet18(weights=None))
    expected, found = both(network, random_images(2, 3, 64, 64))
    np.testing.assert_allclose(found.mask, expected.mask, atol=1e-4)
    assert len(layers(prepared(network), FusedConvolution)) == 9
    assert [line.partition(":")[0] for line in caplog.messages] == ["convolutions are not fused with another map"]


def test_without_wide_products_averages_stay(monkeypatch, caplog):
    monkeypatch.undo()
    cuda.can_multiply_wide.cache_clear()
    assert not cuda.can_multiply_wide(CPU, torch.bfloat16)
    assert caplog.messages[0].startswith("averages are no products: ")


def test_a_convolution_that_cudnn_refuses_is_computed_plainly_and_said_once(monkeypatch, caplog):
    network = small_vgg()
    fast = prepared(network)
    calls = []

    def refusing(*arguments):
        calls.append(1)
        raise RuntimeError("Unable to find an engine to execute this computation")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", refusing)
    images = random_images(2, 3, 32, 32)
    with torch.inference_mode():
        expected = VisualBackProp(network)(images)
        for _ in range(2):
            np.testing.assert_allclose(fast(images), expected, atol=1e-6)
    assert len(calls) == 4
    assert caplog.messages == ["a convolution is not fused: Unable to find an engine to execute this computation"]


def test_a_convolution_that_fails_plainly_too_is_fused_again_afterwards(monkeypatch):
    """Where memory is short, cuDNN finds no engine for either."""
    network = small_vgg()
    fast, calls, full = prepared(network), [], [True]
    work, plain = convolution_relu, F.conv2d

    def fused(*arguments):
        calls.append(1)
        return work(*arguments) if not full else refusing()

    def refusing(*_):
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    images = random_images(2, 3, 32, 32)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", fused)
    with torch.inference_mode():
        expected = VisualBackProp(network)(images)
        monkeypatch.setattr(F, "conv2d", refusing)
        with pytest.raises(RuntimeError, match="unable to find"):
            fast(images)
        monkeypatch.setattr(F, "conv2d", plain)
        full.clear()
        np.testing.assert_allclose(fast(images), expected, atol=1e-6)
    assert len(calls) == 1 + 4


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no engine"), RuntimeError("CUDNN_STATUS_ALLOC_FAILED")])
def test_other_errors_are_not_swallowed(error, monkeypatch):
    fast = prepared(small_vgg())

    def failing(*_):
        raise error

    monkeypatch.setattr(torch, "cudnn_convolution_relu", failing)
    with torch.inference_mode(), pytest.raises(type(error)):
        fast(random_images(1, 3, 32, 32))


def test_nodes_that_are_read_stay_and_the_network_is_not_changed():
    network = small_vgg(norm=True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    forward = VisualBackProp(network)._forward
    found = fewer_kernels(forward, CPU, Switches())
    assert isinstance(found, ForwardPass)
    assert last_tap(found.graph).name == last_tap(forward.graph).name
    assert len(found.graph.nodes) == len(forward.graph.nodes) - 8
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_trying_takes_no_random_numbers():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    assert all(cuda.can_fuse(CPU, torch.float32, way) for way in cuda.WAYS)
    assert torch.equal(torch.rand(1), expected)


def test_gradients_flow_behind_the_last_stage():
    network = randomise(torchvision.models.squeezenet1_1(weights=None))
    images = random_images(2, 3, 96, 96)
    expected = VisualBackProp(network, stages="last")(images, target=3)
    np.testing.assert_allclose(prepared(network, stages="last")(images, target=3), expected, atol=1e-5)


def test_a_norm_in_float32_before_the_first_convolution_changes_no_type():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 16, 3).bfloat16(), nn.ReLU()).eval()
    targets = [node.target for node in prepared(network)._forward.graph.nodes]
    assert cuda.product_mean in targets


def test_signed_averages_are_products_too():
    """GELU has no chain of its own."""
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GELU(), nn.Conv2d(16, 16, 3), nn.SiLU()).to(torch.bfloat16)
    targets = [node.target for node in prepared(network)._forward.graph.nodes]
    assert positive_mean not in targets
    assert {cuda.positive_product_mean, cuda.positive_product_mean_of_activation} <= set(targets)


@pytest.mark.parametrize("pooling", ["exact", "merged", "unpool"])
def test_masks_are_the_same_with_every_pooling(pooling):
    expected, found = both(small_vgg(norm=True), random_images(2, 3, 37, 45), pooling=pooling)
    np.testing.assert_allclose(found.mask, expected.mask, atol=1e-5)


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_fuses_and_gives_the_same_masks(dtype, monkeypatch):
    monkeypatch.undo()
    device = torch.device("cuda", torch.cuda.current_device())
    for asked in (cuda.can_fuse, cuda.can_multiply_wide):
        asked.cache_clear()
    assert all(cuda.can_fuse(device, dtype, way) for way in cuda.WAYS)
    assert dtype is torch.float32 or cuda.can_multiply_wide(device, dtype)
    network = small_vgg(norm=True).to(device, dtype, memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    images = random_images(4, 3, 64, 64).to(device, dtype).contiguous(memory_format=torch.channels_last)
    plain, fast = VisualBackProp(network), VisualBackProp(network)
    fast.prepare(device, "float32")
    with torch.inference_mode(), true_float32(device):
        expected, found = plain.explain(images.clone()), fast.explain(images.clone())
    torch.testing.assert_close(found.mask, expected.mask, rtol=0, atol=1e-5 if dtype is torch.float32 else 0.1)
