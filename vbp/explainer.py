"""The engine: batches of uint8 pixels on a device in, masks and predictions out.

Shapes: B images, H rows, W columns, C = 3 colours (RGB), K classes; h and w are the size of a feature map.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from threading import Barrier
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vbp.choices import Channels, Pooling, Preset
from vbp.errors import ImageError, UsageError
from vbp.networks.models import Model, check_channels, load_model
from vbp.networks.preprocessing import Preprocessing
from vbp.saliency.method import Method
from vbp.saliency.prepared.calibration import IMAGES
from vbp.saliency.prepared.int8 import Scales
from vbp.saliency.visualbackprop import Explanation, VisualBackProp

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
"""And the type of what is not computed in integers."""
WITHOUT_BFLOAT16 = frozenset(
    ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX10_1_256")
)
"""Values of ONEDNN_MAX_CPU_ISA under which oneDNN does not multiply bfloat16 in hardware, whatever there is."""
LACK_OF_MEMORY = (
    "out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)  # fmt: skip
"""What is in the messages of CUDA's libraries when they find no memory: their errors have no type of their own."""


Calibration = NDArray[np.uint8] | Sequence[NDArray[np.uint8]] | Scales
"""Images, or what came of them."""


@dataclass(frozen=True)
class ExplainedBatch:
    """The masks and predictions of a batch, as NumPy arrays on the CPU."""

    mask_BHW: NDArray[np.float32]
    """In [0, 1], at the pixels' size; all zero where flat or not finite."""
    flat_B: NDArray[np.bool_]
    """The mask has one value only."""
    finite_B: NDArray[np.bool_]
    """No infinity or NaN came up on the way."""
    log10_max_B: NDArray[np.float64]
    """log10 of the mask's maximum before any normalisation; -inf where that is 0, NaN if not finite."""
    logits_BK: NDArray[np.float32] | None
    """The classifier's output; None where there is no classifier or it was not asked for."""
    maps: list[NDArray[np.float32]] | None
    """With `keep_maps`: the averaged feature maps (B, h, w), from the input upwards."""
    masks: list[NDArray[np.float32]] | None
    """With `keep_maps`: the intermediate masks (B, h, w), each at the size of its map."""


