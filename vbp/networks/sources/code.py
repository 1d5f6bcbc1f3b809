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
from vbp.networks.names import NetworkChoice, refuse_named
from vbp.networks.owncode import OwnCode
from vbp.networks.preprocessing import Preprocessing
from vbp.networks.structure import structure_sha256
from vbp.networks.weights import Checkpoint, read_checkpoint, tensors_sha256


def load(choice: NetworkChoice) -> Model:
    """Run the user's function, and take what it returns; errors as for ``load_model``."""
    refuse_named(choice.model, choice.weights)
    code = choice.code or OwnCode.of(choice.model)
    with contained(choice.seed), code.alone():
        return _loaded(code, choice)


def check(code: OwnCode) -> None:
    """Import the code on this machine, without making the network.

    Raises:
        ModelError: it cannot be imported here.
    """
    with contained(0), code.alone(), _as_model_error(code, "cannot be imported"):
        code.load()


def _loaded(code: OwnCode, choice: NetworkChoice) -> Model:
    network = _made(code, choice)
    seen = _preprocessing(network, code.model)
    said = _names(network, code.model)
    for step in (network.cpu, network.float, network.eval):  # a network may forget to return itself
        step()
    network.requires_grad_(False)
    structure = structure_sha256(network, code.root)
    side = choice.size or (seen and seen.size) or 224
    checkpoint, notes = (None, ()) if choice.weights == "own" else _filled(network, choice, side)
    with _as_model_error(code, "raises"):
        classes = classes_of(network, side)
    names = named_classes(classes, checkpoint, choice.weights) if checkpoint else None
    if names is None and said is not None and classes is not None:
        names, more = _fitting(said, classes, code.model, own=checkpoint is None)
        notes += more
    return Model(
        choice.model, network, seen, names, classes, choice.weights,
        tensors_sha256(network.state_dict()) if checkpoint is None else checkpoint.sha256,
        notes, code, structure,
    )  # fmt: skip


def _made(code: OwnCode, choice: NetworkChoice) -> nn.Module:
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
    except (UsageError, TypeError, ValueError) as error:
        raise ModelError(f"model {model!r}: its `preprocessing`: {error}") from error


def _names(network: nn.Module, model: str) -> tuple[str, ...] | None:
    """The names in the network's attribute `class_names`; None without it."""
    said = getattr(network, "class_names", None)
    if said is None:
        return None
    if not isinstance(said, list | tuple):
        raise ModelError(f"model {model!r}: its attribute `class_names` is {_what(said)}; it must be a list of names.")
    return tuple(map(str, said))


def _fitting(
    names: tuple[str, ...], classes: int, model: str, *, own: bool
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The names that a network says, or a note that they are not those of a checkpoint's classifier.

    Raises:
        ModelError: they are not those of its `own` classifier.
    """
    if len(names) == classes:
        return names, ()
    told = f"model {model!r}: its `class_names` has {len(names)} names, but it gives {classes} scores"
    if own:
        raise ModelError(f"{told}: give as many, in the order of the scores, or none.")
    return None, (f"{told}; they are left out.",)


def _filled(network: nn.Module, choice: NetworkChoice, side: int) -> tuple[Checkpoint, tuple[str, ...]]:
    """Load a checkpoint into the network; gives it and notes.

    Raises:
        WeightsError: it does not fit.
    """
    weights, name = choice.weights, choice.model
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
    return checkpoint, notes
