"""Evaluate: the step of ``vbp evaluate`` between Explain and Encode, which scores masks and their rivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from vbp.columns import Contract
from vbp.errors import ImageError, UsageError
from vbp.evaluation.methods import METHODS
from vbp.evaluation.metrics import METRICS
from vbp.networks.preprocessing import IMAGENET
from vbp.pipeline.steps import FRAME, Batch, Explain, Step, frame_of, good_rows, is_missing, objects
from vbp.storage.ledger.scores import packed

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from vbp.evaluation.evaluator import Evaluator
    from vbp.networks.model import Model
    from vbp.pipeline.config import RunConfig
    from vbp.pipeline.evaluation import Evaluation
    from vbp.pipeline.recipe import Recipe
    from vbp.pipeline.truths import Truths

_THREADS = 8


class Evaluate(Step):
    """``pixels``, ``mask``, ``prediction`` and the truth -> ``scores``.

    Args:
        evaluator: applies methods and metrics.
        truths: where the objects are; None if nobody knows.
    """

    stage = "evaluate"
    columns = Contract.of("evaluate", {"key", "pixels", "mask", "width", "height", "seconds_explain", *FRAME})

    def __init__(self, evaluator: Evaluator, truths: Truths | None) -> None:
        self._evaluator, self._truths = evaluator, truths

    @override
    def run(self, batch: Batch) -> Batch:
        scores = objects([None] * len(batch["key"]))
        regions = self._regions(batch)
        for group in self._groups(batch):
            found = self._evaluator(
                np.stack([batch["pixels"][row] for row in group]),
                np.stack([batch["mask"][row] for row in group]),
                self._predicted(batch, group),
                [regions[row] for row in group],
            )
            for row, own in zip(group, found, strict=True):
                scores[row] = packed([*own, ("vbp", "seconds", float(batch["seconds_explain"][row]), None, "")])
        return batch | {"scores": scores}

    def _groups(self, batch: Batch) -> list[list[int]]:
        """Groups of rows with one size that have a mask."""
        selected = batch.get("selected", np.ones(len(batch["key"]), bool))
        rows = [row for row in good_rows(batch) if selected[row]]
        if batch["pixels"].dtype == object:
            return [[row] for row in rows]
        return [rows] if rows else []

    def _regions(self, batch: Batch) -> list[NDArray[np.bool_] | None]:
        """Where the object is in the frame of each row; None where nobody knows.  A wrong truth fails its row."""
        regions: list[NDArray[np.bool_] | None] = [None] * len(batch["key"])
        if self._truths is None:
            return regions
        rows = good_rows(batch)
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(lambda row: _answered(lambda: self._region(batch, row)), rows)
            for row, region in zip(rows, found, strict=True):
                if isinstance(region, ImageError):
                    self.fail(batch, row, region)
                else:
                    regions[row] = region
        return regions

    def _region(self, batch: Batch, row: int) -> NDArray[np.bool_] | None:
        assert self._truths is not None
        truth = self._truths.of(batch["key"][row])
        if truth is None:
            return None
        size = int(batch["width"][row]), int(batch["height"][row])
        height, width = batch["mask"][row].shape
        return truth.in_frame(size, frame_of(batch, row), (height, width))

    def _predicted(self, batch: Batch, group: list[int]) -> NDArray[np.int64] | None:
        found = [batch["prediction"][row] for row in group]
        return None if any(map(is_missing, found)) else np.array(found, np.int64)


def evaluated(recipe: Recipe, evaluation: Evaluation) -> Callable[[Batch], Batch]:
    """Explain and Evaluate as one step, because both need the network.

    The run's own masks are made as in every run; the methods get a copy of the network in float32.
    """
    import torch

    from vbp.evaluation.evaluator import Evaluator
    from vbp.evaluation.randomisation import cascade, steps_for
    from vbp.evaluation.saliencies import Saliencies
    from vbp.networks.models import load_model
    from vbp.pipeline.truths import Truths

    config, model = recipe.config, recipe.network
    if model is None:
        model = load_model(**recipe.config.network, code=recipe.code)
    explain = Explain(**recipe.with_network(model).explain_arguments())
    explainer = explain.explainer
    network = deepcopy(model.network).to(explainer.device)
    maps = Saliencies(network, config.method, seed=config.seed, has_classifier=model.num_classes is not None)

    def normalise(pixels_BHWC: NDArray[np.uint8]) -> torch.Tensor:
        return explainer.normalise(torch.as_tensor(pixels_BHWC))

    def classify(images_BCHW: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            probabilities_BK: torch.Tensor = network(images_BCHW).softmax(1)
        return probabilities_BK

    has_classifier = model.num_classes is not None
    methods, metrics = evaluation.chosen(has_classifier)
    changing = _that_change_networks(metrics)
    twins = cascade(network, steps=steps_for(changing), seed=config.seed) if changing else ()
    random = [
        (layer, Saliencies(twin, config.method, seed=config.seed, has_classifier=has_classifier))
        for layer, twin in twins
    ]
    shape = _shape(config, model)
    evaluator = Evaluator(
        maps,
        normalise,
        [name for name in methods if name not in evaluation.rivals or maps.refusal(name, shape) is None],
        metrics,
        random=random,
        classify=classify if has_classifier else None,
        seed=config.seed,
        batch_size=recipe.batch_size if config.fit != "original" else 1,
        costly_for=evaluation.costly_for,
    )
    truths = (
        Truths(evaluation.truth, recipe.truth_rule, config.storage_options, config.input) if evaluation.truth else None
    )
    evaluate = Evaluate(evaluator, truths)
    return lambda batch: evaluate(explain(batch))


def check_evaluation(config: RunConfig, model: Model) -> None:
    """Try every method on the network, before any work.

    Raises:
        UsageError: a package is missing; or a method or metric does not suit the network.
    """
    from vbp.evaluation.saliencies import Saliencies

    assert config.evaluation is not None
    if find_spec("scipy") is None:
        raise UsageError(f"vbp {config.command} needs more packages: pip install 'visualbackprop[eval]'.")
    from vbp.evaluation.randomisation import cascade

    has_classifier = model.num_classes is not None
    methods, metrics = config.evaluation.chosen(has_classifier)
    if _that_change_networks(metrics):
        cascade(model.network, steps=1)
    shape = _shape(config, model)
    saliencies = Saliencies(model.network, config.method, seed=config.seed, has_classifier=has_classifier)
    for method in methods:
        library = METHODS[method].library
        is_missing_package = library is not None and find_spec(library) is None
        if method in config.evaluation.rivals and not is_missing_package:
            continue
        if refusal := saliencies.refusal(method, shape):
            raise UsageError(f"--methods {method}: {refusal}")


def _shape(config: RunConfig, model: Model) -> tuple[int, int, int, int]:
    """Of the images on which methods are tried."""
    preprocessing = config.preprocessing(model.preprocessing)
    side = preprocessing.size or IMAGENET.size or 1
    return 2, preprocessing.depth, side, side


def _that_change_networks(metrics: Sequence[str]) -> list[str]:
    return [name for name in metrics if METRICS[name].family == "randomisation"]


def _answered(
    question: Callable[[], NDArray[np.bool_] | None],
) -> NDArray[np.bool_] | None | ImageError:
    """The answer, or the error that is the image's own."""
    try:
        return question()
    except ImageError as error:
        return error