class Explainer:
    """A network on a device that explains batches of pixels.

    Args:
        model: torchvision's name of a network, or a loaded `Model` (which is copied, not changed).
        weights: see `load_model`; without effect for a loaded `Model`.
        preset: `paper` or `reference`, see `VisualBackProp` for this and for what it shares with it.
        device: `auto` (the first CUDA device, else the CPU) or a torch device, such as `mps`.
        precision: of the network: `float32`, `bfloat16`, or `auto` (bfloat16 where the device computes it natively).
            Averaged maps and masks are always float32. `int8`, on CPUs alone and never by `auto`, computes the
            convolutions in integers and needs `calibration`.
        batch_size: run every batch at exactly this size, filled with black images where fewer came and cut where
            more came, so that an image's mask never depends on how many images came with it. Halved for good where
            the GPU runs out of memory, which may change last bits.
        side_by_side: on a CPU, run the batches of `batch_size` images at the same time, each on a thread of its own.
            That is faster than one after another on all threads, which wait for each other after every layer; it takes
            the memory of so many batches. How many threads there are changes no result, not even last bits.
        seed: of random weights, and of the noise.
        stages: which maps are multiplied.
        pooling: the way down through pooling.
        multiply_input: multiply the mask with the (normalised) input.
        smooth: how many noisy copies to average.
        noise: how noisy.
        target: None, or `predicted`: weight the deepest map for the predicted class.
        classify: run the classifier as well, where there is one.
        keep_maps: return the averaged maps and intermediate masks.
        storage_options: to read the weights, as for ``vbp.storage.files.read_uri``.
        preprocessing: what the network wants to see; by default as the network's source says (`Model.preprocessing`).
        calibration: for `int8`: about 80 images that are like those to come, uint8 (N, H, W, 3) or a sequence of
            (H, W, 3); or the `scales` of another `Explainer` of this network.
        method: preset, stages, pooling, multiply_input, smooth, noise, target and the noise's seed as one value,
            instead of them.

    Attributes:
        method: what was chosen.
        scales: what calibration found, plain data; None but for `int8`.

    Raises:
        ModelError: the network is unknown or cannot be explained, or integers do not suit it.
        WeightsError: the checkpoint cannot be had or read, or does not fit.
        UsageError: there is no such preset, device or precision, no classifier for the target, no calibration, or
            another number of channels than the network takes.
    """

    def __init__(
        self,
        model: str | Model = "vgg16",
        weights: str = "imagenet",
        preset: Preset = "paper",
        device: str = "auto",
        precision: str = "auto",
        *,
        batch_size: int | None = None,
        side_by_side: bool = False,
        seed: int = 500,
        stages: str | Collection[str] = "all",
        pooling: Pooling = "exact",
        multiply_input: bool = False,
        smooth: int = 0,
        noise: float = 0.1,
        target: Literal["predicted"] | None = None,
        classify: bool = True,
        keep_maps: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        preprocessing: Preprocessing | None = None,
        calibration: Calibration | None = None,
        method: Method | None = None,
    ):
        self.method = method or Method(
            preset=preset,
            stages=stages,
            pooling=pooling,
            multiply_input=multiply_input,
            target=target,
            smooth=smooth,
            noise=noise,
            seed=seed,
        )
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size (={batch_size}) must be at least 1.")
        self._device = resolve_device(device)
        self.precision = resolve_precision(precision, device)
        self.batch_size = batch_size
        self._pool: ThreadPoolExecutor | None = None
        self._keep_maps = keep_maps
        if isinstance(model, str):
            self.model = load_model(model, weights, seed=seed, storage_options=storage_options)
            network = self.model.network
        else:
            self.model = model
            network = deepcopy(model.network)
        self.preprocessing = preprocessing or self.model.preprocessing
        check_channels(network, self.preprocessing)
        self._classify = classify and self.model.num_classes is not None
        if self.method.target is not None and self.model.num_classes is None:
            raise UsageError(f"target {self.method.target!r} needs a classifier, and {self.model.name} has none.")
        prepared = _prepare(network, self._device, PRECISIONS[self.precision])
        self._vbp = VisualBackProp(prepared, method=self.method)
        self._mean_1C11 = torch.tensor(self.preprocessing.mean, device=self._device).view(1, -1, 1, 1)
        self._std_1C11 = torch.tensor(self.preprocessing.std, device=self._device).view(1, -1, 1, 1)
        self.scales = self._scales(calibration) if self.precision == "int8" else None
        self._vbp.prepare(self._device, self.precision, self.scales)
        if self._device.type == "cpu" and side_by_side:
            self._pool = single_threads()

    @property
    def device(self) -> str:
        """`cpu`, `cuda:0` and the like."""
        return str(self._device)

    def __call__(self, pixels_BHWC: NDArray[np.uint8] | Tensor) -> ExplainedBatch:
        """Explain a batch of RGB images of one size, uint8 (B, H, W, 3).

        Raises:
            UsageError: the pixels have another shape or type.
            ImageError: the images are too small for the network, or one alone too large for the GPU's memory.
        """
        pixels = _checked(torch.as_tensor(pixels_BHWC))
        if self._pool is not None:
            size = self.batch_size or len(pixels)
            batches = (pixels[first : first + size] for first in range(0, len(pixels), size))
            return _join(list(self._pool.map(self._explain, batches)))
        parts: list[ExplainedBatch] = []
        done = 0
        while done < len(pixels):
            size = self.batch_size or len(pixels)
            try:
                parts.append(self._explain(pixels[done : done + size]))
                done += size
            except RuntimeError as error:
                if not _lacks_memory(error):
                    raise
                if size == 1:
                    place = "x".join(map(str, pixels.shape[1:3]))
                    raise ImageError(f"an image of {place} pixels needs more memory than the GPU has.") from error
                self.batch_size = size // 2
                torch.accelerator.empty_cache()
        return _join(parts)

    def _scales(self, calibration: Calibration | None) -> Scales:
        if self._device.type != "cpu":
            raise UsageError(f"precision 'int8' is for CPUs, not for {self.device}: give float32, bfloat16 or auto.")
        if isinstance(calibration, Scales):
            return calibration
        if calibration is None:
            raise UsageError(
                f"precision 'int8' needs calibration: about {IMAGES} images like those to come, uint8 (N, H, W, 3), or "
                "the .scales of an earlier Explainer."
            )
        images = [_checked(torch.as_tensor(pixels_HWC)[None]) for pixels_HWC in calibration[:IMAGES]]
        return self._vbp.calibrate([partial(self._normalise, image_1HWC) for image_1HWC in images])

    def _explain(self, pixels_BHWC: Tensor) -> ExplainedBatch:
        count = len(pixels_BHWC)
        if self.batch_size is not None and count < self.batch_size:
            black = pixels_BHWC.new_zeros(self.batch_size - count, *pixels_BHWC.shape[1:])
            pixels_BHWC = torch.cat([pixels_BHWC, black])
        with torch.inference_mode(), true_float32(self._device):
            images_BCHW = self._normalise(pixels_BHWC)
            explanation = self._vbp.explain(images_BCHW, target=self.method.target, classify=self._classify)
        return self._batch(explanation, count)

    def _normalise(self, pixels_BHWC: Tensor) -> Tensor:
        # Seen as (B, C, H, W), pixels that lie colour by colour are what torch calls channels_last.
        images_BCHW = _channels(pixels_BHWC.to(self._device).permute(0, 3, 1, 2), self.preprocessing.channels).float()
        images_BCHW.div_(255).sub_(self._mean_1C11).div_(self._std_1C11)
        return images_BCHW.to(PRECISIONS[self.precision])

    def _batch(self, explanation: Explanation, count: int) -> ExplainedBatch:
        def planes(maps_B1HW: list[Tensor]) -> list[NDArray[np.float32]] | None:
            return [_array(map_B1HW[:count, 0]) for map_B1HW in maps_B1HW] if self._keep_maps else None

        return ExplainedBatch(
            mask_BHW=_array(explanation.mask[:count, 0]),
            flat_B=_array(explanation.flat[:count]),
            finite_B=_array(explanation.finite[:count]),
            log10_max_B=_array(explanation.log10_max[:count].cpu().double()),
            logits_BK=_array(explanation.output[:count].float()) if self._classify else None,
            maps=planes(explanation.maps),
            masks=planes(explanation.masks),
        )


