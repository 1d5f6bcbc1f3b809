"""Train the demo weights: a compact VGG16 whose averaged activations are concentrated on objects.

VisualBackProp multiplies the averaged ReLU maps of all 13 convolutions, whatever the class, so its mask is good if
the maps are low outside objects. So the features are trained with the **true object masks**:

- the last map classifies each of its cells (a class, or none);
- activity outside the object counts as loss, in every averaged map from the first pool on (`stray_loss`);
- the two maps before it see five pixels at most and cannot tell an object from its surroundings. Left alone they
  peak on outlines, and pull the mask's peak one pixel out of the object in one scene of six; so their contrast
  counts as loss (`contrast_loss`), which leaves the place to the deeper maps.

Half of the scenes hold distractors. The demo therefore shows what VisualBackProp makes of a network with well-placed
activations, on scenes that it has never seen; it is no evidence about networks trained on image labels alone.

The steps: the features with batch normalisation, on scenes of a smaller field of view; normalisation folded into
the convolutions; then the classifier, on frozen features of whole scenes, from image labels alone.

Shapes: B batch, K classes, C channels, H and W an image's height and width, h and w a map's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import VGG
from torchvision.models.vgg import make_layers

from vbp.demo.outlines import CLASSES
from vbp.demo.scenes import Scene, draw
from vbp.networks.preprocessing import IMAGENET

LABELS = sorted(CLASSES)
WIDTHS: list[int | str] = [8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 96, 96, 96, "M"]
"""Channels of VGG16's 13 convolutions, M for its pools: an eighth of the original's, somewhat more at the end."""
HIDDEN = 64
FIELD, WHOLE = 128, 224
"""Sides of the scenes that train the features and the classifier; objects have the same size in pixels in both."""

_MEAN = torch.tensor(IMAGENET.mean).view(1, 3, 1, 1)
_STD = torch.tensor(IMAGENET.std).view(1, 3, 1, 1)
_NO_CLASS, _IGNORED = len(LABELS), -100
_FINEST = 2  # maps before the first pool


@dataclass(frozen=True)
class Training:
    """Everything on which the weights depend, besides library versions and machine."""

    seed: int = 1
    """Seed of scenes, initial weights and order. Training uses the scenes of this seed and the next."""
    scenes: int = 10_000
    """Number of scenes that train the features."""
    epochs: int = 8
    """Number of epochs over these scenes."""
    classifier_scenes: int = 2000
    """Number of scenes that train the classifier."""
    fresh_scenes: int = 200
    """Number of scenes that measure the classifier's accuracy."""
    batch: int = 32
    """Scenes per step."""
    learning_rate: float = 3e-3
    """Highest learning rate of the one-cycle schedule."""
    stray_weight: float = 2.0
    """Weight of `stray_loss`, relative to the classification loss."""
    contrast_weight: float = 2.0
    """Weight of `contrast_loss` of the maps before the first pool."""


