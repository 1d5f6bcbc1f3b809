"""How fast the engine, the codecs and the pipeline are, each beside its limit or rival, in one run.

``engine``: our masks, the bare forward pass, and the reference project's algorithm, on the same pixels.
``codecs``: decoding, overlay and encoding, on one thread.
``pipeline``: the local main job on files, against its slowest stage alone, which on a CPU is the engine.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from vbp.demo.scenes import generate
from vbp.evidence.rivals import bare_forward, reference_algorithm
from vbp.evidence.timing import Case, Rate, Ratio, clocked, machine, measure, ratio
from vbp.images.decode import decode
from vbp.images.encode import encode_jpeg, encode_mask
from vbp.images.overlay import overlay
from vbp.pipeline import RunConfig, run
from vbp.saliency.engine import PRECISIONS, Explainer, resolve_precision
from vbp.saliency.models import load_model

SIZE = 224
PHOTO = (500, 375)
"""Width and height of the generated photographs: ImageNet's usual size."""
FILES = 64


def benchmark(batch_size: int, rounds: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything on this machine.

    Args:
        batch_size: images in one forward pass.
        rounds: how often each case is timed, after one warm-up.
        report: gets a line now and then.

    Returns:
        JSON values: ``machine``, ``rates``, ``ratios`` (with targets).
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precisions = sorted({"float32", resolve_precision("auto", device)})
    with tempfile.TemporaryDirectory(prefix="vbp-bench-") as folder:
        photos = Path(folder) / "photos" / "scene"
        _write_photos(photos)
        cases = [
            *_engine_cases(batch_size, device, precisions),
            *_codec_cases(photos),
            *_pipeline_cases(photos.parent, Path(folder), batch_size, precisions),
        ]
        rates = measure(cases, rounds, report)
    return {
        "machine": machine(device),
        "batch_size": batch_size,
        "rates": [rate.as_json() for rate in rates.values()],
        "ratios": [each.as_json() for each in _ratios(rates, device, precisions)],
    }


def _write_photos(folder: Path) -> None:
    folder.mkdir(parents=True)
    for scene in generate(FILES, seed=30_000, size=max(PHOTO)):
        photo = Image.fromarray(scene.pixels_HWC[: PHOTO[1], : PHOTO[0]])
        photo.save(folder / f"{scene.name}.jpg", quality=90)


def _engine_cases(batch_size: int, device: str, precisions: list[str]) -> Iterator[Case]:
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (batch_size, SIZE, SIZE, 3), dtype=np.uint8)
    model = load_model("vgg16", "random")
    images_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float().div(255).to(device)

    def finished(work: Callable[[], Any]) -> Callable[[], tuple[int, float]]:
        def whole() -> None:
            work()
            if device == "cuda":
                torch.cuda.synchronize()

        return clocked(whole, batch_size)

    for precision in precisions:
        # the limit is granted what the engine uses: precision and memory format
        network = load_model("vgg16", "random").network.to(device, PRECISIONS[precision])
        network = network.to(memory_format=torch.channels_last)
        images = images_BCHW.to(PRECISIONS[precision]).contiguous(memory_format=torch.channels_last)
        explainer = Explainer(model, device=device, precision=precision, classify=False)
        yield Case("engine", f"bare forward, {precision}", finished(partial(bare_forward(network), images)))
        yield Case("engine", f"vbp, {precision}", finished(partial(explainer, pixels_BHWC)))
    rival = reference_algorithm(load_model("vgg16", "random").network.to(device))
    yield Case("engine", "reference algorithm as written, float32", finished(partial(rival, images_BCHW)))


def _codec_cases(photos: Path) -> Iterator[Case]:
    data = [path.read_bytes() for path in sorted(photos.iterdir())]
    pictures = [decode(each, size=SIZE).pixels_HWC for each in data]
    grey_HW = np.asarray(Image.fromarray(pictures[0]).convert("L"), np.float32) / 255
    mask_HW = np.gradient(grey_HW)[0] ** 2
    mask_HW /= mask_HW.max()
    drawn = [overlay("heat", pixels_HWC, mask_HW) for pixels_HWC in pictures]

    def on_each(work: Callable[[Any], Any], items: list[Any]) -> Callable[[], tuple[int, float]]:
        def whole() -> None:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            for item in items:
                work(item)
            torch.set_num_threads(threads)

        return clocked(whole, len(items))

    yield Case("codecs", "decode JPEG 500x375 to 224", on_each(partial(decode, size=SIZE), data))
    yield Case("codecs", "heat overlay", on_each(lambda pixels_HWC: overlay("heat", pixels_HWC, mask_HW), pictures))
    yield Case("codecs", "overlay JPEG", on_each(encode_jpeg, drawn))
    yield Case("codecs", "mask PNG, 8 bits", on_each(lambda _: encode_mask(mask_HW, "png8"), pictures))
    yield Case("codecs", "mask PNG, 16 bits", on_each(lambda _: encode_mask(mask_HW, "png16"), pictures))


def _pipeline_cases(photos: Path, folder: Path, batch_size: int, precisions: list[str]) -> Iterator[Case]:
    """The main job without a classifier, as the engine is measured; its own clock leaves start-up out."""
    tensors = load_model("vgg16", "random").network.state_dict()
    weights = folder / "features.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if name.startswith("features.")}, weights)
    numbers = itertools.count()

    def job(precision: str) -> tuple[int, float]:
        config = RunConfig(
            input=str(photos),
            output=str(folder / f"out-{next(numbers)}"),
            weights=str(weights),
            batch_size=batch_size,
            precision=precision,  # type: ignore[arg-type]
            runner="local",
        )
        summary = run(config)
        return summary.computed, summary.seconds

    for precision in precisions:
        yield Case("pipeline", f"main job on files, {precision}", partial(job, precision))


def _ratios(rates: Mapping[str, Rate], device: str, precisions: list[str]) -> Iterator[Ratio]:
    least = 0.95 if device == "cpu" else 0.90
    rival = rates["reference algorithm as written, float32"]
    against_rival = {"float32": 1.4, "bfloat16": 2.6}
    for precision in precisions:
        ours, forward = rates[f"vbp, {precision}"], rates[f"bare forward, {precision}"]
        yield ratio(f"engine over bare forward, {precision}", ours, forward, least)
        yield ratio(f"engine over reference algorithm, {precision}", ours, rival, against_rival[precision])
        yield ratio(f"main job over engine, {precision}", rates[f"main job on files, {precision}"], ours, 0.90)