def _checked(pixels_BHWC: Tensor) -> Tensor:
    if (
        pixels_BHWC.dtype is not torch.uint8
        or pixels_BHWC.ndim != 4
        or pixels_BHWC.shape[3] != 3
        or len(pixels_BHWC) == 0
    ):
        raise UsageError(
            f"pixels must be uint8 (B, H, W, 3) with B > 0, not {pixels_BHWC.dtype} {tuple(pixels_BHWC.shape)}."
        )
    return pixels_BHWC


def _channels(images_BCHW: Tensor, channels: Channels) -> Tensor:
    """The network's channels of uint8 RGB images, integers as they are."""
    if channels == "bgr":
        return images_BCHW.flip(1)
    if channels == "grey":  # Pillow's arithmetic, so that grey pictures keep their levels
        red_BHW, green_BHW, blue_BHW = images_BCHW.int().unbind(1)
        return (19595 * red_BHW + 38470 * green_BHW + 7471 * blue_BHW + 32768 >> 16).unsqueeze(1)
    return images_BCHW


def single_threads() -> ThreadPoolExecutor:
    """As many threads as torch computes with here, on each of which it computes with that one."""
    count = torch.get_num_threads()
    all_there = Barrier(count)

    def confine(_: int) -> None:
        all_there.wait()
        torch.get_num_threads()  # a thread takes over the common number when it is first asked for, also after this
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(count, "vbp-explain")
    list(pool.map(confine, range(count)))
    torch.set_num_threads(count)  # what other threads will begin with was set to one as well
    return pool


def _lacks_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in LACK_OF_MEMORY)


def resolve_device(device: str) -> torch.device:
    """A device that is there; `auto` is the first CUDA device, else the CPU.

    Raises:
        UsageError: there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device {device!r} is none that torch knows: give auto, cpu, cuda or mps.") from error
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"device {device!r}: torch finds no Apple GPU here; give auto or cpu.")
    if resolved.type != "cuda":
        return resolved
    if (resolved.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {device!r}: torch sees {torch.cuda.device_count()} CUDA devices; give auto or cpu.")
    return torch.device("cuda", resolved.index if resolved.index is not None else torch.cuda.current_device())


def resolve_precision(precision: str, device: str) -> str:
    """A name of `PRECISIONS`: as asked, or for `auto` as the device computes natively.

    Raises:
        UsageError: there is no such precision or device.
    """
    if precision == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is none of auto, {', '.join(PRECISIONS)}.")
    if precision == "bfloat16" and not _takes_bfloat16(resolve_device(device)):
        raise UsageError(f"precision 'bfloat16': device {device!r} has none; give float32 or auto.")
    return precision


def _takes_bfloat16(device: torch.device) -> bool:
    """Apple's older GPUs do not at all; all else does, some of it slowly."""
    try:
        torch.zeros(1, dtype=torch.bfloat16, device=device)
    except TypeError:
        return False
    return True


def has_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware; elsewhere it works too, slower than float32.

    Raises:
        UsageError: there is no such device.
    """
    kind = resolve_device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # oneDNN takes the first of these names
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
    if kind != "cpu" or limit.upper() in WITHOUT_BFLOAT16:
        return False
    # torch has no public name for these that all its versions from 2.11 know.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _prepare(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    network.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Its statistics lose digits in bfloat16, and it takes float32 ones with bfloat16 maps at no cost.
            module.float()
    return network


@contextmanager
def true_float32(device: torch.device) -> Iterator[None]:
    """On CUDA, compute float32 without TF32, which keeps 10 bits of the mantissa and is on for convolutions."""
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    backends: tuple[Any, ...] = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    # torch.compile reads the older settings, which torch refuses to tell where the newer ones contradict them.
    convolutions = _told(lambda: cudnn.allow_tf32)
    products = _told(torch.get_float32_matmul_precision)
    try:
        if convolutions:
            cudnn.allow_tf32 = False
        if products:
            torch.set_float32_matmul_precision("highest")
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        if convolutions:
            cudnn.allow_tf32 = True
        if products:
            torch.set_float32_matmul_precision(products)
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _told(setting: Callable[[], Any]) -> Any:
    """Its value; None where torch refuses, because older and newer settings contradict each other already."""
    try:
        return setting()
    except RuntimeError:
        return None


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().numpy()
    return array


def _join(batches: list[ExplainedBatch]) -> ExplainedBatch:
    if len(batches) == 1:
        return batches[0]

    def joined(name: str) -> Any:
        parts = [getattr(batch, name) for batch in batches]
        if parts[0] is None:
            return None
        if isinstance(parts[0], list):
            return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        return np.concatenate(parts)

    return ExplainedBatch(**{name: joined(name) for name in ExplainedBatch.__dataclass_fields__})
