"""VisualBackProp (Bojarski et al., ICRA 2018, arXiv:1611.05418): computes a mask from averaged maps and geometry.

Shapes: B or N images, 1 channel, H rows, W columns; a size is (rows, columns).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.dlpack import from_dlpack

from vbp.choices import Pooling, Preset
from vbp.errors import ImageError, ModelError, UsageError
from vbp.saliency.cuts import is_partial
from vbp.saliency.forward import ForwardPass, averaged, channel_mean, evaluating
from vbp.saliency.geometry import Size, Stage, Window, map_sizes, max_poolings, merged_pooling, unpooled
from vbp.saliency.graph import unwrapped
from vbp.saliency.inputs import blaming_images, check_images, refuse_odd
from vbp.saliency.method import Method
from vbp.saliency.prepared import prepare
from vbp.saliency.prepared.calibration import calibrate
from vbp.saliency.prepared.descent import in_few_kernels
from vbp.saliency.prepared.int8 import Scales
from vbp.saliency.prepared.switches import Switches
from vbp.saliency.smoothing import noisy_copies
from vbp.saliency.target import Target, predicted_now, score_of, weighted_mean
from vbp.saliency.trace import Trace, trace

SIZES = 8
"""Number of image sizes for which the geometry of a network that computes with sizes is kept."""


@dataclass(frozen=True)
class Masks:
    """The result of `visual_backprop`; all tensors are on the maps' device."""

    mask_N1HW: Tensor
    """float32 in [0, 1] at input size; all zero if the mask is flat or not finite."""
    masks_N1HW: list[Tensor]
    """The intermediate masks, one per stage from the input upwards, each at the size of its map."""
    flat_N: Tensor
    """bool: whether the mask has one value only, so that it shows nothing."""
    log10_max_N: Tensor
    """float64 (on the CPU if the device has no float64): log10 of the mask's maximum before any normalisation; -inf if
    that is 0, NaN if not finite."""
    finite_N: Tensor
    """bool: whether no infinity or NaN occurred in the computation."""


@dataclass(frozen=True)
class Explanation:
    """The results of one forward pass and the way back.

    With smoothing, `mask`, `flat` and `finite` are of the average over noisy copies, all others of the image itself.
    """

    mask: Tensor
    """float32 (B, 1, H, W) in [0, 1] at input size; all zero if flat or not finite."""
    output: Any
    """The network's output of the same forward pass; None if only the feature part was run."""
    maps: list[Tensor]
    """float32 (B, 1, h, w): the feature maps averaged over channels, from the input upwards; with a target the last
    one is weighted."""
    masks: list[Tensor]
    """float32 (B, 1, h, w): the intermediate masks, each at the size of its map."""
    flat: Tensor
    """bool (B,): whether the mask has one value only."""
    log10_max: Tensor
    """float64 (B,), on the CPU if the device has no float64: log10 of the mask's maximum before any normalisation."""
    finite: Tensor
    """bool (B,): whether no infinity or NaN occurred in the computation."""


def visual_backprop(
    maps: Sequence[Tensor],
    stages: Sequence[Stage],
    input_size: Size,
    preset: str = "paper",
    gamma_N1HW: Tensor | None = None,
) -> Masks:
    """Lead averaged maps down to the input and multiply them on the way (paper, section III).

    Args:
        maps: float32 (N, 1, h, w), one per stage from the input upwards; values >= 0.
        stages: the geometry that leads from each map to the one below.
        input_size: rows and columns of the network's input.
        preset: `paper` or `reference`, see `PRESETS`.
        gamma_N1HW: float32 at input size, values >= 0: multiplied with the mask before its last normalisation, as
            the pixel values gamma in the paper's theorem 1. The authors' code does not do this.

    Raises:
        UsageError: no such preset.
        ModelError: the reference preset does not fit these map sizes.
    """
    masks, mask, divisors = _preset(preset)(maps, stages, input_size)
    if gamma_N1HW is not None:
        mask, divisor_N = _scale(mask * gamma_N1HW)
        divisors = [*divisors, divisor_N]
    divisor_SN = torch.stack([mask.new_ones(mask.shape[0]), *divisors])
    # Values that are not finite stay so on the way down, unless the last layers crop them.
    finite_N = divisor_SN.isfinite().all(0) & mask.isfinite().flatten(1).all(1)
    mask, flat_N = _normalise(mask, finite_N)
    return Masks(mask, masks, flat_N, _log10_of_product(divisor_SN.where(finite_N, torch.nan)), finite_N)


