"""Method: all settings that decide a network's masks, as one value; imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from vbp.choices import Pooling, Preset, choices_of
from vbp.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Method:
    """How masks are made.

    Attributes:
        preset: ``paper`` is the published method; ``reference`` gives the masks of devansh20la/VisualBackprop.
        stages: which maps are multiplied: ``all``; ``last``, the last of each resolution; or names.
        pooling: how the mask is led down through pooling layers, see `VisualBackProp`.
        multiply_input: multiply the mask with the input as well (gamma in the paper's theorem 1).
        target: ``predicted``: weight the deepest map for the class that the network predicts; None: class-agnostic.
        smooth: average the masks of this many noisy copies of each image; 0: none.
        noise: the standard deviation of that noise, as a share of the range of the image's values.
        seed: seed of that noise.

    Raises:
        UsageError: a value is outside its domain, or two values exclude each other.
    """

    preset: Preset = "paper"
    stages: str | Collection[str] = "all"
    pooling: Pooling = "exact"
    multiply_input: bool = False
    target: Literal["predicted"] | None = None
    smooth: int = 0
    noise: float = 0.1
    seed: int = 500

    def __post_init__(self) -> None:
        if not isinstance(self.stages, str):
            object.__setattr__(self, "stages", tuple(self.stages))
        for name, value, choices in (
            ("preset", self.preset, choices_of(Preset)),
            ("pooling", self.pooling, choices_of(Pooling)),
        ):
            if value not in choices:
                raise UsageError(f"{name} {value!r} is none of {', '.join(choices)}.")
        if self.preset == "reference" and self.pooling != "exact":
            raise UsageError(
                f"preset 'reference' leads through pooling with a kernel of its own, so pooling (={self.pooling}) has "
                "no effect on it: use preset 'paper', or pooling 'exact'."
            )
        if self.smooth < 0 or self.noise <= 0:
            raise UsageError(f"smooth (={self.smooth}) must be at least 0, and noise (={self.noise}) more than 0.")
