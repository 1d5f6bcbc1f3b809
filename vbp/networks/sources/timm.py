"""timm's networks: ``timm:NAME``, with timm's own weights, random ones or a checkpoint; the extra ``timm``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from torch import nn

from vbp.choices import Channels, Interpolation, choices_of
from vbp.errors import ModelError, UsageError, WeightsError
from vbp.networks.foreigncode import contained
from vbp.networks.model import Model, classes_of, fill, named_classes
from vbp.networks.names import NetworkChoice, refuse_named
from vbp.networks.owncode import OwnCode
from vbp.networks.preprocessing import Preprocessing
from vbp.networks.weights import Checkpoint, read_checkpoint, tensors_sha256

PREFIX = "timm:"


def load(choice: NetworkChoice) -> Model:
    """Let timm make the network; errors as for ``load_model``."""
    name, weights = choice.model.removeprefix(PREFIX), choice.weights
    refuse_named(choice.model, weights)
    network: Any = _made(name, choice).cpu().float().eval().requires_grad_(False)
    said: Mapping[str, Any] = network.pretrained_cfg
    try:
        seen, notes = _preprocessing(said)
    except (KeyError, TypeError, ValueError, ArithmeticError, UsageError) as error:  # --model-args may change it
        raise ModelError(
            f"timm's configuration of {name} does not say what it wants to see: {type(error).__name__} {error}."
        ) from error
    names: tuple[str, ...] | None = None
    if weights in ("imagenet", "random"):
        sha256 = tensors_sha256(network.state_dict())
    else:
        checkpoint = read_checkpoint(weights, choice.model, choice.storage_options)
        notes += _filled(network, said, checkpoint, choice)
        sha256 = checkpoint.sha256
        names = named_classes(network.num_classes or None, checkpoint, weights)
    classes = classes_of(network, choice.size or (seen and seen.size) or 224)
    names = names or _imagenet_names(network, classes)
    return Model(choice.model, network, seen, names, classes, weights, sha256, notes)


def check(code: OwnCode | None) -> None:
    """Refuse a machine without timm.

    Raises:
        ModelError: it is missing.
    """
    _timm()


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"--model timm:NAME needs timm: pip install 'visualbackprop[timm]' ({error}).") from error
    return timm


def _made(name: str, choice: NetworkChoice) -> nn.Module:
    timm = _timm()
    pretrained = choice.weights == "imagenet"
    arguments = {"pretrained": pretrained, **choice.model_args}
    with contained(choice.seed), _silent():
        try:
            network: nn.Module = timm.create_model(name, **arguments)
        except Exception as error:
            said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            if not timm.is_model(name) or "Invalid pretrained tag" in said:
                raise ModelError(f"timm has no model {name!r}: {_meant(timm, name)}") from error
            if not pretrained or isinstance(error, TypeError):
                raise ModelError(f"timm does not make {name!r}: {said[:300]}.") from error
            raise WeightsError(
                f"timm's weights of {name} cannot be had: {said[:300]}. Without a network, give --weights FILE_OR_URL "
                "or random."
            ) from error
    return network


def _meant(timm: Any, name: str) -> str:
    base, _, tag = name.partition(".")
    if timm.is_model(base) and tag:
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{base}.*")]
        return f"of {base} there are {', '.join(tags[:8]) or 'no weights'}."
    close = get_close_matches(base, timm.list_models(), n=3)
    return f"did you mean {' or '.join(close)}?" if close else "timm.list_models() has the names."


@contextmanager
def _silent() -> Iterator[None]:
    """Without the log lines in which the hub tells each of its tries."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _preprocessing(said: Mapping[str, Any]) -> tuple[Preprocessing | None, tuple[str, ...]]:
    """What timm's configuration says, and sentences on what of it is not done here."""
    depth, rows, columns = said["input_size"]
    mean, std = said["mean"], said["std"]
    if depth not in (1, 3) or rows != columns or len(mean) != depth:
        return None, ()
    notes: tuple[str, ...] = ()
    interpolation = said["interpolation"]
    if interpolation not in choices_of(Interpolation):
        notes = (f"timm resizes images for this network by {interpolation}; bicubic is taken (--interpolation).",)
        interpolation = "bicubic"
    trained = (int(rows / said["crop_pct"]), rows) if said.get("crop_mode", "center") == "center" else None
    channels: Channels = "rgb" if depth == 3 else "grey"
    return Preprocessing(tuple(mean), tuple(std), interpolation, channels, rows, trained), notes


def _imagenet_names(network: nn.Module, classes: int | None) -> tuple[str, ...] | None:
    """Names of the classes, if the network has those of a set that timm knows."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(network) if classes else None
    if subset is None:
        return None
    known = ImageNetInfo(subset)
    if known.num_classes() != classes:
        return None
    return tuple(known.index_to_description(number) for number in range(known.num_classes()))


def _filled(network: Any, said: Mapping[str, Any], checkpoint: Checkpoint, choice: NetworkChoice) -> tuple[str, ...]:
    """Load a checkpoint; without a classifier for it, timm's own way of leaving that out is taken."""
    classifier = said.get("classifier")
    head = classifier.partition(".")[0] if isinstance(classifier, str) else None
    before = getattr(network, head) if head else None
    side = choice.size or said["input_size"][1]
    _, notes = fill(network, head, checkpoint, (choice.model, choice.weights), side=side, in_order=True)
    if head and isinstance(getattr(network, head), nn.Identity) and not isinstance(before, nn.Identity):
        setattr(network, head, before)
        network.reset_classifier(0)
    network.eval().requires_grad_(False)
    return notes