def _log10_of_product(divisor_SN: Tensor) -> Tensor:
    """log10 of the product over all S, in float64; on the CPU if the device has no float64, as Apple's."""
    try:
        log10_SN = divisor_SN.double().log10()
    except (TypeError, RuntimeError):
        with np.errstate(divide="ignore"):
            return from_dlpack(np.log10(divisor_SN.cpu().numpy().astype(np.float64)).sum(0))
    return log10_SN.sum(0) if divisor_SN.is_cuda else sum(log10_SN[1:], log10_SN[0])


_Descent = tuple[list[Tensor], Tensor, list[Tensor]]
"""The intermediate masks, the mask at input size, and the divisors of each stage (S, N)."""


def _paper(maps: Sequence[Tensor], stages: Sequence[Stage], input_size: Size) -> _Descent:
    """The paper and its authors' Lua code, generalised to padding, pooling and any stride.

    Every product is divided by its maximum, which the last normalisation undoes: without it the values overflow
    float32 in deep networks.
    """
    mask, divisor_N = _scale(maps[-1])
    masks, divisors = [mask], [divisor_N]
    for stage, below in zip(stages[:0:-1], maps[-2::-1], strict=True):
        mask, divisor_N = _scale(stage.deconvolve(mask, _size(below)) * below)
        masks.append(mask)
        divisors.append(divisor_N)
    mask, divisor_N = _scale(stages[0].deconvolve(mask, input_size))
    return masks[::-1], mask, [*divisors, divisor_N]


def _reference(maps: Sequence[Tensor], stages: Sequence[Stage], input_size: Size) -> _Descent:
    """The project devansh20la/VisualBackprop: fixed kernels, every product scaled to [0, 1], no last deconvolution.

    It sums over channels; the first scaling to [0, 1] makes that equal to the mean.
    """
    if _size(maps[0]) != input_size:
        raise ModelError(
            f"preset 'reference' needs a first map of input size {input_size}, not {_size(maps[0])}: use 'paper'."
        )
    mask = maps[-1]
    masks, divisors = [mask], []
    for below in maps[-2::-1]:
        product = _reference_window(_size(mask), _size(below)).deconvolve(mask, _size(below)) * below
        mask, spread_N = _min_max(product)
        masks.append(mask)
        divisors.append(spread_N)
    return masks[::-1], mask, divisors


def _reference_window(above: Size, below: Size) -> Window:
    if above == below:
        return Window((3, 3), before=(1, 1))
    if all(length in (2 * half, 2 * half + 1) for length, half in zip(below, above, strict=True)):
        return Window((4, 4), stride=(2, 2), before=(1, 1))
    raise ModelError(f"preset 'reference' needs maps that halve, but {below} is followed by {above}: use 'paper'.")


PRESETS: dict[str, Callable[[Sequence[Tensor], Sequence[Stage], Size], _Descent]] = {
    "paper": _paper,
    "reference": _reference,
}
"""`paper` is the published method; `reference` gives the masks of devansh20la/VisualBackprop."""


def _preset(name: str) -> Callable[[Sequence[Tensor], Sequence[Stage], Size], _Descent]:
    if name not in PRESETS:
        raise UsageError(f"preset {name!r} is none of {', '.join(PRESETS)}.")
    return PRESETS[name]


def _normalise(mask_N1HW: Tensor, finite_N: Tensor) -> tuple[Tensor, Tensor]:
    """The last step: each mask scaled to [0, 1], all 0 if it is flat or not finite; and whether it is flat."""
    mask_N1HW, spread_N = _min_max(mask_N1HW)
    flat_N = finite_N & (spread_N <= 0)
    return torch.where((finite_N & ~flat_N).view(-1, 1, 1, 1), mask_N1HW, 0), flat_N


