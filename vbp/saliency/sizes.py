"""Tracing of code that asks for the sizes of its data (torch.fx alone knows none).

A size is recorded as an operation, like everything else: the graph computes it anew for every batch, and arithmetic
with it is part of the graph. Only where Python itself needs the number, as in ``if rows > 7:``, the network's
code is followed for images of one shape, and the decision is noted as a `Choice`.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.fx import Node, Proxy, Tracer
from torch.fx.proxy import Attribute, TraceError
from typing_extensions import override

from vbp.saliency.lengths import is_constant
from vbp.saliency.shapes import ImageShape, Shapes

Number = int | float | bool


class Choice(NamedTuple):
    """A number that the network's Python code used to decide what to do."""

    node: Node
    value: Number


class SizedTracer(Tracer):
    """A tracer whose proxies know their shapes for images of one shape.

    Args:
        model: the network to trace.
        shape: the shape of the images.

    Attributes:
        choices: the numbers that Python code decided by.
    """

    def __init__(self, model: nn.Module, shape: ImageShape):
        super().__init__()
        images, channels, rows, columns = shape
        self._model = model
        self._shapes = Shapes(model, shape)
        self._of_more_images = Shapes(model, (images + 1, channels, rows, columns))
        self.choices: list[Choice] = []
        self._thread = get_ident()
        self._measures = False

    @property
    def records(self) -> bool:
        """Whether calls are part of the trace: not those of other threads, or made to find a shape."""
        return get_ident() == self._thread and not self._measures

    @override
    def proxy(self, node: Node) -> Proxy:
        return _SizedProxy(node, self)

    @override
    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return super().getattr(attr, attr_val, parameter_proxy_cache) if self.records else attr_val

    @override
    def to_bool(self, obj: Proxy) -> bool:
        number = self.decided(obj.node)
        return super().to_bool(obj) if number is None else bool(number)

    @override
    def iter(self, obj: Proxy) -> Iterator[Any]:
        found = self.result(obj.node)
        if not isinstance(found, tuple | list):
            return super().iter(obj)
        return iter(
            [self.create_proxy("call_function", operator.getitem, (obj, number), {}) for number in range(len(found))]
        )

    def result(self, node: Node) -> Any:
        """What an operation gives, without data; None if it is not known."""
        with self._measuring():
            try:
                return self._shapes[node]
            except KeyError:
                return None

    def fixed_sizes(self, node: Node) -> list[int | None] | None:
        """The lengths of a tensor's axes, None for those that may depend on the images; None for what is no tensor."""
        with self._measuring():
            size = self._shapes.size(node)
            if size is None:
                return None
            return [
                length if is_constant((node, axis), self._model, self._shapes) else None
                for axis, length in enumerate(size)
            ]

    def decided(self, node: Node) -> Number | None:
        """A number that Python code needs; None if it is none, or depends on the data.

        Raises:
            TraceError: it depends on the number of images.
        """
        with self._measuring():
            number = self._shapes.number(node)
            if number is None:
                return None
            if self._of_more_images.number(node) != number:
                raise TraceError("it decides by the number of images what to do")
        if all(choice.node is not node for choice in self.choices):
            self.choices.append(Choice(node, number))
        return number

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        self._measures, before = True, self._measures
        try:
            yield
        finally:
            self._measures = before


class _SizedProxy(Proxy):
    """A proxy that gives sizes where it is asked for them, and numbers where Python must have them."""

    tracer: SizedTracer

    @override
    def __getattr__(self, k: str) -> Any:
        if k == "shape" and (sizes := self._sizes()) is not None:
            return sizes
        if k == "ndim" and (sizes := self._sizes()) is not None:
            return len(sizes)
        if k in ("size", "dim") and isinstance(self.tracer.result(self.node), Tensor):
            return self._size if k == "size" else lambda: self.ndim
        return Attribute(self, k)

    def _sizes(self) -> tuple[Any, ...] | None:
        fixed = self.tracer.fixed_sizes(self.node)
        if fixed is None:
            return None
        # asking for all of them adds operations that nobody may read; `graph_of` removes them
        return tuple(self._length(axis) if length is None else length for axis, length in enumerate(fixed))

    def _size(self, dim: int | None = None) -> Any:
        sizes = self._sizes()
        assert sizes is not None
        return sizes if dim is None else sizes[dim]

    def _length(self, axis: int) -> Proxy:
        return self.tracer.create_proxy("call_method", "size", (self, axis), {})

    @override
    def __len__(self) -> int:
        found = self.tracer.result(self.node)
        return len(found) if isinstance(found, tuple | list) else super().__len__()

    def __int__(self) -> int:
        return int(self._number("int"))

    def __index__(self) -> int:
        return operator.index(self._number("index"))  # type: ignore[arg-type]

    def __float__(self) -> float:
        return float(self._number("float"))

    def __ceil__(self) -> Any:
        return self._computed(math.ceil)

    def __floor__(self) -> Any:
        return self._computed(math.floor)

    def __trunc__(self) -> Any:
        return self._computed(math.trunc)

    def __round__(self, *digits: int) -> Any:
        return self._computed(round, *digits)

    def _computed(self, function: Callable[..., Any], *further: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", function, (self, *further), {})

    def _number(self, wanted: str) -> Number:
        number = self.tracer.decided(self.node)
        if number is None:
            raise TraceError(f"a value of the data is asked for as {wanted}")
        return number


@contextmanager
def recorded_extremes() -> Iterator[None]:
    """Record Python's `max` and `min` of sizes as operations, as torch.fx does with `math.ceil`.

    They would decide by a comparison else, and the trace would hold for half of all sizes.
    """
    originals = {name: getattr(builtins, name) for name in ("max", "min")}
    for name, original in originals.items():
        setattr(builtins, name, _recorded(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(builtins, name, original)


def _recorded(original: Callable[..., Any]) -> Callable[..., Any]:
    def extreme(*values: Any, **settings: Any) -> Any:
        terms = values[0] if len(values) == 1 and isinstance(values[0], tuple | list) else values
        proxies = [one for one in terms if isinstance(one, _SizedProxy)]
        if settings or not proxies or not all(isinstance(one.tracer.result(one.node), Number) for one in proxies):
            return original(*values, **settings)
        return proxies[0].tracer.create_proxy("call_function", original, tuple(terms), {})

    return extreme
