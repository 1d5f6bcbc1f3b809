"""Model: what every source of networks gives, and what the sources share: filling a network, and its classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vbp.errors import WeightsError
from vbp.networks.fitting import AmbiguousError, KindError, MisfitError, fit, input_channels
from vbp.networks.owncode import OwnCode
from vbp.networks.preprocessing import Preprocessing
from vbp.networks.sound import check_sound
from vbp.networks.weights import Checkpoint

CLASSIFIERS = ("classifier", "fc", "head")
"""Usual names of the classifier in CNNs."""


@dataclass(frozen=True)
class Model:
    """A network that is ready to run."""

    name: str
    network: nn.Module
    """float32, on the CPU, in evaluation mode."""
    preprocessing: Preprocessing | None
    """The preprocessing with which it was trained, as far as its source says; None if it says nothing."""
    class_names: tuple[str, ...] | None
    """A name for each output of the classifier; None if unknown."""
    num_classes: int | None
    """None: the checkpoint has no classifier, so the network can be explained but predicts nothing."""
    weights: str
    """The weights as `load_model` was given them."""
    sha256: str
    """SHA-256 of the checkpoint file; of the tensors' bytes for random weights."""
    notes: tuple[str, ...] = ()
    """Sentences for the user on how the checkpoint was understood."""
    code: OwnCode | None = None
    """The code that made it, if it is the user's own."""
    structure_sha256: str | None = None
    """See ``structure_sha256``, if it was made by code of the user's own, which may read files; else None."""


def fill(
    network: nn.Module,
    head: str | None,
    checkpoint: Checkpoint,
    names: tuple[str, str],
    *,
    side: int = 224,
    hint: Callable[[], str] = str,
    in_order: bool = False,
) -> tuple[bool, tuple[str, ...]]:
    """Load a checkpoint into a network.

    Args:
        network: the network, which is changed.
        head: name of its classifier; None without one.
        checkpoint: the checkpoint.
        names: the network's name, and that of the weights.
        side: side of images that the network takes, in pixels.
        in_order: where no names fit, take all tensors in their order, if all shapes fit.
        hint: makes a further sentence on a checkpoint that does not fit.

    Returns:
        Whether layers were given the widths of the checkpoint's tensors, and sentences for the user.

    Raises:
        WeightsError: it does not fit, or cannot be used.
    """
    name, weights = names
    try:
        fitted = fit(network, head, checkpoint.tensors, side=side, in_order=in_order)
    except MisfitError as error:
        raise WeightsError(f"weights {weights!r} do not fit {name}: {error}. {hint()}".rstrip()) from error
    except KindError as error:
        raise WeightsError(f"weights {weights!r} cannot be used: {error}.") from error
    except AmbiguousError as error:
        raise WeightsError(
            f"weights {weights!r} hold {name} more than once, under {error}: save the one that you mean in a file "
            "of its own."
        ) from error
    notes = check_sound(network, weights)
    return fitted.other_widths, tuple(f"Weights {weights}: {note}." for note in (*fitted.notes, *notes))


def head_of(network: nn.Module) -> str | None:
    """The name of the classifier; None if the network has none."""
    return next((name for name, _ in network.named_children() if name in CLASSIFIERS), None)


def named_classes(classes: int | None, checkpoint: Checkpoint, weights: str) -> tuple[str, ...] | None:
    """The class names of a checkpoint; None if it has none, or the network has no classifier.

    Raises:
        WeightsError: there is another number of them.
    """
    if classes is None or checkpoint.class_names is None:
        return None
    if len(checkpoint.class_names) != classes:
        count = len(checkpoint.class_names)
        raise WeightsError(f"weights {weights!r} name {count} classes, but their classifier has {classes}.")
    return checkpoint.class_names


def classes_of(network: nn.Module, side: int) -> int | None:
    """Number of class scores that a network gives for an image of that side; None if it gives something else.

    Raises:
        ImportError: code of the user's own imports something late, which is not there.
    """
    try:
        with torch.inference_mode():
            output = network(torch.zeros(1, input_channels(network), side, side))
    except ImportError:
        raise
    except Exception:  # the check of the network, which comes later, says why
        return None
    is_row = isinstance(output, Tensor) and output.ndim == 2 and output.is_floating_point()
    return output.shape[1] if is_row and output.shape[1] > 1 else None
