"""How a value in a network relates to the pixels of its input: of any kind of graph, without torch.

A value that is computed from the input is one of three: a map, whose rows and columns are those of the image; a
`Vector`, which has no pixels, as after global pooling or flattening; or `Unknown`, whose pixels were moved or mixed by
an operation that cannot be followed.

Every map has one axis along which the images of the batch lie, so that no image can have a part in another's mask.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Node = TypeVar("Node", bound=Hashable)
Step = TypeVar("Step")
_ATTENTION = ", for attention in "
Kind = Literal["other", "convolution", "activation", "addition", "concatenation", "product"]


@dataclass(frozen=True)
class MapOf(Generic[Node, Step]):
    """A tensor with pixels."""

    rank: int = 4
    """Number of axes of the tensor, and which of them are its rows and columns."""
    rows: int = 2
    columns: int = 3
    images: int = 0
    """The axis along which the images of the batch lie."""
    signed: bool = True
    """Whether values may be negative."""
    kind: Kind = "other"
    """The kind of operation that made it; the last three join several maps. A difference counts as a product."""
    sources: tuple[Node, ...] = ()
    """The maps from which it was made."""
    step: Step | None = None
    """The geometry from its sources' pixels to its own; None: pixel by pixel."""

    @property
    def joins(self) -> bool:
        """Whether it was made of several maps by adding, concatenating or multiplying them."""
        return self.kind in ("addition", "concatenation", "product")

    @property
    def spatial(self) -> tuple[int, int]:
        """The axes of rows and columns."""
        return self.rows, self.columns

    @property
    def places(self) -> tuple[int, int, int]:
        """The axes of images, rows and columns."""
        return self.images, self.rows, self.columns


@dataclass(frozen=True)
class Vector:
    """A tensor without pixels."""

    lost: str = ""
    """Why the pixels that were summed up in it could not be followed; empty if they could."""


@dataclass(frozen=True)
class Unknown:
    """A tensor with pixels that cannot be followed."""

    reason: str

    @property
    def is_attended(self) -> bool:
        """Whether it is known for which attention its pixels were moved."""
        return _ATTENTION in self.reason

    def attended_by(self, name: str) -> Unknown:
        """The same, with the attention named for which its pixels were moved."""
        return self if self.is_attended else Unknown(f"{self.reason[:-1]}{_ATTENTION}{name}.")


def first_lost(unknowns: Collection[Unknown]) -> Unknown:
    """The one whose reason says most."""
    return max(unknowns, key=lambda one: one.is_attended)


def refused(mixed: Sequence[Unknown], attended: Sequence[Unknown]) -> Unknown | None:
    """Why a network cannot be explained as a whole; None: it can.

    Args:
        mixed: pixels that cannot be followed, and that a convolution mixes.
        attended: those that attention weighs. One alone, behind all convolutions, pools, as CLIP's head does.
    """
    return next(iter([*mixed, *attended[1:]]), None)


def say_what_lies_below(refusal: Unknown, last: str) -> str:
    """A refusal, and that the stages up to `last` can be explained."""
    return f"{refusal.reason} The stages below can be explained: name the last one, {last}, in `stages`."
