"""Whether a map depends on what the network has learned: its convolutions are randomised from the top down.

This is the model parameter randomisation test (MPRT) of Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018
(arXiv 1810.03292): cascading, with the similarity to the trained network's map after each step. Low similarity is good:
a map that stays the same shows the image, and not the network.

Only convolutions are randomised, with the norms and other layers between them. The classifier behind the last one stays
as it is. VisualBackProp without a target never looks at it, so randomising it could not change a mask, and would only
fill the curve with ones. For methods that do look at it this test is easier to fail than the paper's.

Similarity has a bias of its own: maps of one kind are alike anyhow. So its chance level stands beside it: the map
against itself, moved (`vbp.evaluation.similarity.moved`).

Two variants of Hedström et al., A Fresh Look at Sanity Checks for Saliency Maps, 2024 (arXiv 2405.02383), are here too.
Smooth MPRT compares means over noisy copies of the image. Efficient MPRT compares no maps at all, but tells how much
more entropy the histogram of the random network's map has.

Shapes: B images, C channels, H, W height and width; S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from vbp.errors import ModelError
from vbp.evaluation.randomness import noisy
from vbp.evaluation.scores import Score
from vbp.evaluation.similarity import moved, spearman, ssim, stretched

Explain = Callable[[nn.Module, Tensor], NDArray[np.floating]]
"""A network and normalised pixels (B, C, H, W) -> maps (B, H, W). It must not keep anything of a network."""

STEPS, COPIES, NOISE = 8, 8, 0.1
_BINS = 100


class Way(NamedTuple):
    """How a metric is measured."""

    compare: Callable[[NDArray[np.floating], NDArray[np.floating]], float]
    steps: Literal["all", "last"]
    """The mean over all steps, or the last, in which all convolutions are random."""
    smooth: bool = False


def rise_of_entropy(before_HW: NDArray[np.floating], after_HW: NDArray[np.floating]) -> float:
    """The relative rise of the entropy of the map's histogram, of 100 equal bins over its own range.

    Hedström et al., efficient MPRT. NaN where the first entropy is 0, as a flat map's is, or a value is not finite.
    """
    before, after = _entropy(before_HW), _entropy(after_HW)
    return (after - before) / before if before else float("nan")


RANDOMISATION: Mapping[str, Way] = MappingProxyType(
    {
        "mprt-ssim": Way(ssim, "all"),
        "mprt-spearman": Way(spearman, "all"),
        "mprt-last-ssim": Way(ssim, "last"),
        "mprt-last-spearman": Way(spearman, "last"),
        "smooth-mprt-ssim": Way(ssim, "all", smooth=True),
        "smooth-mprt-spearman": Way(spearman, "all", smooth=True),
        "efficient-mprt": Way(rise_of_entropy, "last"),
    }
)


@dataclass(frozen=True)
class Randomised:
    """What randomisation says of one method's map of one image.

    Attributes:
        scores: in the order asked for.
        layers: at each step, the name of the lowest convolution that is random.
        curves: for each metric its comparison with the trained network's map, at each step.
    """

    scores: list[Score]
    layers: list[str]
    curves: dict[str, list[float]]


def cascade(network: nn.Module, *, steps: int = STEPS, seed: int = 500) -> Iterator[tuple[str, nn.Module]]:
    """Copies of the network, in which ever more convolutions are random, from the last to the first.

    A layer is randomised by its own ``reset_parameters``, and the norms behind a convolution together with it: their
    statistics would not fit. Its new weights depend on the seed and its place alone, so all copies share them.
    Parameters of a module without ``reset_parameters`` stay.

    Args:
        network: stays as it is.
        steps: how many copies at most; the layers are spread evenly over them.
        seed: of the weights; they are the same on every device.

    Yields:
        The name of the lowest convolution that is random, and the copy, in evaluation mode. In the last one all are.

    Raises:
        ModelError: there is no convolution to randomise.
    """
    twin = deepcopy(network).requires_grad_(False).eval()
    layers = _layers(twin)
    if not layers:
        raise ModelError(
            "the network has no convolution whose weights can be drawn anew: leave out the metrics of randomisation."
        )
    for run in np.array_split(np.arange(len(layers))[::-1], min(steps, len(layers))):
        for place in run:
            for module in layers[place][1]:
                _reset(module, seed + int(place))
        yield layers[run[-1]][0], deepcopy(twin)


def randomisation(
    network: nn.Module,
    images_BCHW: Tensor,
    explain: Explain,
    metrics: Collection[str] = tuple(RANDOMISATION),
    *,
    steps: int = STEPS,
    copies: int = COPIES,
    noise: float = NOISE,
    seed: int = 500,
) -> list[Randomised]:
    """One method, for each of the images.

    Args:
        network: the trained one; it is never changed.
        images_BCHW: normalised pixels.
        explain: the method.
        metrics: names in `RANDOMISATION`.
        steps: of the cascade.
        copies: noisy copies of each image for smooth MPRT; each costs as much as MPRT itself.
        noise: standard deviation of that noise, as a share of the range of the image's values.
        seed: of weights and noise.

    Raises:
        ModelError: there is no convolution to randomise.
    """
    ways = {metric: RANDOMISATION[metric] for metric in metrics}
    views = {
        smooth: noisy(images_BCHW, copies, noise, seed) if smooth else [images_BCHW]
        for smooth in {way.smooth for way in ways.values()}
    }

    def maps(of: nn.Module) -> dict[bool, NDArray[np.floating]]:
        return {smooth: np.mean([explain(of, view) for view in some], axis=0) for smooth, some in views.items()}

    trained = maps(network)
    layers, random = [], []
    for layer, twin in cascade(network, steps=steps, seed=seed):
        layers.append(layer)
        random.append(maps(twin))
    told = {True: f", {copies} copies with noise {noise}", False: ""}
    found = []
    for image in range(len(images_BCHW)):
        scores, curves = [], {}
        for metric, way in ways.items():
            before_HW = trained[way.smooth][image]
            curve = [way.compare(before_HW, step[way.smooth][image]) for step in random]
            settings = f"steps {len(layers)}{told[way.smooth]}, seed {seed}"
            value = float(np.mean(curve)) if way.steps == "all" else curve[-1]
            scores.append(Score(metric, value, way.compare(before_HW, moved(before_HW)), settings))
            curves[metric] = curve
        found.append(Randomised(scores, layers, curves))
    return found


def _entropy(saliency_HW: NDArray[np.floating]) -> float:
    if not np.isfinite(saliency_HW).all():
        return float("nan")
    shares = np.histogram(stretched(saliency_HW), _BINS, (0, 1))[0] / saliency_HW.size
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


def _layers(network: nn.Module) -> list[tuple[str, list[nn.Module]]]:
    """Each convolution with what follows it up to the next one, and with what comes before the first.

    Linear layers behind the last convolution are left out: they are the classifier.
    """
    drawn = [(name, module) for name, module in network.named_modules() if hasattr(module, "reset_parameters")]
    places = [place for place, (_, module) in enumerate(drawn) if isinstance(module, _ConvNd)]
    starts = [0, *places[1:]]
    ends = [*places[1:], len(drawn)]
    return [
        (
            drawn[place][0],
            [each for _, each in drawn[start:end] if end < len(drawn) or not isinstance(each, nn.Linear)],
        )
        for place, start, end in zip(places, starts, ends, strict=False)
    ]


def _reset(module: nn.Module, seed: int) -> None:
    place = next(module.parameters(), torch.zeros(0)).device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module.cpu().reset_parameters()  # type: ignore[operator]  # what drawn modules have
    module.to(place)
