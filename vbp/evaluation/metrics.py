"""The table of metrics: what each measures, what it needs, which end of its range is the good one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Literal

Family = Literal["localisation", "perturbation", "randomisation", "stability", "shift", "sparseness"]
Need = Literal["truth", "classifier", "network"]
"""``truth``: where the object is. ``classifier``: probabilities of classes for any pixels. ``network``: a method that
makes a map of any pixels, or of a changed network."""


@dataclass(frozen=True)
class Metric:
    """One line of the table.

    Attributes:
        name: as in `vbp.choices.METRIC_NAMES`, in `Score.metric` and on the command line.
        family: the module of ``vbp.evaluation`` that computes it.
        needs: what it needs besides the map; empty: nothing.
        higher_is_better: by the paper.
        lowest: least possible value; may be minus infinity.
        highest: greatest possible value; may be infinity.
        meaning: the value in a few words, to follow "the value is".
        paper: authors, where and when it was published, and the metric's name therein where it is another one.
    """

    name: str
    family: Family
    needs: frozenset[Need]
    higher_is_better: bool
    lowest: float
    highest: float
    meaning: str
    paper: str


def _localisation(name: str, meaning: str, paper: str) -> Metric:
    return Metric(name, "localisation", frozenset({"truth"}), True, 0.0, 1.0, meaning, paper)


def _perturbation(
    name: str, meaning: str, paper: str, higher_is_better: bool, lowest: float = 0.0, highest: float = 1.0
) -> Metric:
    return Metric(name, "perturbation", frozenset({"classifier"}), higher_is_better, lowest, highest, meaning, paper)


def _randomisation(name: str, likeness: Literal["structural similarity", "rank correlation"]) -> Metric:
    step = "once all convolutions are random" if "last" in name else "as convolutions become random from the top down"
    maps = "the mean map of noisy copies" if "smooth" in name else "the map"
    meaning = f"the {likeness} of {maps} to that of the trained network {step}"
    paper = _FRESH_LOOK if "smooth" in name else _SANITY_CHECKS
    return Metric(name, "randomisation", frozenset({"network"}), False, -1.0, 1.0, meaning, paper)


def _sensitivity(name: str, which: str) -> Metric:
    meaning = f"the {which} relative change of the map among noisy copies of the image"
    paper = "Yeh et al., On the (In)fidelity and Sensitivity of Explanations, NeurIPS 2019 (arXiv 1901.09392)"
    return Metric(name, "stability", frozenset({"network"}), False, 0.0, inf, meaning, paper)


_CLEVR_XAI = "Arras et al., CLEVR-XAI, Information Fusion 81, 2022 (arXiv 2003.07258)"
_RISE = "Petsiuk et al., RISE, BMVC 2018 (arXiv 1806.07421)"
_ROAD = (
    "Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML 2022 (arXiv 2202.00449)"
)
_AOPC = "Samek et al., Evaluating the Visualization of What a DNN Has Learned, TNNLS 2017 (arXiv 1509.06321)"
_IROF = "Rieger and Hansen, IROF, ICLR workshops 2020 (arXiv 2003.08747)"
_SANITY_CHECKS = "Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018 (arXiv 1810.03292)"
_FRESH_LOOK = "Hedström et al., A Fresh Look at Sanity Checks for Saliency Maps, 2024 (arXiv 2405.02383)"

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            _localisation(
                "pointing-game",
                "1 where the map's peak lies inside the object, 0 elsewhere",
                "Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016 (arXiv 1608.00507)",
            ),
            _localisation(
                "energy-inside",
                "the share of the stretched map that lies inside the object",
                "Wang et al., Score-CAM, CVPR workshops 2020 (arXiv 1910.01279), energy-based pointing game",
            ),
            _localisation(
                "rank-accuracy",
                "the share of the K brightest pixels that lie inside the object, K being its area",
                f"{_CLEVR_XAI}, relevance rank accuracy",
            ),
            _localisation(
                "mass-accuracy",
                "the share of the map's sum that lies inside the object",
                f"{_CLEVR_XAI}, relevance mass accuracy",
            ),
            _perturbation(
                "insertion",
                "the mean probability of the class while pixels of a blurred image become sharp, brightest first",
                _RISE,
                higher_is_better=True,
            ),
            _perturbation(
                "deletion",
                "the mean probability of the class while pixels are set to 0, brightest first",
                _RISE,
                higher_is_better=False,
            ),
            _perturbation(
                "road",
                "road-least minus road-most",
                f"{_ROAD}; the difference: Blücher et al., TMLR 2024 (arXiv 2401.06654)",
                higher_is_better=True,
                lowest=-1.0,
            ),
            _perturbation(
                "road-most",
                "the mean probability of the class while pixels are filled in from their neighbours, brightest first",
                f"{_ROAD}, MoRF",
                higher_is_better=False,
            ),
            _perturbation(
                "road-least",
                "the mean probability of the class while pixels are filled in from their neighbours, darkest first",
                f"{_ROAD}, LeRF",
                higher_is_better=True,
            ),
            _perturbation(
                "pixel-flipping",
                "the mean loss of probability of the class while squares get random colours, brightest first",
                f"{_AOPC}, MoRF",
                higher_is_better=True,
                lowest=-1.0,
            ),
            _perturbation(
                "pixel-flipping-least",
                "the mean loss of probability of the class while squares get random colours, darkest first",
                f"{_AOPC}, LeRF",
                higher_is_better=False,
                lowest=-1.0,
            ),
            _perturbation(
                "irof",
                "the mean lost share of the class's probability while regions get the mean colour, brightest first",
                _IROF,
                higher_is_better=True,
                lowest=-inf,
            ),
            _perturbation(
                "irof-least",
                "the mean lost share of the class's probability while regions get the mean colour, darkest first",
                f"{_IROF}, in the other order",
                higher_is_better=False,
                lowest=-inf,
            ),
            _randomisation("mprt-ssim", "structural similarity"),
            _randomisation("mprt-spearman", "rank correlation"),
            _randomisation("mprt-last-ssim", "structural similarity"),
            _randomisation("mprt-last-spearman", "rank correlation"),
            _randomisation("smooth-mprt-ssim", "structural similarity"),
            _randomisation("smooth-mprt-spearman", "rank correlation"),
            Metric(
                name="efficient-mprt",
                family="randomisation",
                needs=frozenset({"network"}),
                higher_is_better=True,
                lowest=-1.0,
                highest=inf,
                meaning="the relative rise of the entropy of the map's values once all convolutions are random",
                paper=_FRESH_LOOK,
            ),
            Metric(
                name="noise-ssim",
                family="stability",
                needs=frozenset({"network"}),
                higher_is_better=True,
                lowest=-1.0,
                highest=1.0,
                meaning="the mean structural similarity of the map to those of noisy copies of the image",
                paper="Wang et al., Image Quality Assessment, TIP 2004; as used by the driving field",
            ),
            _sensitivity("avg-sensitivity", "mean"),
            _sensitivity("max-sensitivity", "greatest"),
            Metric(
                name="shift",
                family="shift",
                needs=frozenset({"classifier"}),
                higher_is_better=True,
                lowest=0.0,
                highest=inf,
                meaning="the mean change of the answer when the brightest fifth of the image is moved sideways",
                paper=(
                    "Bojarski et al., Explaining How a Deep Neural Network Trained with End-to-End Learning Steers a "
                    "Car, 2017 (arXiv 1704.07911)"
                ),
            ),
            Metric(
                name="sparseness",
                family="sparseness",
                needs=frozenset(),
                higher_is_better=True,
                lowest=0.0,
                highest=1.0,
                meaning="the Gini index of the map: 0 for a flat one, about 1 for a single bright pixel",
                paper="Chalasani et al., Concise Explanations of Neural Networks, ICML 2020 (arXiv 1810.06583)",
            ),
            Metric(
                name="complexity",
                family="sparseness",
                needs=frozenset(),
                higher_is_better=False,
                lowest=0.0,
                highest=inf,
                meaning="the entropy of the map's shares of its sum: 0 for a single bright pixel",
                paper=(
                    "Bhatt et al., Evaluating and Aggregating Feature-based Model Explanations, IJCAI 2020 "
                    "(arXiv 2005.00631)"
                ),
            ),
        )
    }
)
"""All metrics by name, in the order of `vbp.choices.METRIC_NAMES`."""
