"""Variants of the method, chosen on one half of the images and judged on the other: writes docs/variants.md.

``python -m vbp.evidence.variants docs/variants.md --data FOLDER``; FOLDER as for ``vbp.evidence.quality``.  Whoever
tries many variants finds one that is better by chance.  So the halves are told apart by the hash of the key: the first
chooses one variant, and only what that one does on the second is evidence.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from vbp.evaluation.localisation import localisation
from vbp.evaluation.own import as_run, last_stages, reference
from vbp.evaluation.statistics import Difference, Mean, corrected, differences, means
from vbp.evaluation.subject import Batch, Subject
from vbp.evaluation.variants import VARIANTS
from vbp.evidence.page import table
from vbp.evidence.quality import LOCALISATION, Case, cases
from vbp.evidence.timing import machine
from vbp.explainer import Explainer
from vbp.images.decode import decode
from vbp.networks.models import load_model
from vbp.pipeline.truths import Truths, found_rule
from vbp.saliency.method import Method
from vbp.storage.files import Folder

CASES = ("demo", "raccoon-vgg16", "raccoon-lite0")
PAPER = "paper"
MAKERS = {PAPER: as_run, "reference": reference, "stages last": last_stages, **VARIANTS}
MEANINGS = {
    PAPER: "the method as published, the default",
    "reference": "as devansh20la/VisualBackprop computes it (`--preset reference`); for networks like VGG",
    "stages last": "of the last stage of each resolution (`--stages last`)",
    "without-floor": "each averaged map without its least value before it is multiplied",
    "geometric-mean": "the geometric mean of the maps instead of their product",
    "minus-twin": "the mask minus that of the same network with random weights, each with a sum of 1",
}
LIKE_VGG = ("reference",)
LEVEL = 0.05

Scores = NDArray[np.float64]
"""(I, V): scores of images and variants."""


@dataclass(frozen=True)
class Judged:
    """What the variants do on one case.

    Attributes:
        case: the network and its images.
        variants: the names, in the order of the columns.
        scores: for each half (0 chooses, 1 judges) and metric the scores.
    """

    case: Case
    variants: Sequence[str]
    scores: Mapping[tuple[int, str], Scores]

    def means(self, half: int, metric: str) -> list[Mean]:
        """The mean of each variant."""
        return means(self.scores[half, metric], self.variants)

    def differences(self, half: int, metric: str) -> list[Difference]:
        """Each variant beside the paper's."""
        return differences(self.scores[half, metric], self.variants, PAPER)


def half_of(key: str) -> int:
    """0 or 1, by the hash of the key, so that it depends on nothing else."""
    return hashlib.sha256(key.encode()).digest()[0] % 2


def judged(case: Case, images: int | None) -> Judged:
    """The scores of all variants on a case, on its first `images` in the order of their keys; None: all of the case."""
    assert case.truth is not None
    settings = dict(case.settings)
    model = load_model(settings.get("model", "vgg16"), settings["weights"])
    explainer = Explainer(model, precision="float32")
    subject = Subject(model.network, Method(), seed=500)
    variants = [name for name in MAKERS if name not in LIKE_VGG or "model" not in settings]
    saliencies = {name: MAKERS[name](subject) for name in variants}
    folder = Folder(case.input)
    keys = [key for key in folder.list() if key.lower().endswith((".jpg", ".png"))][: images or case.images]
    truths = Truths(str(case.truth), found_rule(str(case.truth), keys[:16]))
    scores: dict[tuple[int, str], list[list[float]]] = {(half, each): [] for half in (0, 1) for each in LOCALISATION}
    for key in keys:
        picture, truth = decode(folder.read(key), fit="stretch", preprocessing=explainer.preprocessing), truths.of(key)
        if truth is None:
            continue
        shape = picture.pixels_HWC.shape[:2]
        region_HW = truth.in_frame((picture.width, picture.height), picture.frame, shape)
        pixels_BHWC = picture.pixels_HWC[None]
        batch = Batch(explainer.normalise(torch.as_tensor(pixels_BHWC)), pixels_BHWC, None)
        found = [localisation(np.asarray(saliencies[name](batch))[0], region_HW, LOCALISATION) for name in variants]
        for number, metric in enumerate(LOCALISATION):
            scores[half_of(key), metric].append([each[number].value for each in found])
    return Judged(case, variants, {name: np.array(rows) for name, rows in scores.items()})


