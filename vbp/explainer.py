"""Explainer: a network on a device that turns batches of uint8 pixels into masks and predictions.

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
from vbp.networks.model import Model
from vbp.networks.models import check_channels, load_model
from vbp.networks.owncode import OwnCode
from vbp.networks.preprocessing import Preprocessing
from vbp.saliency.method import Method
from vbp.saliency.prepared.calibration import IMAGES
from vbp.saliency.prepared.captured import Captured
from vbp.saliency.prepared.int8 import Scales
from vbp.saliency.prepared.repeatable import repeatable
from vbp.saliency.prepared.switches import Switches
from vbp.saliency.visualbackprop import Explanation, VisualBackProp
from vbp.staging import Cuda, Staged

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
"""The precisions, and for each the type of values that are not computed in integers."""
WITHOUT_BFLOAT16 = frozenset(
    ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX10_1_256")
)
"""Values of ONEDNN_MAX_CPU_ISA with which oneDNN does not use the hardware for bfloat16, even if it exists."""
NO_ENGINE = "unable to find an engine"
"""What torch says where cuDNN has no memory for any of its algorithms; also where it has no algorithm at all."""
LACK_OF_MEMORY = (
    "out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", NO_ENGINE,
)  # fmt: skip
"""Texts in errors of CUDA's libraries that run out of memory; these errors have no type of their own."""


Calibration = NDArray[np.uint8] | Sequence[NDArray[np.uint8]] | Scales
"""Images, or scales that were found with some."""
Finish = Callable[[Tensor, Explanation], Mapping[str, Tensor]]
"""Makes the results of a batch on the device, of the uint8 pixels (B, H, W, 3) and their explanation: tensors by name,
each with one entry an image first."""
Arrays = dict[str, NDArray[Any]]
"""Results by name, each with one entry an image first."""


@dataclass(frozen=True)
class ExplainedBatch:
    """The masks and predictions of a batch, as NumPy arrays on the CPU."""

    mask_BHW: NDArray[np.float32]
    """Masks in [0, 1], of the pixels' size; all zero if flat or not finite."""
    flat_B: NDArray[np.bool_]
    """Whether the mask has one value only."""
    finite_B: NDArray[np.bool_]
    """Whether no infinity or NaN occurred in the computation."""
    log10_max_B: NDArray[np.float64]
    """log10 of the mask's maximum before any normalisation; -inf if that is 0, NaN if not finite."""
    logits_BK: NDArray[np.float32] | None
    """The classifier's output; None without a classifier or with `classify=False`."""
    maps: list[NDArray[np.float32]] | None
    """With `keep_maps`: the averaged feature maps (B, h, w), from the input upwards."""
    masks: list[NDArray[np.float32]] | None
    """With `keep_maps`: the intermediate masks (B, h, w), each at the size of its map."""

    @classmethod
    def of(cls, arrays: Arrays) -> ExplainedBatch:
        """The batch with these results of `Explainer.arrays`."""
        maps, masks = ([arrays[name] for name in arrays if name.startswith(kind)] for kind in ("map_", "submask_"))
        return cls(
            mask_BHW=arrays["mask"],
            flat_B=arrays["flat"],
            finite_B=arrays["finite"],
            log10_max_B=arrays["log10_max"],
            logits_BK=arrays.get("logits"),
            maps=maps or None,
            masks=masks or None,
        )


def as_it_is(_: Tensor, found: Explanation) -> dict[str, Tensor]:
    """The results ``mask``, float32 (B, H, W), and with a classifier ``logits``, float32 (B, K)."""
    mask = {"mask": found.mask[:, 0]}
    return mask if found.output is None else mask | {"logits": found.output.float()}


