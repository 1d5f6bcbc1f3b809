"""Spread: carries out a function for many arguments, here or by workers elsewhere.

Storage cuts its long work into functions of one argument, and calls a `Spread` with them.  `here` does all in this
process; ``vbp.pipeline.on_ray.spread`` has tasks of Ray do it.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

A = TypeVar("A")
R = TypeVar("R")


def ignored(result: object) -> None:
    """Does nothing with a result."""


class Spread(Protocol):
    """As the builtin ``map``: the results of a function, one for each argument, in the order of the arguments."""

    def __call__(
        self,
        function: Callable[[A], R],
        arguments: Iterable[A],
        done: Callable[[R], object] = ignored,
        most: float = math.inf,
    ) -> Iterator[R]:
        """Carry out the function.

        Args:
            function: a function of a module, maybe with some arguments given (``partial``).  It may be carried out
                again for an argument, and twice at once, because workers are lost.
            arguments: taken while results are taken, some ahead.  Functions, arguments and results are pickled.
            done: is called with each result as soon as it is there, in any order.
            most: the most results, made or in the making, that have not been taken; for large ones.

        Raises:
            Exception: what the function has raised; for the first of the arguments, if for several.
        """
        ...


def here(
    function: Callable[[A], R],
    arguments: Iterable[A],
    done: Callable[[R], object] = ignored,
    most: float = math.inf,
) -> Iterator[R]:
    """The `Spread` that carries out everything in this process, one after the other."""
    for argument in arguments:
        result = function(argument)
        done(result)
        yield result