def _scale(map_N1HW: Tensor) -> tuple[Tensor, Tensor]:
    """Each map divided by its maximum, and that maximum."""
    largest_N111 = map_N1HW.amax((1, 2, 3), keepdim=True)
    return map_N1HW / _or_one(largest_N111), largest_N111.flatten()


def _min_max(map_N1HW: Tensor) -> tuple[Tensor, Tensor]:
    """Each map scaled to [0, 1], a flat one to 0, and its maximum minus its minimum."""
    least_N111 = map_N1HW.amin((1, 2, 3), keepdim=True)
    spread_N111 = map_N1HW.amax((1, 2, 3), keepdim=True) - least_N111
    return (map_N1HW - least_N111) / _or_one(spread_N111), spread_N111.flatten()


def _or_one(divisor: Tensor) -> Tensor:
    """The divisor, or 1 where it is 0; as a sum, which is one operation less than a choice."""
    return divisor + (divisor == 0)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _size(tensor: Tensor) -> Size:
    return tensor.shape[-2], tensor.shape[-1]


class VisualBackProp:
    """Masks of any CNN that can be traced, from the forward pass alone.

    **VisualBackProp is class-agnostic.** A mask says where the features of the deepest map come from, not which of
    them support a class: the classifier has no effect. `target` selects the features of one class instead. Even then
    only the deepest map is weighted; the maps below, which give the mask its detail, are not.

    The network is not modified: it runs in evaluation mode, its mode is restored, and no hooks are added. Its own
    hooks on layers run as usual; hooks on containers run in the trace, not in the pass. If the network is in a wrapper
    (``torch.compile``, ``DataParallel``), the original is run. `vbp.saliency.trace` says which maps are multiplied;
    negative activations count as 0. Where branches are added or concatenated, the mask is led down each branch with
    its own geometry, and the results are averaged.

    Examples:
        >>> vbp = VisualBackProp(torchvision.models.vgg16(weights="DEFAULT"))
        >>> mask_B1HW = vbp(images_BCHW)
        >>> cat_B1HW = vbp(images_BCHW, target=281)

    Args:
        model: a network whose first argument is a batch of images; all others keep their defaults.
        preset: `paper` or `reference`, see `PRESETS`.
        stages: which maps are multiplied: `all`; `last`, the last of each resolution; or names, see `.stages`. The
            geometry of the others stays. A network with attention is explained up to its last stage below it, if
            that is named.
        pooling: how the mask is led down through pooling layers. `exact`: layer by layer, so that a pixel under
            overlapping windows gets a value several times. `merged`: a chain of layers with a pooling in it, such as
            pooling and convolution, is one kernel of ones, as the authors advise. `unpool`: back to the place of the
            maximum in each channel, averaged over the channels; average and adaptive pooling stay as in `exact`.
        multiply_input: multiply the mask with the input as well (gamma in the paper's theorem 1): with the average
            over the channels of `images_BCHW`; negative averages count as 0, as in every map.
        smooth: average the masks of this many noisy copies of each image, see `noisy_copies`; 0: none. It needs as
            many more passes.
        noise: the standard deviation of that noise, as a share of the range of the image's values.
        seed: seed of that noise.
        method: all of these settings as one value, instead of them. Its target must be passed to `explain`.

    Attributes:
        method: the method, with all its settings.

    Raises:
        ModelError: the network cannot be explained; the message says why.
        UsageError: a preset, stage or pooling does not exist, or they exclude each other.
    """

    def __init__(
        self,
        model: nn.Module,
        preset: Preset = "paper",
        *,
        stages: str | Collection[str] = "all",
        pooling: Pooling = "exact",
        multiply_input: bool = False,
        smooth: int = 0,
        noise: float = 0.1,
        seed: int = 500,
        method: Method | None = None,
    ):
        self.method = method or Method(
            preset=preset,
            stages=stages,
            pooling=pooling,
            multiply_input=multiply_input,
            smooth=smooth,
            noise=noise,
            seed=seed,
        )
        self.model = unwrapped(model)
        asked = [self.method.stages] if isinstance(self.method.stages, str) else self.method.stages
        self._trace = trace(self.model, partial=is_partial(asked))
        self._in_few_kernels = False
        self.stages, self._forward = self._way_by(self._trace)
        self._layout = self._trace.layouts.get(self._trace.chosen(self.method.stages).taps[-1])
        self._faster: Callable[[ForwardPass], ForwardPass] = lambda forward: forward
        self._ways: dict[Size, tuple[tuple[Stage, ...], ForwardPass | None]] = {}
        self._tracing = Lock()

    def prepare(
        self, device: torch.device, precision: str, scales: Scales | None = None, switches: Switches | None = None
    ) -> None:
        """Make the pass fast for many batches on the network's device, see `vbp.saliency.prepared`.

        The network is not changed; later changes of its convolutions and batch norms have no effect on the pass.
        """
        self._faster = lambda forward: prepare(forward, device, precision, scales, switches)
        self._forward = self._faster(self._forward)
        self._in_few_kernels = device.type == "cuda" and (switches or Switches()).descent
        self.stages = self._quickened(self.stages)
        self._ways = {}

    def calibrate(self, images: Sequence[Callable[[], Tensor]], least: float | None = None) -> Scales:
        """Scales with which `prepare` computes this network in integers; see `vbp.saliency.prepared.calibration`.

        Args:
            images: functions that return an image, about 80 of them, similar to the images to explain: float32
                (1, C, H, W) as the network takes it, on the CPU.
            least: least Pearson correlation of each held-out mask with the float32 mask; None: 0.999.

        Raises:
            UsageError: there are too few images.
            ModelError: this network cannot be computed with integers.
        """

        def mask_of(forward: ForwardPass, image_1CHW: Tensor) -> Tensor:
            other = copy(self)
            other._forward, other._ways = forward, {}
            return other(image_1CHW)

        return calibrate(self._forward, images, mask_of, least)

    def _way_by(self, found: Trace) -> tuple[tuple[Stage, ...], ForwardPass]:
        """The stages of the method, and the pass that computes their maps."""
        found = found.chosen(self.method.stages)
        signed_by_tap = {tap: stage.signed for tap, stage in zip(found.taps, found.stages, strict=True)}
        poolings = max_poolings(found.stages) if self.method.pooling == "unpool" else {}
        stages = merged_pooling(found.stages) if self.method.pooling == "merged" else found.stages
        forward = ForwardPass(self.model, averaged(found.graph, signed_by_tap, poolings, found.layouts))
        return self._quickened(stages), forward

    def _quickened(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        if not self._in_few_kernels:
            return stages
        return in_few_kernels(stages, max_poolings(stages) if self.method.pooling == "unpool" else ())

    def _way(self, images_BCHW: Tensor) -> tuple[tuple[Stage, ...], ForwardPass]:
        """The same for images of this size; only a network that computes with sizes has several."""
        if not self._trace.sized:
            return self.stages, self._forward
        size = _size(images_BCHW)
        with self._tracing:
            if size not in self._ways:
                kept = list(self._ways.items())[1 - SIZES :]
                self._ways = {**dict(kept), size: self._way_at(images_BCHW.shape[1], size)}
            stages, forward = self._ways[size]
        return stages, forward or self._forward

    def _way_at(self, channels: int, size: Size) -> tuple[tuple[Stage, ...], ForwardPass | None]:
        """The stages for a size, and a pass of their own where the network does something else at this size."""
        found = self._trace.at(self.model, (2, channels, *size))
        stages, forward = self._way_by(found)
        same = found.graph is self._trace.graph and found.taps == self._trace.taps
        return stages, None if same else self._faster(forward)

    def __call__(self, images_BCHW: Tensor, *, target: Target | None = None) -> Tensor:
        """The masks, float32 (B, 1, H, W) in [0, 1]; without a target only the network's feature part is run.

        Args:
            images_BCHW: as the network takes them: normalised, on its device, of its dtype.
            target: see `explain`.
        """
        return self.explain(images_BCHW, target=target, classify=False).mask

    def explain(self, images_BCHW: Tensor, *, target: Target | None = None, classify: bool = True) -> Explanation:
        """The masks and the intermediate results.

        Args:
            images_BCHW: as the network takes them: normalised, on its device, of its dtype.
            target: weight the channels of the deepest map by their effect on a class, as Grad-CAM does: a class,
                one for each image, `predicted`, or a function of the output; see `vbp.saliency.target`. It needs a
                backward pass through the classifier, but not through the features. None: the plain average, without
                a class.
            classify: run the whole network, not only its feature part, for `.output`.

        Raises:
            ImageError: the images are too small for the network.
            ModelError: a layer of the network does not do what its settings say.
            UsageError: the images do not fit the network, or its output has no such target.
        """
        check_images(images_BCHW)
        # The network may change its input in place, and smoothing needs it again.
        kept_BCHW = images_BCHW.clone() if self.method.smooth else images_BCHW
        result = self._explain(images_BCHW, target, classify or target is not None)
        if self.method.smooth:
            # All noisy copies of an image use the class of the image itself.
            target = predicted_now(result.output) if isinstance(target, str) else target
            result = self._smoothed(result, kept_BCHW, target)
        return result if classify else replace(result, output=None)

    def _smoothed(self, plain: Explanation, images_BCHW: Tensor, target: Target | None) -> Explanation:
        """The explanation with the average over noisy copies as its mask."""
        total_B1HW, finite_B = torch.zeros_like(plain.mask), plain.finite
        for copies_BCHW in noisy_copies(images_BCHW, self.method.smooth, self.method.noise, self.method.seed):
            one = self._explain(copies_BCHW, target, target is not None)
            total_B1HW += one.mask
            finite_B = finite_B & one.finite
        mask_B1HW, flat_B = _normalise(total_B1HW, finite_B)
        return replace(plain, mask=mask_B1HW, flat=flat_B, finite=finite_B)

    def _explain(self, images_BCHW: Tensor, target: Target | None, whole: bool) -> Explanation:
        """One pass, of the whole network or its feature part, and the way back."""
        stages, forward = self._way(images_BCHW)
        input_size = self._check_size(images_BCHW, stages)
        weighted = target is not None
        # Tensors that were made in inference mode cannot be differentiated.
        with torch.inference_mode(torch.is_inference_mode_enabled() and not weighted), torch.no_grad():
            if weighted and images_BCHW.is_inference():
                images_BCHW = images_BCHW.clone()
            # Computed before the pass, because the network may change its input in place.
            gamma_B1HW = channel_mean(images_BCHW).clamp(min=0) if self.method.multiply_input else None
            with blaming_images(images_BCHW, self.model), evaluating(self.model), torch.no_grad():
                output, maps_N1HW, switches, deepest_NCHW = forward(images_BCHW, whole=whole, differentiable=weighted)
                if target is not None and deepest_NCHW is not None:
                    maps_N1HW[-1] = weighted_mean(deepest_NCHW, score_of(output, target), self._layout)
                    output = tree_map(_detached, output)
            self._check_maps(maps_N1HW, stages, input_size)
            stages = unpooled(stages, switches)
            result = visual_backprop(maps_N1HW, stages, input_size, self.method.preset, gamma_B1HW)
        return Explanation(
            mask=result.mask_N1HW,
            output=output,
            maps=maps_N1HW,
            masks=result.masks_N1HW,
            flat=result.flat_N,
            log10_max=result.log10_max_N,
            finite=result.finite_N,
        )

    def _check_size(self, images_BCHW: Tensor, stages: tuple[Stage, ...]) -> Size:
        size = _size(images_BCHW)
        if min(min(map_size) for map_size in map_sizes(stages, size)) < 1:
            refuse_odd(images_BCHW, self.model)
            raise ImageError(f"an image of {size[0]}x{size[1]} pixels is too small for {type(self.model).__name__}.")
        return size

    def _check_maps(self, maps_N1HW: list[Tensor], stages: tuple[Stage, ...], input_size: Size) -> None:
        for stage, found, size in zip(stages, maps_N1HW, map_sizes(stages, input_size), strict=True):
            if _size(found) != size:
                raise ModelError(
                    f"{type(self.model).__name__} gives {stage.name} the size {_size(found)}, but its layers' settings "
                    f"say {size}: a layer that does something else cannot be explained."
                )
