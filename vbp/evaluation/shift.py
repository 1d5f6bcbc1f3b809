"""Whether moving what a map marks changes the network's answer: the shift test of VisualBackProp's authors.

Bojarski et al., Explaining How a Deep Neural Network Trained with End-to-End Learning Steers a Car, 2017 (arXiv
1704.07911): the marked pixels are moved sideways, and the change of the answer is compared with that when everything
else is moved. Their region is the mask above a threshold, grown by 30 pixels. It covers half of the image and more, and
then its area alone explains the change: on the authors' network and photos, moving a region of the same size elsewhere
changed the answer as much.

So here two things are different. The region has the same area for every map: the brightest part of the smoothed map.
And the level of chance is the change when the same region, moved round by half the image, is shifted in the same way:
the same area and outline, in a place of which the map says nothing.

The region's old place is filled in from what is around it, as ROAD does.

Shapes: C, H, W channels, height and width; S shifts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from vbp.evaluation.imputation import impute
from vbp.evaluation.perturbation import Classify
from vbp.evaluation.removal import Losses, ranks
from vbp.evaluation.scores import Score

SHARE = 0.2
DISTANCES = (-20 / 224, -10 / 224, 10 / 224, 20 / 224)
"""The authors' 10 and 20 pixels, to either side, as shares of the shorter side; at 224 pixels they are the same."""
_SMOOTH = 8 / 224


def shift(
    saliency_HW: NDArray[np.floating],
    pixels_CHW: Tensor,
    target: int,
    classify: Classify,
    *,
    share: float = SHARE,
    seed: int = 500,
) -> Score:
    """The mean change of the answer, beside that of the same region elsewhere.

    Args:
        saliency_HW: finite values, in the frame of the image.
        pixels_CHW: the image as the network takes it.
        target: which of the network's outputs is watched.
        classify: gives probabilities, or any outputs, such as a steering angle.
        share: the region's share of the image.
        seed: for the order of equal values.

    Raises:
        ValueError: the map has another shape, or values that are not finite.
    """
    if saliency_HW.shape != pixels_CHW.shape[1:] or not np.isfinite(saliency_HW).all():
        size = tuple(pixels_CHW.shape)
        raise ValueError(f"saliency_HW {saliency_HW.shape} must have finite values, and height and width of {size}.")
    image_CHW = pixels_CHW.detach().cpu().numpy().astype(np.float32)
    side = min(saliency_HW.shape)
    smooth_HW = gaussian_filter(np.asarray(saliency_HW, np.float64), side * _SMOOTH)
    region_HW = brightest(smooth_HW, share, Losses(image_CHW, seed).noise_HW)
    columns = [round(side * distance) for distance in DISTANCES]
    pictures = [image_CHW]
    for each_HW in (region_HW, elsewhere(region_HW)):
        pictures += shifted(image_CHW, each_HW, columns)
    batch_BCHW = torch.from_numpy(np.stack(pictures)).to(pixels_CHW)
    whole, *answers = classify(batch_BCHW)[:, target].double().cpu().numpy()
    marked, other = np.abs(np.array(answers) - whole).reshape(2, -1).mean(1)
    settings = f"share {share}, shifts {' '.join(map(str, columns))}, seed {seed}"
    return Score("shift", float(marked), float(other), settings)


def brightest(saliency_HW: NDArray[np.floating], share: float, ties_HW: NDArray[np.floating]) -> NDArray[np.bool_]:
    """The brightest pixels, of a share of the image; of equally bright ones those with the higher `ties_HW`."""
    pixels_HW = np.arange(saliency_HW.size).reshape(saliency_HW.shape)
    return ranks(saliency_HW, pixels_HW, ties_HW) < round(share * saliency_HW.size)


def elsewhere(region_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The region, moved round by half its height and width: as far from its place as can be."""
    height, width = region_HW.shape
    return np.roll(region_HW, (height // 2, width // 2), (0, 1))


def shifted(
    image_CHW: NDArray[np.float32], region_HW: NDArray[np.bool_], columns: Iterable[int]
) -> list[NDArray[np.float32]]:
    """The image with a region moved to the right by some columns, in front of what is there.

    The region's old place is filled in from around it, whole: else parts of it would stay behind.
    """
    without_CHW = impute(image_CHW, region_HW)
    pictures = []
    for distance in columns:
        source_W = np.arange(region_HW.shape[1]) - distance
        inside_W = (source_W >= 0) & (source_W < region_HW.shape[1])
        source_W = source_W.clip(0, region_HW.shape[1] - 1)
        covered_HW = region_HW[:, source_W] & inside_W
        pictures.append(np.where(covered_HW, image_CHW[:, :, source_W], without_CHW))
    return pictures
