"""Whether a map depends on what the network has learned: its convolutions are randomised from the top down.

This is the model parameter randomisation test (MPRT) of Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018
(arXiv 1810.03292): cascading, with the similarity to the trained network's map after each step. Low similarity is good:
a map that stays the same shows the image, and not the network.

Only convolutions are randomised, with the norms and other layers between them. The classifier behind the last one stays
as it is. VisualBackProp without a target never looks at it, so randomising it could not change a mask, and would only
fill the curve with ones. For methods that do look at it this test is easier to fail than the paper's.

Similarity has a bias of its own: maps of one kind are alike anyhow. So its chance level stands beside it: the map
against itself, turned (`vbp.evaluation.similarity.turned`).

Two variants of Hedström et al., A Fresh Look at Sanity Checks for Saliency Maps, 2024 (arXiv 2405.02383), are here too.
Smooth MPRT compares means over noisy copies of the image. Efficient MPRT compares no maps at all, but tells how much
more entropy the histogram of the random network's map has.

Shapes: B images, H, W height and width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
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
from vbp.evaluation.similarity import spearman, ssim, stretched, turned
from vbp.evaluation.stability import Explain
from vbp.evaluation.twin import random_twin, redraw

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


def steps_for(metrics: Collection[str]) -> int:
    """Steps of `cascade` that these metrics look at: one suffices where all of them look at the last alone."""
    return STEPS if any(RANDOMISATION[metric].steps == "all" for metric in metrics) else 1


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


def cascade(network: nn.Module, *, steps: int = STEPS, seed: int = 500) -> list[tuple[str, nn.Module]]:
    """Copies of the network, in which ever more convolutions are random, from the last to the first.

    Layers draw as those of the random twin do (`vbp.evaluation.twin.redraw`). The norms behind a convolution draw
    together with it, because their statistics would not fit. The new weights depend on the seed and the layer's place
    alone. The copies share all tensors that are equal, with each other and with the network, so together they need
    little more memory than one.

    Args:
        network: stays as it is.
        steps: how many copies at most; the layers are spread evenly over them.
        seed: of the weights; they are the same on every device.

    Returns:
        For each step the name of the lowest convolution that is random, and the copy, in evaluation mode. In the last
        one all are.

    Raises:
        ModelError: there is no convolution to randomise, or one that cannot be.
    """
    layers = len(_layers(network))
    if not layers:
        raise ModelError(
            "the network has no convolution whose weights can be drawn anew: leave out the metrics of randomisation."
        )
    random_twin(network, seed)  # refuses a network that would stay partly trained
    copies = []
    for run in np.array_split(np.arange(layers)[::-1], min(steps, layers)):
        network = _with_random(network, run.tolist(), seed)
        copies.append((_layers(network)[run[-1]][0], network))
    return copies


def randomisation(
    pixels_BHWC: NDArray[np.uint8],
    trained: Explain,
    random: Sequence[tuple[str, Explain]],
    metrics: Collection[str] = tuple(RANDOMISATION),
    *,
    copies: int = COPIES,
    noise: float = NOISE,
    seed: int = 500,
) -> list[Randomised]:
    """One method, for each of the images.

    Args:
        pixels_BHWC: uint8.
        trained: the method for the trained network.
        random: the method for each copy of `cascade`, with the name of its lowest random layer.
        metrics: names in `RANDOMISATION`.
        copies: noisy copies of each image for smooth MPRT; each costs as much as MPRT itself.
        noise: standard deviation of that noise, as a share of 255.
        seed: of that noise, together with the image.
    """
    ways = {metric: RANDOMISATION[metric] for metric in metrics}
    views = {
        smooth: noisy(pixels_BHWC, copies, noise, seed) if smooth else [pixels_BHWC]
        for smooth in {way.smooth for way in ways.values()}
    }

    def maps(explain: Explain) -> dict[bool, NDArray[np.floating]]:
        return {smooth: np.mean([explain(view) for view in some], axis=0) for smooth, some in views.items()}

    before, steps = maps(trained), [maps(explain) for _, explain in random]
    layers = [layer for layer, _ in random]
    told = {True: f", {copies} copies with noise {noise}", False: ""}
    found = []
    for image in range(len(pixels_BHWC)):
        scores, curves = [], {}
        for metric, way in ways.items():
            before_HW = before[way.smooth][image]
            curve = [way.compare(before_HW, step[way.smooth][image]) for step in steps]
            settings = f"steps {len(layers)}{told[way.smooth]}, seed {seed}"
            value = float(np.mean(curve)) if way.steps == "all" else curve[-1]
            scores.append(Score(metric, value, way.compare(before_HW, turned(before_HW)), settings))
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


def _with_random(network: nn.Module, places: Sequence[int], seed: int) -> nn.Module:
    """A copy in which some layers are random, and everything else is shared."""
    layers = _layers(network)
    drawn = {id(tensor) for place in places for module in layers[place][1] for tensor in _tensors(module)}
    twin = deepcopy(network, {id(tensor): tensor for tensor in _tensors(network) if id(tensor) not in drawn}).eval()
    for place in places:
        for module in _layers(twin)[place][1]:
            _reset(module, seed + place)
    return twin


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _reset(module: nn.Module, seed: int) -> None:
    """On the CPU, so that the numbers are the same on every device; in place."""
    device = next((tensor.device for tensor in _tensors(module)), torch.device("cpu"))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        redraw(module.cpu())
    module.to(device)