class Explainer:
    """A network on a device that explains batches of pixels.

    Args:
        model: name of a network, as for `load_model`, or a loaded `Model`, which is copied and not changed.
        weights: see `load_model` for this, `model_args`, `submodule`, `size` and `code`; without effect for a loaded
            `Model`.
        preset: `paper` or `reference`; see `VisualBackProp` for this and the other settings of the method.
        device: `auto` (the first CUDA device, else the CPU) or a torch device, such as `mps`.
        precision: of the network: `float32`, `bfloat16`, or `auto` (bfloat16 if the device computes it natively).
            Averaged maps and masks are always float32. `int8`, only on CPUs and never by `auto`, computes the
            convolutions in integers and needs `calibration`.
        batch_size: run every batch at exactly this size: smaller batches are filled with black images, larger ones
            are split. So an image's mask never depends on the number of images beside it. If the GPU runs out of
            memory, the size is halved for good, which may change last bits.
        side_by_side: on a CPU, run several batches of `batch_size` images at the same time, each on its own thread.
            That is faster than one batch on all threads, which wait for each other after every layer, but needs the
            memory of all these batches. The number of threads changes no result, not even last bits.
        seed: seed of random weights and of the noise.
        stages: which maps are multiplied.
        pooling: how the mask is led down through pooling.
        multiply_input: multiply the mask with the (normalised) input.
        smooth: number of noisy copies to average.
        noise: standard deviation of the noise.
        target: None, or `predicted`: weight the deepest map for the predicted class.
        classify: also run the classifier, if there is one.
        keep_maps: return the averaged maps and intermediate masks.
        storage_options: options to read the weights, as for ``vbp.storage.files.read_uri``.
        preprocessing: the network's preprocessing; by default that of its source (`Model.preprocessing`).
        model_args: arguments of a function of your own, or of timm's.
        submodule: the part of the network to explain; it predicts nothing.
        size: side of the images on which a network of your own is tried.
        code: code of your own that was read on another machine.
        calibration: for `int8`: about 80 images like those to be explained, uint8 (N, H, W, 3) or a sequence of
            (H, W, 3); or the `scales` of another `Explainer` of this network.
        method: preset, stages, pooling, multiply_input, smooth, noise, target and the noise's seed as one value,
            instead of these arguments.
        finish: what `arrays` returns of each batch, computed on the device, so that nothing else is copied from there;
            on CUDA it must not wait for the device.
        switches: which optimisations for CUDA are used, for measurements; None: all.

    Attributes:
        method: the method, with all its settings.
        scales: for `int8`, the scales from calibration, as plain data; else None.

    Raises:
        ModelError: the network is unknown, cannot be explained, or cannot be computed with integers.
        WeightsError: the checkpoint cannot be fetched or read, or does not fit.
        UsageError: `model` is a network itself; the preset, device or precision does not exist; the classifier for
            a target or the calibration is missing; or the network takes another number of channels.
    """

    def __init__(
        self,
        model: str | Model = "vgg16",
        weights: str | None = None,
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
        model_args: Mapping[str, Any] | None = None,
        submodule: str | None = None,
        size: int | None = None,
        code: OwnCode | None = None,
        calibration: Calibration | None = None,
        method: Method | None = None,
        switches: Switches | None = None,
        finish: Finish = as_it_is,
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
        if not isinstance(model, str | Model):
            raise UsageError(
                f"model (={type(model).__name__}) must be a name, such as vgg16 or your own PACKAGE.MODULE:FUNCTION; a "
                "module itself is for VisualBackProp(module), or for vbp.pipeline.steps.Explain(module, "
                "preprocessing=...), which takes photos."
            )
        if isinstance(model, str):
            self.model = load_model(
                model,
                weights,
                model_args=model_args,
                submodule=submodule,
                size=size,
                seed=seed,
                storage_options=storage_options,
                code=code,
            )
            network = self.model.network
        else:
            self.model = model
            network = deepcopy(model.network)
        self.preprocessing = _known(preprocessing or self.model.preprocessing, self.model.name)
        check_channels(network, self.preprocessing)
        self._classify = classify and self.model.num_classes is not None
        if self.method.target is not None and self.model.num_classes is None:
            raise UsageError(f"target {self.method.target!r} needs a classifier, and {self.model.name} has none.")
        prepared = _prepare(network, self._device, PRECISIONS[self.precision])
        self._vbp = VisualBackProp(prepared, method=self.method)
        self._mean_C = torch.tensor(self.preprocessing.mean, device=self._device)
        self._std_C = torch.tensor(self.preprocessing.std, device=self._device)
        self.scales = self._scales(calibration) if self.precision == "int8" else None
        self._vbp.prepare(self._device, self.precision, self.scales, switches)
        self._finish = finish
        self._names: tuple[str, ...] = ()
        if self._device.type == "cpu" and side_by_side:
            self._pool = single_threads()
        function = Captured(self._compute) if (switches or Switches()).graph else self._compute
        self._staged = Staged(function, Cuda(self._device)) if self._device.type == "cuda" else None

    @property
    def device(self) -> str:
        """The device, such as `cpu` or `cuda:0`."""
        return str(self._device)

    def __call__(self, pixels_BHWC: NDArray[np.uint8] | Tensor) -> ExplainedBatch:
        """Explain a batch of RGB images of one size, uint8 (B, H, W, 3).

        Several threads may call it at the same time. On CUDA their batches overlap: one is copied to the device while
        another is computed.

        Raises:
            UsageError: the pixels have another shape or type.
            ImageError: the images are too small for the network, or a single one is too large for the GPU's memory.
        """
        return ExplainedBatch.of(self.arrays(pixels_BHWC))

    def arrays(self, pixels_BHWC: NDArray[np.uint8] | Tensor) -> Arrays:
        """The results of such a batch by name: those of `finish`, and ``flat``, ``finite`` and ``log10_max``.

        With `keep_maps` also ``map_00``, ... and ``submask_00``, ..., from the input upwards. See `ExplainedBatch` for
        their meaning, and `__call__` for errors.
        """
        pixels = _checked(pixels_BHWC)
        if self._pool is not None:
            size = self.batch_size or len(pixels)
            batches = (pixels[first : first + size] for first in range(0, len(pixels), size))
            return _join(list(self._pool.map(self._explain, batches)))
        parts: list[Arrays] = []
        done = 0
        while done < len(pixels):
            size = self.batch_size or len(pixels)
            try:
                parts.append(self._explain(pixels[done : done + size]))
                done += size
            except RuntimeError as error:
                if not _lacks_memory(error) or (size == 1 and NO_ENGINE in str(error)):
                    raise
                if size == 1:
                    place = "x".join(map(str, pixels.shape[1:3]))
                    raise ImageError(f"an image of {place} pixels needs more memory than the GPU has.") from error
                self.batch_size = min(size // 2, self.batch_size or size)  # another thread may have halved it too
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
        images = [_tensor(_checked(pixels_HWC[None])) for pixels_HWC in calibration[:IMAGES]]
        return self._vbp.calibrate([partial(self.normalise, image_1HWC) for image_1HWC in images])

    def _explain(self, pixels_BHWC: NDArray[np.uint8] | Tensor) -> Arrays:
        count = len(pixels_BHWC)
        rows = max(count, self.batch_size or 0)
        if self._staged is not None and isinstance(pixels_BHWC, np.ndarray):
            results = self._staged(pixels_BHWC, rows)
        else:
            pixels = _tensor(pixels_BHWC).to(self._device)
            if count < rows:
                pixels = torch.cat([pixels, pixels.new_zeros(rows - count, *pixels.shape[1:])])
            results = [_array(result[:count]) for result in self._compute(pixels)]
        return dict(zip(self._names, results, strict=True))

    def _compute(self, pixels_BHWC: Tensor) -> tuple[Tensor, ...]:
        """All work on the device: uint8 pixels in, results out, in the order of `_names`.

        On CUDA nothing here waits for the device or copies from the host, so that batches overlap, and a graph can
        capture it.
        """
        with torch.inference_mode(), true_float32(self._device), repeatable(self._device):
            images_BCHW = self.normalise(pixels_BHWC).to(PRECISIONS[self.precision])
            found = self._vbp.explain(images_BCHW, target=self.method.target, classify=self._classify)
            results = {
                **self._finish(pixels_BHWC, found),
                "flat": found.flat,
                "finite": found.finite,
                "log10_max": found.log10_max,
                **(self._planes(found) if self._keep_maps else {}),
            }
        self._names = tuple(results)  # always the same
        return tuple(results.values())

    def _planes(self, found: Explanation) -> dict[str, Tensor]:
        kinds = {"map": found.maps, "submask": found.masks}
        return {f"{kind}_{n:02d}": each[:, 0] for kind, planes in kinds.items() for n, each in enumerate(planes)}

    def normalise(self, pixels_BHWC: Tensor) -> Tensor:
        """Pixels, uint8 (B, H, W, 3), as the network takes them: float32 (B, C, H, W) on its device."""
        channels_BHWC = _channels(pixels_BHWC.to(self._device), self.preprocessing.channels).float()
        # Rows of all channels side by side are long enough for vector instructions; the channels of a pixel are not.
        rows_BHX = channels_BHWC.flatten(2)
        mean_X, std_X = (values_C.repeat(pixels_BHWC.shape[2]) for values_C in (self._mean_C, self._std_C))
        rows_BHX.div_(255).sub_(mean_X).div_(std_X)
        # Permuted to (B, C, H, W), these pixels have torch's memory format channels_last.
        return rows_BHX.view(channels_BHWC.shape).permute(0, 3, 1, 2)


def _known(preprocessing: Preprocessing | None, name: str) -> Preprocessing:
    if preprocessing is None:
        raise UsageError(
            f"model {name!r} does not say how pixels become its input: give preprocessing=Preprocessing(mean, std) of "
            "vbp.networks.preprocessing, with the values that it was trained with."
        )
    return preprocessing


def _checked(pixels_BHWC: NDArray[np.uint8] | Tensor) -> NDArray[np.uint8] | Tensor:
    """The pixels, as an array if they are on the CPU."""
    if isinstance(pixels_BHWC, Tensor) and pixels_BHWC.device.type == "cpu":
        pixels_BHWC = pixels_BHWC.numpy()
    shape = tuple(pixels_BHWC.shape)
    if pixels_BHWC.dtype not in (np.uint8, torch.uint8) or len(shape) != 4 or shape[3] != 3 or shape[0] == 0:
        kind = str(pixels_BHWC.dtype).removeprefix("torch.")
        raise UsageError(f"pixels must be uint8 (B, H, W, 3) with B > 0, not {kind} {shape}.")
    return pixels_BHWC


def _tensor(pixels_BHWC: NDArray[np.uint8] | Tensor) -> Tensor:
    """The pixels as a tensor; torch has none that is read-only, as arrays from Ray's shared memory are."""
    if isinstance(pixels_BHWC, Tensor):
        return pixels_BHWC
    return torch.from_numpy(np.require(pixels_BHWC, requirements="W"))


def _channels(pixels_BHWC: Tensor, channels: Channels) -> Tensor:
    """The channels that the network takes, of uint8 RGB pixels; values stay uint8, or int32 for grey."""
    if channels == "bgr":
        return pixels_BHWC.flip(3)
    if channels == "grey":  # as Pillow computes it, so that grey pictures keep their levels
        red_BHW, green_BHW, blue_BHW = pixels_BHWC.int().unbind(3)
        return (19595 * red_BHW + 38470 * green_BHW + 7471 * blue_BHW + 32768 >> 16).unsqueeze(3)
    return pixels_BHWC


def single_threads() -> ThreadPoolExecutor:
    """A pool with as many threads as torch uses here; on each of them torch computes with that one thread."""
    count = torch.get_num_threads()
    all_there = Barrier(count)

    def confine(_: int) -> None:
        all_there.wait()
        torch.get_num_threads()  # the first call in a thread resets its number to the common one, so call it first
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(count, "vbp-explain")
    list(pool.map(confine, range(count)))
    torch.set_num_threads(count)  # the calls above have also set the number for future threads to one
    return pool


def _lacks_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in LACK_OF_MEMORY)


def resolve_device(device: str) -> torch.device:
    """A device of this machine; `auto` is the first CUDA device, else the CPU.

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
    """A name of `PRECISIONS`; `auto` becomes the one that the device computes natively.

    Raises:
        UsageError: the precision or device does not exist.
    """
    if precision == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is none of auto, {', '.join(PRECISIONS)}.")
    if precision == "bfloat16" and not _takes_bfloat16(resolve_device(device)):
        raise UsageError(f"precision 'bfloat16': device {device!r} has none; give float32 or auto.")
    return precision


def _takes_bfloat16(device: torch.device) -> bool:
    """Whether the device can compute bfloat16 at all; only Apple's older GPUs cannot, others may be slow."""
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
    # oneDNN prefers the first of these names
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
    if kind != "cpu" or limit.upper() in WITHOUT_BFLOAT16:
        return False
    # torch has no public name for these that all its versions from 2.11 know.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _prepare(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    network.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Its statistics lose digits in bfloat16; it takes float32 statistics with bfloat16 maps at no cost.
            module.float()
    return network


@contextmanager
def true_float32(device: torch.device) -> Iterator[None]:
    """On CUDA, switch off TF32, which has 10 bits of mantissa and is on by default for convolutions."""
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    backends: tuple[Any, ...] = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    # torch.compile reads the older settings; torch refuses to read them if the newer ones contradict them.
    convolutions = _readable(lambda: cudnn.allow_tf32)
    products = _readable(torch.get_float32_matmul_precision)
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


def _readable(setting: Callable[[], Any]) -> Any:
    """The value of a setting; None if torch refuses to read it, because older and newer settings contradict."""
    try:
        return setting()
    except RuntimeError:
        return None


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().numpy()
    return array


def _join(batches: list[Arrays]) -> Arrays:
    if len(batches) == 1:
        return batches[0]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
