"""Draws the pictures of docs/how-to/detectors.md: ``python -m docs.generate.detectors`` writes them to docs/pictures.

The package carries no trained detector or segmenter, so this trains two small ones on generated scenes, whose objects
are known, for some minutes on a CPU. It shows scenes of ``vbp demo``, none of which they were trained on. The detector
is torchvision's RetinaNet over the demo's VGG16, which stays as it is; the U-Net starts from random weights.

Shapes: B batch, H, W = height and width in pixels, 3 = RGB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNetHead

from docs.generate.pictures import Picture, grey, grid, save, scene_of
from vbp.demo.outlines import CLASSES
from vbp.demo.scenes import Scene, draw
from vbp.images.overlay import heat
from vbp.networks.models import load_model
from vbp.networks.preprocessing import IMAGENET
from vbp.saliency import VisualBackProp

SHOWN = (10, 9, 23, 6)
"""Numbers of the demo's scenes; all but the first hold distractors, which belong to no class."""
SEED = 7
"""Of the scenes for training; those of the demo have another one."""
SCENES, BATCH = 480, 16
FIELD, WHOLE = 128, 224
"""Sides of the scenes for training and of those shown; objects have the same size in pixels in both."""
EPOCHS = {"detector": 8, "segmenter": 10}
LABELS = sorted(CLASSES)
QUALITY = 55
"""Of the pictures' files: noise takes many bytes."""
_MEAN, _STD = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))


class UNet(nn.Module):
    """Two resolutions down, two up, with the maps of the way down joined on the way up; one logit a pixel."""

    def __init__(self, width: int = 8) -> None:
        """Build it with random weights; `width` is the number of channels of its first maps."""
        super().__init__()
        self.down1, self.down2 = _block(3, width), _block(width, 2 * width)
        self.bottom = nn.Sequential(*(_block(channels * width, 4 * width) for channels in (2, 4, 4)))
        self.up2, self.up1 = _block(6 * width, 2 * width), _block(3 * width, width)
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Whether a pixel belongs to the object, as logits (B, 1, H, W)."""
        fine = self.down1(images_B3HW)
        middle = self.down2(F.max_pool2d(fine, 2))
        deep = self.bottom(F.max_pool2d(middle, 4))
        middle = self.up2(torch.cat([middle, F.interpolate(deep, middle.shape[2:])], 1))
        fine = self.up1(torch.cat([fine, F.interpolate(middle, fine.shape[2:])], 1))
        logits: Tensor = self.last(fine)
        return logits


def _block(below: int, above: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(below, above, 3, padding=1, bias=False), nn.BatchNorm2d(above), nn.ReLU())


def retinanet() -> RetinaNet:
    """Torchvision's RetinaNet with a feature pyramid over the demo's VGG16; the pyramid and the head are random."""
    features = load_model("vgg16", "demo").network.get_submodule("features")
    backbone = BackboneWithFPN(features, {"22": "fine", "29": "coarse"}, [64, 96], 64)
    anchors = AnchorGenerator(tuple((side,) for side in (56, 80, 112)), ((1.0,),) * 3)
    classes = len(LABELS) + 1
    head = RetinaNetHead(64, 1, classes, norm_layer=partial(nn.GroupNorm, 8))  # learns sooner than without norms
    settings = {"anchor_generator": anchors, "head": head}
    return RetinaNet(backbone, classes, WHOLE, WHOLE, IMAGENET.mean, IMAGENET.std, **settings)


def train_detector(scenes: Sequence[Scene]) -> RetinaNet:
    """A RetinaNet trained on the objects' boxes."""
    torch.manual_seed(0)
    detector = retinanet().train()
    detector.transform.min_size = (FIELD,)
    optimizer, schedule = _steps(detector, "detector")
    for chosen in _batches(len(scenes), EPOCHS["detector"]):
        targets = [
            {"boxes": box_of(scenes[i]), "labels": torch.tensor([LABELS.index(scenes[i].label) + 1])} for i in chosen
        ]
        losses = detector([_pixels(scenes[i]) for i in chosen], targets)
        _step(sum(losses.values()), optimizer, schedule)
    detector.transform.min_size = (WHOLE,)
    return detector.eval()


