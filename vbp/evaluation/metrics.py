"""The table of metrics: what each measures, what it needs, which end of its range is the good one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Family = Literal["localisation"]
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


_CLEVR_XAI = "Arras et al., CLEVR-XAI, Information Fusion 81, 2022 (arXiv 2003.07258)"

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
        )
    }
)
"""All metrics by name, in the order of `vbp.choices.METRIC_NAMES`."""
