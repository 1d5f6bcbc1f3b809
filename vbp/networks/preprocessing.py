"""Preprocessing: how pixels become a network's input, as one value that travels with the network.

Pixels are uint8 RGB everywhere before the network; only there channels are chosen and values normalised::

    input = (channels(pixels) / 255 - mean) / std
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from vbp.choices import Channels, Interpolation, choices_of
from vbp.errors import UsageError

_COLOURS = {"rgb": 3, "bgr": 3, "grey": 1}


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing with which a network was trained; by default torchvision's for ImageNet.

    Attributes:
        mean: subtracted from pixels in [0, 1]; a value for each channel, in the order of `channels`.
        std: divides the difference; as many values.
        interpolation: how pictures are resized, always with antialiasing.
        channels: ``rgb``; ``bgr``, as in Caffe and OpenCV; ``grey``, one channel by ITU-R 601, as in Pillow.
        size: side of the square input, in pixels; None if unknown.
        trained: pixels of the short side after resizing, and of the square that is cut out of its centre, as the
            weights were trained; None if unknown.

    Raises:
        UsageError: a value is outside its domain, or the number of values is wrong.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    channels: Channels = "rgb"
    size: int | None = 224
    trained: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", check_mean(self.mean))
        object.__setattr__(self, "std", check_std(self.std))
        for name, choices in (("interpolation", Interpolation), ("channels", Channels)):
            if getattr(self, name) not in choices_of(choices):
                allowed = ", ".join(choices_of(choices))
                raise UsageError(f"{name} (={getattr(self, name)}) must be one of {allowed}.")
        if self.size is not None and (type(self.size) is not int or self.size < 1):
            raise UsageError(f"size (={self.size!r}) must be a whole number of pixels, at least 1.")
        if self.trained is not None:
            object.__setattr__(self, "trained", _sides(self.trained))
        for name, value in (("mean", self.mean), ("std", self.std)):
            if len(value) != self.depth:
                raise UsageError(
                    f"{name} (={_listed(value)}) must have {self.depth} values for channels {self.channels}, one each."
                )

    @property
    def depth(self) -> int:
        """Number of channels of the network's input."""
        return _COLOURS[self.channels]

    @property
    def rgb_mean(self) -> tuple[float, ...]:
        """`mean` for red, green and blue; grey's for all three."""
        return _as_rgb(self.mean, self.channels)

    @property
    def rgb_std(self) -> tuple[float, ...]:
        """`std` for red, green and blue; grey's for all three."""
        return _as_rgb(self.std, self.channels)

    @property
    def mean_colour(self) -> tuple[int, ...]:
        """`mean` as a uint8 RGB colour: about zero after normalisation, so that padding activates the network least."""
        return tuple(round(255 * value) for value in self.rgb_mean)

    def changed(
        self,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: Interpolation | None = None,
        channels: Channels | None = None,
        size: int | None = None,
    ) -> Preprocessing:
        """A copy with the given changes. Between RGB and BGR, mean and standard deviation stay with their colours.

        Raises:
            UsageError: as for `Preprocessing`; or the number of channels changes without new mean and std.
        """
        channels = channels or self.channels
        if _COLOURS[channels] != self.depth and (mean is None or std is None):
            raise UsageError(
                f"channels (={channels}) needs mean and std too, with a value for each channel: those of "
                f"{self.channels} do not serve."
            )
        turned = channels != self.channels and _COLOURS[channels] == self.depth
        own_mean, own_std = (self.mean[::-1], self.std[::-1]) if turned else (self.mean, self.std)
        return replace(
            self,
            mean=own_mean if mean is None else tuple(mean),
            std=own_std if std is None else tuple(std),
            interpolation=interpolation or self.interpolation,
            channels=channels,
            size=size or self.size,
        )

    def as_json(self) -> dict[str, Any]:
        """The fields by name, as JSON values."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "channels": self.channels,
            "size": self.size,
            "trained": self.trained and list(self.trained),
        }


def check_mean(values: Sequence[float]) -> tuple[float, ...]:
    """The values, if they may be a mean of pixels in [0, 1].

    Raises:
        UsageError: they are not.
    """
    found = _numbers("mean", values)
    if not all(0 <= value <= 1 for value in found):
        raise UsageError(f"mean (={_listed(found)}) must lie in 0..1, as pixels do{_divided(found)}.")
    return found


def check_std(values: Sequence[float]) -> tuple[float, ...]:
    """The values, if they may be a standard deviation of pixels in [0, 1].

    Raises:
        UsageError: they are not.
    """
    found = _numbers("std", values)
    if not all(0 < value <= 1 for value in found):
        raise UsageError(f"std (={_listed(found)}) must lie in 0..1, as pixels do, and not be 0{_divided(found)}.")
    return found


def _sides(values: Sequence[int]) -> tuple[int, int]:
    if isinstance(values, list | tuple) and len(values) == 2 and all(type(value) is int for value in values):
        resized, cut = values
        if resized >= cut > 0:
            return resized, cut
    raise UsageError(
        f"trained (={values!r}) must be two whole numbers of pixels: the short side, and the square cut out of it."
    )


def _numbers(name: str, values: Sequence[float]) -> tuple[float, ...]:
    try:
        if isinstance(values, str | bytes | Mapping | Set):  # have no numbers, or none in an order
            raise TypeError(type(values))
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} (={values!r}) must be numbers, like 0.485,0.456,0.406.") from error
    if not found or not all(map(math.isfinite, found)):
        raise UsageError(f"{name} (={_listed(found)}) must be finite numbers, one for each channel.")
    return found


def _divided(values: Sequence[float]) -> str:
    """A hint with the values divided by 255, if they were meant for 0..255."""
    if min(values) < 0 or not 1 < max(values) <= 255:
        return ""
    return f"; for pixels in 0..255 this is {_listed([round(value / 255, 4) for value in values])}"


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _as_rgb(values: tuple[float, ...], channels: Channels) -> tuple[float, ...]:
    if channels == "grey":
        return values * 3
    return values[::-1] if channels == "bgr" else values


IMAGENET = Preprocessing()
"""ImageNet's preprocessing, with which nearly every network of torchvision was trained."""
