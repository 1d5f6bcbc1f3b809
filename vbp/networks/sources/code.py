"""Networks of the user's own: a function or class in a file or module, which is run to make the network."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from vbp.errors import ModelError, UsageError, WeightsError
from vbp.networks.foreigncode import contained
from vbp.networks.model import Model, classes_of, fill, head_of, named_classes
from vbp.networks.names import NetworkChoice
from vbp.networks.owncode import OwnCode
from vbp.networks.preprocessing import Preprocessing
from vbp.networks.weights import read_checkpoint, tensors_sha256


def load(choice: NetworkChoice) -> Model:
    """Run the user's function, and take what it returns; errors as for ``load_model``."""
    code = choice.code or OwnCode.of(choice.model)
    network = _made(code, choice)
    seen = _preprocessing(network, code.model)
    names = _names(network)
    network = network.cpu().float().eval().requires_grad_(False)
    side = choice.size or (seen and seen.size) or 224
    weights, notes = choice.weights, tuple[str, ...]()
    if weights == "own":
        sha256 = tensors_sha256(network.state_dict())
    else:
        sha256, notes, stored = _filled(network, choice, side)
        names = stored or names
    classes = classes_of(network, side)
    if names and len(names) != classes:
        names = None
    return Model(choice.model, network, seen, names, classes, weights, sha256, notes, code)


def check(code: OwnCode) -> None:
    """Import the code on this machine, without making the network.

    Raises:
        ModelError: it cannot be imported here.
    """
    with contained(0), _as_model_error(code, "cannot be imported"):
        code.load()


def _made(code: OwnCode, choice: NetworkChoice) -> nn.Module:
    with contained(choice.seed):
        with _as_model_error(code, "cannot be imported"):
            maker = code.load()
        if isinstance(maker, nn.Module):
            made: Any = maker
            if choice.model_args:
                raise ModelError(f"model {code.model!r} is a network already, so it takes no --model-args.")
        else:
            _check_call(code, maker, choice.model_args)
            with _as_model_error(code, "raises"):
                made = maker(**choice.model_args)
    if not isinstance(made, nn.Module):
        raise ModelError(f"model {code.model!r} gives {_what(made)}, not a torch.nn.Module.")
    if any(is_lazy(each) for each in made.state_dict().values()):
        raise ModelError(f"model {code.model!r} has lazy layers without weights: run it once before you return it.")
    return made


def _what(made: Any) -> str:
    return "nothing (None)" if made is None else f"a {type(made).__name__}"


def _check_call(code: OwnCode, maker: Any, arguments: Mapping[str, Any]) -> None:
    if not callable(maker):
        raise ModelError(f"model {code.model!r} is {_what(maker)}, not a function, class or torch.nn.Module.")
    try:
        signature = inspect.signature(maker)
    except (TypeError, ValueError):  # such as of a builtin; the call will tell
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        unknown = [name for name in arguments if name not in signature.parameters]
        close = get_close_matches(unknown[0], signature.parameters, n=1) if unknown else []
        meant = f"; did you mean {close[0]}?" if close else ""
        raise ModelError(
            f"model {code.model!r}{signature} does not take --model-args (={dict(arguments)}): {error}{meant or '.'}"
        ) from error


@contextmanager
def _as_model_error(code: OwnCode, what: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": .")
        raise ModelError(f"model {code.model!r} {what}: {said[:500]}{_place(error, code)}.") from error


def _place(error: BaseException, code: OwnCode) -> str:
    """The last line of the user's own that was at work."""
    if isinstance(error, SyntaxError):
        return ""  # its text has the line
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(code.root)]
    if code.is_installed or not own:
        return ""
    return f" (line {own[-1].lineno} of {own[-1].filename[len(code.root) :].lstrip('/')})"


def _preprocessing(network: nn.Module, model: str) -> Preprocessing | None:
    """What the network's attribute says that it wants to see; None without it."""
    said = getattr(network, "preprocessing", None)
    if said is None or isinstance(said, Preprocessing):
        return said
    if not isinstance(said, Mapping):
        raise ModelError(
            f"model {model!r}: its attribute `preprocessing` is {_what(said)}; it must be a mapping with mean, std and "
            "size, or a vbp.networks.preprocessing.Preprocessing."
        )
    known = Preprocessing.__dataclass_fields__
    if unknown := [name for name in said if name not in known]:
        raise ModelError(
            f"model {model!r}: its `preprocessing` has {unknown[0]!r}, which is none of {', '.join(known)}."
        )
    if missing := [name for name in ("mean", "std") if name not in said]:
        raise ModelError(f"model {model!r}: its `preprocessing` lacks {missing[0]}.")
    try:
        return Preprocessing(**{"size": None, **said})
    except UsageError as error:
        raise ModelError(f"model {model!r}: its `preprocessing`: {error}") from error


def _names(network: nn.Module) -> tuple[str, ...] | None:
    """The names in the network's attribute `class_names`; None without it."""
    said = getattr(network, "class_names", None)
    return tuple(map(str, said)) if isinstance(said, list | tuple) else None


def _filled(
    network: nn.Module, choice: NetworkChoice, side: int
) -> tuple[str, tuple[str, ...], tuple[str, ...] | None]:
    """Load a checkpoint into the network; gives its SHA-256, notes, and class names.

    Raises:
        WeightsError: it does not fit, or is a name that own networks do not know.
    """
    weights, name = choice.weights, choice.model
    if weights in ("random", "demo"):
        raise WeightsError(f"there are no {weights} weights for model {name!r}: give own, a file or a URL.")
    checkpoint = read_checkpoint(weights, name, choice.storage_options)
    before = {key: tensor.shape for key, tensor in network.state_dict().items()}
    head = head_of(network)
    other_widths, notes = fill(network, head, checkpoint, (name, weights), side=side)
    after = {key: tensor.shape for key, tensor in network.state_dict().items() if key.partition(".")[0] != head}
    if changed := [key for key, shape in after.items() if other_widths and shape != before[key]]:
        key = changed[0]
        raise WeightsError(
            f"weights {weights!r} do not fit {name}: {key} has shape {tuple(after[key])}, not {tuple(before[key])}; "
            "--model-args may be others than those that it was trained with."
        )
    network.requires_grad_(False)
    return checkpoint.sha256, notes, named_classes(classes_of(network, side), checkpoint, weights)
