"""The forward pass of a network as a graph of layers and functions (torch.fx), or an error that says why not."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from typing_extensions import override

from vbp.errors import ModelError
from vbp.saliency.forward import evaluating
from vbp.saliency.operations import is_known, is_patched
from vbp.saliency.shapes import ImageShape
from vbp.saliency.sizes import Choice, SizedTracer, recorded_extremes

_TRACING = Lock()
"""Held while tracing, because torch.fx replaces methods of ``nn.Module`` for that time."""


def graph_of(model: nn.Module, shape: ImageShape) -> tuple[Graph, tuple[Choice, ...]]:
    """The graph of `model` in evaluation mode for one batch of images; other arguments keep their defaults.

    It traces into everything that is not a layer of a known kind, also into a subclass of a known layer, which may do
    more, and into a layer with a replaced method.

    Args:
        model: the network.
        shape: the shape of the images, where the network's Python code asks for it.

    Returns:
        The graph; and what the network's Python code decided by the size of the images. Where that comes out alike,
        the graph holds for images of other sizes, too.

    Raises:
        ModelError: the network cannot be traced, or two traces differ.
    """
    _check_signature(model)
    first, choices = _traced(model, shape)
    before = set(vars(model))
    second, _ = _traced(model, shape)
    alike = _description(first) == _description(second) and _equal(_constants(first, model), _constants(second, model))
    for name in filter(_CONSTANT.fullmatch, set(vars(model)) - before):
        delattr(model, name)
    if not alike:
        raise ModelError(
            f"{_name(model)} does something else each time that it is run, by chance or by what it counts, so a mask "
            "of one pass says nothing about the next."
        )
    return first, choices


def unwrapped(model: nn.Module) -> nn.Module:
    """The network within the wrappers of ``torch.compile`` and of parallel training."""
    while (inner := _inner(model)) is not None:
        model = inner
    return model


def _inner(model: nn.Module) -> nn.Module | None:
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module  # type: ignore[no-any-return]
    # Code from torch.compile cannot be traced. Its class is not compared, since that would import the compiler.
    return getattr(model, "_orig_mod", None)


def _check_signature(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(f"VisualBackProp needs a torch.nn.Module, not {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(f"{_name(model)} is TorchScript, which cannot be traced: give the nn.Module it was made from.")
    _, *further = inspect.signature(model.forward).parameters.values()
    needed = [
        one.name for one in further
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]  # fmt: skip
    if needed:
        raise ModelError(
            f"{_name(model)}.forward needs {', '.join(needed)} besides the images: explain a module that is called "
            "with images alone and passes the rest."
        )


def _traced(model: nn.Module, shape: ImageShape) -> tuple[Graph, tuple[Choice, ...]]:
    try:
        with _TRACING, evaluating(model), recorded_extremes():
            tracer = _Tracer(model, shape)
            graph = tracer.trace(model)
    except Exception as error:  # tracing runs the user's own forward code, which may raise anything
        raise ModelError(
            f"{_name(model)} cannot be traced by torch.fx: {_reason(error)}{_place(error)}. Layers and functions of "
            "PyTorch alone, called without asking for the values of the data, can be."
        ) from error
    _forget_sizes(graph, {choice.node for choice in tracer.choices})
    return graph, tuple(tracer.choices)


def _forget_sizes(graph: Graph, decisive: set[Node]) -> None:
    """Erase the sizes that nobody reads: who asks for one length gets all."""
    for node in reversed(graph.nodes):
        if node.op == "call_method" and node.target == "size" and not node.users and node not in decisive:
            graph.erase_node(node)


class _Tracer(SizedTracer):
    @override
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_known(m) or (super().is_leaf_module(m, module_qualified_name) and not is_patched(m))

    @override
    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The arguments (one image batch) and the call of the root, with its hooks and a replaced ``forward``."""
        name = next(iter(inspect.signature(self.root.forward).parameters))
        return self.root._call_impl, [self.create_proxy("placeholder", name, (), {})]

    @override
    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not self.records:
            return forward(*args, **kwargs)
        if (inner := unwrapped(m)) is not m:
            return inner(*args, **kwargs)
        with _unchecked(m) if not self.is_leaf_module(m, "") else nullcontext():
            return super().call_module(m, forward, args, kwargs)


@contextmanager
def _unchecked(module: nn.Module) -> Iterator[None]:
    """Switch off the check in PyTorch's norms of the data's rank, which cannot be traced."""
    if not hasattr(module, "_check_input_dim"):
        yield
        return
    vars(module)["_check_input_dim"] = lambda _: None
    try:
        yield
    finally:
        del vars(module)["_check_input_dim"]


_CONSTANT = re.compile(r"_tensor_constant\d+")


def _description(graph: Graph) -> str:
    """Every operation and argument as text, without the numbers of constants, which increase from trace to trace."""
    return _CONSTANT.sub("_tensor_constant", str(graph))


def _constants(graph: Graph, model: nn.Module) -> list[Tensor]:
    names = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    return [getattr(model, name) for name in names if _CONSTANT.fullmatch(name)]


def _equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(one.is_meta or torch.equal(one, other) for one, other in zip(some, others, strict=True))


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _place(error: Exception) -> str:
    """The line of the network's own code that could not be traced."""
    packages = (Path(torch.__file__).parent, Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(place) for place in packages)]
    if not own:
        return ""
    return f", in {Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line}"


def _name(model: nn.Module) -> str:
    return type(model).__name__