def choice(found: Sequence[Judged]) -> tuple[str, Mapping[str, float]]:
    """The variant with the best mean rank over cases and metrics on the first halves, and all mean ranks.

    Only variants that suit every network are ranked; `paper` is one of them.
    """
    names = [name for name in MAKERS if all(name in each.variants for each in found)]
    places = [
        rankdata([-_mean_of(each, 0, metric, name) for name in names]) for each in found for metric in LOCALISATION
    ]
    ranks = dict(zip(names, np.mean(places, axis=0).tolist(), strict=True))
    return min(ranks, key=lambda name: ranks[name]), ranks


def _mean_of(found: Judged, half: int, metric: str, name: str) -> float:
    return next(each.mean for each in found.means(half, metric) if each.method == name)


def verdicts(found: Sequence[Judged], name: str) -> dict[tuple[str, str], Difference]:
    """What the chosen variant does beside the paper's on the second halves, by case and metric; corrected for all."""
    asked = [(each, metric) for each in found for metric in LOCALISATION]
    told = [
        difference for each, metric in asked for difference in each.differences(1, metric) if difference.method == name
    ]
    names = [(each.case.name, metric) for each, metric in asked]
    return dict(zip(names, corrected(told), strict=True)) if told else {}


def page(found: Sequence[Judged]) -> Iterator[str]:
    """The page, section by section."""
    told = ", ".join(f"{name} {value}" for name, value in machine("cpu").items() if name in ("cpu", "torch"))
    yield "# Variants of the method"
    yield (
        "Made by `make evidence` (`python -m vbp.evidence.variants`). Is there a way to compute masks that finds\n"
        "objects better than the paper's? Whoever tries many variants finds one that is better by chance. So half of\n"
        "the images, by the hash of their names, choose one variant; the other half judge it."
    )
    yield f"{told}, float32; images stretched to 224x224. Intervals are 95 % (bootstrap over images)."
    yield "\n".join(["| variant | the mask is |", "|---|---|", *(f"| {n} | {MEANINGS[n]} |" for n in MAKERS)])
    name, ranks = choice(found)
    yield "## The choice, on the first halves"
    yield table(
        ["variant", "mean rank", *(f"{each.case.name}: {metric}" for each in found for metric in LOCALISATION)],
        [
            [
                f"**{variant}**" if variant == name else variant,
                f"{ranks[variant]:.1f}" if variant in ranks else "",
                *(
                    f"{_mean_of(each, 0, metric, variant):.2f}" if variant in each.variants else ""
                    for each in found
                    for metric in LOCALISATION
                ),
            ]
            for variant in MAKERS
        ],
    )
    yield "Mean values; ranks are over all columns, of the variants that suit every network."
    yield "## The judgement, on the second halves"
    if name == PAPER:
        yield "The first halves chose `paper`, so there is nothing to judge."
        return
    differences_of = verdicts(found, name)
    yield table(
        ["network and images", "metric", "images", PAPER, name, "difference", "p, corrected", "verdict"],
        [_row(each, metric, differences_of[each.case.name, metric]) for each in found for metric in LOCALISATION],
    )
    yield conclusion(name, list(differences_of.values()))


def _row(found: Judged, metric: str, told: Difference) -> list[str]:
    return [
        found.case.title,
        metric,
        str(told.images),
        *(f"{_mean_of(found, 1, metric, name):.2f}" for name in (PAPER, told.method)),
        f"{told.mean:+.3f} ({told.low:+.3f} to {told.high:+.3f})",
        f"{told.p_corrected:.3f}",
        _verdict(told),
    ]


def _verdict(told: Difference) -> str:
    if told.p_corrected is None or told.p_corrected > LEVEL:
        return "alike"
    return "better" if told.mean > 0 else "worse"


def conclusion(name: str, told: Sequence[Difference]) -> str:
    """What follows for the default."""
    better, alike, worse = (sum(_verdict(each) == word for each in told) for word in ("better", "alike", "worse"))
    tally = f"`{name}` is better in {better} of {len(told)} comparisons, alike in {alike}, worse in {worse}"
    if better == len(told):
        return f"{tally}: overwhelming."
    return f"{tally}. That is not overwhelming, so `paper` stays the default."


def main() -> None:
    """Try the variants and write the page."""
    parser = argparse.ArgumentParser(prog="python -m vbp.evidence.variants", description=__doc__)
    parser.add_argument("file", type=Path, help="the page to write")
    parser.add_argument("--data", type=Path, help="photographs and weights, as for vbp.evidence.quality")
    parser.add_argument("--work", type=Path, default=Path("build/evidence"), help="where scenes are kept")
    parser.add_argument("--images", type=int, help="the first so many of each case")
    options = parser.parse_args()
    there, _ = cases(options.data, options.work)
    found = [judged(case, options.images) for case in there if case.name in CASES]
    options.file.write_text("\n\n".join(page(found)) + "\n")


if __name__ == "__main__":
    main()
