"""How far pixels and masks of ``--decode gpu`` differ from those of the CPU's decoder, on a folder of photos.

``python -m vbp.evidence.decoding PHOTOS --weights vgg16_features.safetensors`` prints a table. `PHOTOS` are what a run
would take; both ways are the steps of a run. TorchCodec decodes on ``--device``. Where simplejpeg is installed, it
stands in for a decoder that does not interpolate colours, as those of GPUs may not.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vbp.evidence.int8 import Likeness
from vbp.evidence.page import table
from vbp.evidence.timing import machine
from vbp.explainer import Explainer
from vbp.images.device_decode import Decoder, torchcodec
from vbp.pipeline.steps import Batch, Decode, DecodeOnDevice, good_rows, objects
from vbp.storage.collections.tree import list_tree
from vbp.storage.files import Folder

HEAD = (
    "decoder", "JPEGs it decoded", "pixels: largest difference in levels", "mean", "masks: least Pearson", "median",
    "largest difference",
)  # fmt: skip


def files_of(folder: str) -> Batch:
    """The images of a tree, as Fetch hands them on."""
    source = Folder(folder)
    rows = list(list_tree(source))
    data = [source.read(os.fsdecode(row.path or b"")) for row in rows]
    return {"key": objects([row.key for row in rows]), "data": objects(data)}


def simplejpeg_without_interpolation(files: Sequence[bytes]) -> list[torch.Tensor]:
    """Colours of halved resolution are doubled, not interpolated."""
    import simplejpeg

    return [torch.from_numpy(simplejpeg.decode_jpeg(file, fastupsample=True)).permute(2, 0, 1) for file in files]


def compared(files: Batch, decoders: Mapping[str, Decoder], explainer: Explainer) -> Iterator[tuple[str, ...]]:
    """A row below `HEAD` for each decoder, of the images that it decodes.

    Args:
        files: columns ``key`` and ``data``.
        decoders: by name.
        explainer: makes the masks, on pixels of its usual size.
    """
    how: dict[str, Any] = {"preprocessing": explainer.preprocessing}
    expected = Decode(**how)(files)
    left = Decode(**how, before_device=True)(files)
    rows = [row for row in good_rows(expected) if left["data"][row]]
    exact_NHW = _masks(explainer, expected["pixels"][rows])
    for name, decoder in decoders.items():
        pixels_NHWC = DecodeOnDevice(decoder, **how)(left)["pixels"][rows]
        gaps = np.abs(pixels_NHWC.astype(int) - expected["pixels"][rows])
        pairs = zip(_masks(explainer, pixels_NHWC), exact_NHW, strict=True)
        likenesses = [Likeness.of(*pair) for pair in pairs]
        pearson = [likeness.pearson for likeness in likenesses]
        yield (
            name,
            f"{len(rows)} of {len(files['key'])}",
            f"{gaps.max()}",
            f"{gaps.mean():.3f}",
            f"{min(pearson):.5f}",
            f"{np.median(pearson):.5f}",
            f"{max(likeness.difference for likeness in likenesses):.3f}",
        )


def _masks(explainer: Explainer, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    return explainer(pixels_NHWC).mask_BHW


def main() -> None:
    """Compare and print the table."""
    parser = argparse.ArgumentParser(prog="python -m vbp.evidence.decoding", description=__doc__)
    parser.add_argument("photos", help="a folder of images")
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--device", default="cpu", help="where TorchCodec decodes: cpu or cuda")
    options = parser.parse_args()
    explainer = Explainer(
        options.model, options.weights, device=options.device, precision="float32", classify=False, batch_size=2
    )
    decoders = {f"TorchCodec on {options.device}": torchcodec(options.device)}
    try:
        import simplejpeg  # noqa: F401

        decoders["simplejpeg, colours not interpolated"] = simplejpeg_without_interpolation
    except ImportError:
        sys.stderr.write("simplejpeg is left out: pip install 'visualbackprop[bench]' brings it.\n")
    told = ", ".join(f"{name} {value}" for name, value in machine(options.device).items() if name in ("cpu", "torch"))
    sys.stdout.write(f"{told}\n\n{table(HEAD, [*compared(files_of(options.photos), decoders, explainer)])}\n")


if __name__ == "__main__":
    main()