def compact_vgg16(*, batch_norm: bool = False) -> VGG:
    """The network of the demo with random weights, drawn as torchvision draws VGG's: VGG16 with fewer channels."""
    with torch.device("meta"):  # torchvision builds the classifier of the full width first
        network = VGG(nn.Sequential(), num_classes=len(LABELS), init_weights=False)
    network.features = make_layers(WIDTHS, batch_norm)
    network.classifier = nn.Sequential(
        nn.Linear(int(WIDTHS[-2]) * 49, HIDDEN),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(HIDDEN, len(LABELS)),
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return network


def train(training: Training, report: Callable[[str], None]) -> VGG:
    """Train from random weights and return the network in evaluation mode; ``report`` gets lines of progress."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = compact_vgg16(batch_norm=True)
        for epoch, loss in enumerate(train_features(network.features, training), start=1):
            report(f"features: epoch {epoch} of {training.epochs}, loss {loss:.3f}")
        plain = compact_vgg16()
        plain.features = fold_batch_norm(network.features)
        accuracy = train_classifier(plain, training)
    report(f"classifier: {accuracy:.1%} of {training.fresh_scenes} fresh scenes right")
    return plain.eval()


def save(network: VGG, path: Path) -> None:
    """Write the weights as float16 safetensors; the metadata ``classes`` lists the labels in order of the outputs."""
    tensors = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    path.write_bytes(safetensors.torch.save(tensors, metadata={"classes": json.dumps(LABELS)}))


def train_features(features: nn.Sequential, training: Training) -> Iterator[float]:
    """Train VGG features in place; yields the mean loss of each epoch."""
    scenes = [draw(training.seed, i, size=FIELD, unit=WHOLE, distractors=i % 2 == 1) for i in range(training.scenes)]
    pixels_BHWC, object_BHW, label_B = _stack(scenes)
    head = nn.Conv2d(int(WIDTHS[-2]), len(LABELS) + 1, 1)
    parameters = [*features.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, training.learning_rate, weight_decay=1e-2)
    steps = len(scenes) // training.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.learning_rate, total_steps=training.epochs * steps
    )
    features.train()
    for _ in range(training.epochs):
        total = 0.0
        for chosen in torch.split(torch.randperm(len(scenes))[: steps * training.batch], training.batch):
            pixels, truth_B1HW = _vary(pixels_BHWC[chosen], object_BHW[chosen])
            last_BChw, averages = _forward(features, _normalise(pixels))
            loss = F.cross_entropy(head(last_BChw), _cells(_coverage(truth_B1HW, last_BChw)[:, 0], label_B[chosen]))
            loss = loss + training.stray_weight * stray_loss(averages[_FINEST:], truth_B1HW)
            loss = loss + training.contrast_weight * contrast_loss(averages[:_FINEST])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        yield total / steps
    features.eval()


def stray_loss(averages: list[Tensor], truth_B1HW: Tensor) -> Tensor:
    """Loss of activity outside objects: -log of the share inside, mean over images and maps.

    Activity counts squared, since the peaks of the maps make the peaks of the mask; by image, so that a faint object
    counts as much as a bright one.

    Args:
        averages: averaged ReLU maps, each (B,1,h,w), not negative.
        truth_B1HW: 1 where the object is, 0 elsewhere; a map's cell counts as inside as far as it is covered.
    """
    losses = []
    for average in averages:
        energy = average.square()
        inside_B = (energy * _coverage(truth_B1HW, average)).sum((1, 2, 3))
        share_B = inside_B / energy.sum((1, 2, 3)).clamp_min(1e-12)
        losses.append(-share_B.clamp_min(1e-4).log().mean())
    return torch.stack(losses).mean()


def contrast_loss(averages: list[Tensor]) -> Tensor:
    """Variance over squared mean of each averaged ReLU map (B,1,h,w), mean over images and maps; 0 if all are even."""
    losses = [(a.var((1, 2, 3)) / a.mean((1, 2, 3)).square().clamp_min(1e-12)).mean() for a in averages]
    return torch.stack(losses).mean()


def fold_batch_norm(features: nn.Sequential) -> nn.Sequential:
    """The same function in evaluation mode, each normalisation folded into the convolution before it."""
    layers: list[nn.Module] = []
    for layer in features.eval():
        if isinstance(layer, nn.BatchNorm2d) and isinstance(layers[-1], nn.Conv2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def train_classifier(network: VGG, training: Training) -> float:
    """Train the classifier on the frozen features' mean over positions; returns the accuracy on fresh scenes.

    Its first layer is then spread over VGG's 7x7 positions, every position with the same weights, which is the
    same mean: 49 times fewer weights to learn, and an object counts alike wherever it lies.
    """
    inputs_BC, label_B = _mean_features(network, training.seed + 1, range(training.classifier_scenes))
    small = nn.Linear(inputs_BC.shape[1], HIDDEN)
    layers = nn.Sequential(small, *(layer for layer in network.classifier[1:] if not isinstance(layer, nn.Dropout)))
    optimizer = torch.optim.AdamW(layers.parameters(), 3e-3, weight_decay=1e-2)
    for _ in range(60):
        for chosen in torch.split(torch.randperm(len(label_B)), 64):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(layers(inputs_BC[chosen]), label_B[chosen]))
            optimizer.step()
    with torch.no_grad():
        network.classifier[0].weight.copy_(small.weight.repeat_interleave(49, dim=1) / 49)
        network.classifier[0].bias.copy_(small.bias)
        fresh = range(training.classifier_scenes, training.classifier_scenes + training.fresh_scenes)
        inputs_BC, label_B = _mean_features(network, training.seed + 1, fresh)
        return float((layers(inputs_BC).argmax(1) == label_B).float().mean())


@torch.no_grad()
def _mean_features(network: VGG, seed: int, indices: range) -> tuple[Tensor, Tensor]:
    means, labels = [], []
    for start in range(0, len(indices), 50):
        scenes = [draw(seed, i, size=WHOLE, distractors=i % 2 == 1) for i in indices[start : start + 50]]
        pixels_BHWC, _, label_B = _stack(scenes)
        means.append(network.features(_normalise(pixels_BHWC)).mean((2, 3)))
        labels.append(label_B)
    return torch.cat(means), torch.cat(labels)


def _stack(scenes: list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels uint8 (B,H,W,3), objects bool (B,H,W) and class indices (B) of scenes."""
    return (
        torch.from_numpy(np.stack([scene.pixels_HWC for scene in scenes])),
        torch.from_numpy(np.stack([scene.object_HW for scene in scenes])),
        torch.tensor([LABELS.index(scene.label) for scene in scenes]),
    )


def _normalise(pixels_BHWC: Tensor) -> Tensor:
    images_BCHW = (pixels_BHWC.permute(0, 3, 1, 2).float() / 255 - _MEAN) / _STD
    return images_BCHW.contiguous(memory_format=torch.channels_last)


def _vary(pixels_BHWC: Tensor, object_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror and transpose a batch, each at times, and shuffle its colours; objects come back as floats (B,1,H,W)."""
    if torch.rand(()) < 0.5:
        pixels_BHWC, object_BHW = pixels_BHWC.flip(2), object_BHW.flip(2)
    if torch.rand(()) < 0.5:
        pixels_BHWC, object_BHW = pixels_BHWC.transpose(1, 2), object_BHW.transpose(1, 2)
    return pixels_BHWC[..., torch.randperm(3)], object_BHW[:, None].float()


def _forward(features: nn.Sequential, images_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The last pool's output, and the mean over channels of every ReLU's output, each (B,1,h,w)."""
    maps, averages = images_BCHW, []
    for layer in features:
        maps = layer(maps)
        if isinstance(layer, nn.ReLU):
            averages.append(maps.mean(1, keepdim=True))
    return maps, averages


def _coverage(truth_B1HW: Tensor, maps: Tensor) -> Tensor:
    """How much of each cell of the maps the object covers, 0 to 1, (B,1,h,w)."""
    height, width = maps.shape[-2:]
    return F.adaptive_avg_pool2d(truth_B1HW, (height, width))


def _cells(coverage_Bhw: Tensor, label_B: Tensor) -> Tensor:
    """Target of each cell (B,h,w): the class where the object covers 15 % of it, ignored where less, none where 0."""
    target_Bhw = torch.full(coverage_Bhw.shape, _NO_CLASS)
    target_Bhw[coverage_Bhw > 0] = _IGNORED
    return torch.where(coverage_Bhw > 0.15, label_B[:, None, None], target_Bhw)