def train_segmenter(scenes: Sequence[Scene]) -> UNet:
    """A U-Net trained on the objects' pixels."""
    torch.manual_seed(0)
    segmenter = UNet().train()
    optimizer, schedule = _steps(segmenter, "segmenter")
    pixels_B3HW = torch.stack([_pixels(scene) for scene in scenes])
    object_B1HW = torch.stack([torch.from_numpy(scene.object_HW)[None] for scene in scenes]).float()
    for chosen in _batches(len(scenes), EPOCHS["segmenter"]):
        logits = segmenter(_normalised(pixels_B3HW[chosen]))
        truth = object_B1HW[chosen]
        shown = logits.sigmoid()
        overlap = 2 * (shown * truth).sum() / (shown.sum() + truth.sum())
        loss = F.binary_cross_entropy_with_logits(logits, truth) + 1 - overlap
        _step(loss, optimizer, schedule)
    return segmenter.eval()


def _steps(network: nn.Module, kind: str) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW([each for each in network.parameters() if each.requires_grad], 3e-3)
    count = EPOCHS[kind] * (SCENES // BATCH)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=count)


def _step(loss: Tensor, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    schedule.step()


def _batches(count: int, epochs: int) -> Iterator[list[int]]:
    for _ in range(epochs):
        yield from (chosen.tolist() for chosen in torch.split(torch.randperm(count), BATCH))


def _pixels(scene: Scene) -> Tensor:
    return torch.from_numpy(scene.pixels_HWC).permute(2, 0, 1).float() / 255


def _normalised(pixels_B3HW: Tensor) -> Tensor:
    return (pixels_B3HW - _MEAN) / _STD


def box_of(scene: Scene) -> Tensor:
    """Left, top, right and bottom of the object, (1, 4)."""
    rows, columns = np.nonzero(scene.object_HW)
    return torch.tensor([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]).float()


def with_box(pixels_HWC: Picture, found: dict[str, Tensor]) -> Picture:
    """The image with the box of which a detector is surest, and its label: a scene has one object."""
    surest = int(found["scores"].argmax())
    left, top, right, bottom = found["boxes"][surest].tolist()
    name = LABELS[int(found["labels"][surest]) - 1]
    picture = Image.fromarray(pixels_HWC)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((left, top, right, bottom), outline="yellow", width=3)
    pen.text((left, max(top - 26, 0)), name, "yellow", font_size=20, stroke_width=2, stroke_fill="black")
    return np.asarray(picture)


def training_scenes(distractors: bool) -> list[Scene]:
    """Scenes of a smaller field of view; every second one with distractors, or none."""
    return [draw(SEED, i, size=FIELD, unit=WHOLE, distractors=distractors and i % 2 == 1) for i in range(SCENES)]


def draw_detector(detector: RetinaNet, scenes: Sequence[Scene]) -> None:
    """What a detector finds in scenes, and the masks of its backbone."""
    images = [_pixels(scene) for scene in scenes]
    with torch.inference_mode():
        results = detector(images)
    boxes = [with_box(scene.pixels_HWC, found) for scene, found in zip(scenes, results, strict=True)]
    masks = overlays(detector.get_submodule("backbone.body"), scenes)
    save("detector.webp", grid([boxes, masks], left=("surest box", "backbone.body")), QUALITY)


def draw_segmenter(segmenter: UNet, scenes: Sequence[Scene]) -> None:
    """What a segmenter finds in scenes, and its masks."""
    with torch.inference_mode():
        found_BHW = segmenter(_normalised(torch.stack([_pixels(scene) for scene in scenes])))[:, 0].sigmoid()
    rows = [[scene.pixels_HWC for scene in scenes], [grey(one) for one in found_BHW.numpy()]]
    save("segmenter.webp", grid([*rows, overlays(segmenter, scenes)], left=("image", "found", "mask")), QUALITY)


def overlays(network: nn.Module, scenes: Sequence[Scene]) -> list[Picture]:
    """The masks of scenes, laid over them."""
    masks_B1HW = VisualBackProp(network)(_normalised(torch.stack([_pixels(scene) for scene in scenes])))
    return [heat(scene.pixels_HWC, mask_1HW[0].numpy()) for scene, mask_1HW in zip(scenes, masks_B1HW, strict=True)]


def main() -> None:
    """Train both and draw the pictures."""
    shown = [scene_of(number) for number in SHOWN]
    draw_detector(train_detector(training_scenes(distractors=True)), shown)
    draw_segmenter(train_segmenter(training_scenes(distractors=False)), shown)


if __name__ == "__main__":
    main()
