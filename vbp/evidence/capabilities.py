"""``vbp benchmark engine --capabilities``: the engine compared with the bare forward pass, as on weaker processors.

Environment variables limit torch and oneDNN to what an older processor has. They are read when torch is imported, so
each capability is measured in processes of its own, with one thread, as in every worker on a CPU. So is each network:
oneDNN keeps 1,024 prepared operations, and five networks in two precisions need more; those that it has dropped are
prepared anew in every pass. For the comparison with the bare forward pass all networks run with their classifier. Int8
is compared with floats without the classifier, since that stays in float32: this is the main job with weights that
have no classifier. One convolution, of which everything stays in the cache, is measured in each precision, too: it
shows what the processor's instructions allow, and so what a network can gain by int8 at most, but for its other layers.

torch multiplies matrices with MKL, and so computes some 1x1 convolutions of the bare pass. MKL knows no limit between
its oldest kernels, for SSE2, and the fastest of the processor; SSE4.1 gets the oldest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vbp.evidence.rivals import bare_forward
from vbp.evidence.timing import Case, Figure, Findings, Rate, Setup, clocked, measure, ratio
from vbp.explainer import PRECISIONS, Explainer, has_bfloat16
from vbp.networks.model import Model
from vbp.networks.models import load_model
from vbp.saliency.prepared.byte_layers import QuantisedConvolution, Step
from vbp.saliency.prepared.calibration import LEAST_IMAGES
from vbp.saliency.prepared.cpu import PackedConvolution
from vbp.saliency.prepared.int8 import Scales
from vbp.saliency.visualbackprop import VisualBackProp

FLOATS = ("float32", "bfloat16")
NETWORKS = ("vgg16", "resnet50", "efficientnet_b0", "mobilenet_v3_large", "densenet201")
IN_INTEGERS = ("vgg16", "resnet50")
ONE_CONVOLUTION = "one convolution"
LEAST = 0.95
"""Target: masks a second, as a share of those of the bare forward pass."""
LEAST_OF_INTEGERS = {"AVX2": 2.3, "AVX512-BF16": 1.7}
"""Targets of int8: masks a second, as a multiple of those in the best float precision."""
FEATURES = "vbp without classifier"
MODULE = "vbp.evidence.capabilities"


@dataclass(frozen=True)
class Capability:
    """How far a processor's vector instructions go."""

    name: str
    aten: str
    """ATEN_CPU_CAPABILITY."""
    onednn: str
    """ONEDNN_MAX_CPU_ISA."""
    mkl: str = ""
    """MKL_CBWR: COMPATIBLE for its oldest kernels; empty: the processor's."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that is limited to this capability."""
        limits = {"ATEN_CPU_CAPABILITY": self.aten, "ONEDNN_MAX_CPU_ISA": self.onednn}
        return {**os.environ, **limits, **({"MKL_CBWR": self.mkl} if self.mkl else {})}


SSE41 = Capability("SSE4.1", "default", "SSE41", "COMPATIBLE")
AVX2 = Capability("AVX2", "avx2", "AVX2")
AVX512 = Capability("AVX512", "avx512", "AVX512_CORE")
AVX512_BF16 = Capability("AVX512-BF16", "avx512", "AVX512_CORE_BF16")


def present() -> list[Capability]:
    """The capabilities of this processor, the weakest first; none if it is no x86 processor."""
    checks = {
        SSE41: torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2", "AVX512"),
        AVX2: torch.cpu._is_avx2_supported(),
        AVX512: torch.cpu._is_avx512_supported(),
        AVX512_BF16: torch.cpu._is_avx512_bf16_supported(),
    }
    is_x86 = checks[SSE41] and not torch.backends.mkldnn.is_acl_available()  # type: ignore[no-untyped-call]
    return [capability for capability, has in checks.items() if is_x86 and has]


def capabilities(setup: Setup, networks: Sequence[str] = NETWORKS, size: int = 224) -> Findings:
    """Measure it.

    Args:
        setup: how.
        networks: by torchvision's names; their weights are random.
        size: side of the square input.
    """
    findings = Findings()
    for capability in present():
        rates: dict[str, Rate] = {}
        limits = [ONE_CONVOLUTION] if set(networks) & set(IN_INTEGERS) else []
        for network in (*networks, *limits):
            task = {"network": network, "size": size, "rounds": setup.rounds, "batch_size": setup.batch_size}
            done = subprocess.run(
                [sys.executable, "-m", MODULE, json.dumps(task)],
                env=capability.environment, check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            rates |= {name: _rate(capability, name, rounds) for name, rounds in json.loads(done.stdout).items()}
        findings.rates += rates.values()
        findings.figures += _figures(capability, rates)
        setup.report(f"capabilities: {capability.name}")
    if not findings.rates:
        findings.notes.append("--capabilities makes an x86 processor act as older ones, and this is none.")
    return findings


def _figures(capability: Capability, rates: Mapping[str, Rate]) -> Iterator[Figure]:
    for name, ours in rates.items():
        title, _, rest = name.partition(", ")
        network, _, precision = rest.partition(", ")
        if title == "vbp":
            figure = f"{capability.name}: engine over bare forward, {rest}"
            yield ratio(figure, ours, rates[f"bare forward, {rest}"], LEAST)
        elif precision == "int8":
            floats = [rates[each] for each in (f"{title}, {network}, {other}" for other in FLOATS) if each in rates]
            best = max(floats, key=lambda rate: rate.median)
            figure = f"{capability.name}: int8 over {best.name.rpartition(', ')[2]}, {network}"
            yield ratio(figure, ours, best, LEAST_OF_INTEGERS.get(capability.name) if title == FEATURES else None)


def _rate(capability: Capability, name: str, rounds: list[float]) -> Rate:
    return Rate("capabilities", f"{capability.name}: {name}", rates=rounds)


def _cases(name: str, size: int, batch_size: int) -> Iterator[Case]:
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8)
    images_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float().div(255)
    floats = FLOATS if has_bfloat16("cpu") else FLOATS[:1]
    model = load_model(name, "random")
    for precision in floats:
        network: Any = deepcopy(model.network).to(PRECISIONS[precision])
        bare = bare_forward(network.to(memory_format=torch.channels_last))
        images = images_BCHW.to(PRECISIONS[precision], memory_format=torch.channels_last)
        explainer = Explainer(model, device="cpu", precision=precision, batch_size=batch_size)
        for title, work in (("bare forward", partial(bare, images)), ("vbp", partial(explainer, pixels_BHWC))):
            yield Case("capabilities", f"{title}, {name}, {precision}", clocked(work, batch_size))
    for precision in (*floats, "int8") if name in IN_INTEGERS else ():
        scales = _scales(model, images_BCHW) if precision == "int8" else None
        explainer = Explainer(
            model, device="cpu", precision=precision, batch_size=batch_size, classify=False, calibration=scales
        )
        once = clocked(partial(explainer, pixels_BHWC), batch_size)
        yield Case("capabilities", f"{FEATURES}, {name}, {precision}", once)


def _one_convolution(batch_size: int) -> Iterator[Case]:
    convolution = nn.Conv2d(128, 128, 3, padding=1)
    bytes_BCHW = torch.randint(256, (batch_size, 128, 28, 28), dtype=torch.uint8)
    bytes_BCHW = bytes_BCHW.contiguous(memory_format=torch.channels_last)
    for precision in FLOATS if has_bfloat16("cpu") else FLOATS[:1]:
        dtype = PRECISIONS[precision]
        layer = PackedConvolution(deepcopy(convolution).to(dtype), None, "relu")
        yield _repeated(precision, layer, bytes_BCHW.to(dtype))
    step = Step(0.01, 0)
    yield _repeated("int8", QuantisedConvolution(convolution, None, "relu", step, step), bytes_BCHW)


def _repeated(precision: str, layer: nn.Module, map_BCHW: Tensor) -> Case:
    def work() -> None:
        with torch.inference_mode():
            for _ in range(REPEATS):
                layer(map_BCHW)

    return Case("capabilities", f"alone, {ONE_CONVOLUTION}, {precision}", clocked(work, REPEATS * len(map_BCHW)))


REPEATS = 20
"""How often one convolution is computed for one measurement; once takes milliseconds."""


def _scales(model: Model, images_BCHW: Tensor) -> Scales:
    """Scales calibrated with pixels of about the normalised range; with random weights the masks do not matter."""
    images = [partial(torch.clone, images_BCHW[:1] * 4 - 2)] * LEAST_IMAGES
    return VisualBackProp(deepcopy(model.network)).calibrate(images, least=-1)


def _rounds(task: Mapping[str, Any]) -> dict[str, list[float]]:
    """Images a second of every case in this process, by its name."""
    torch.set_num_threads(1)
    network, batch_size = task["network"], task["batch_size"]
    cases = _one_convolution(batch_size) if network == ONE_CONVOLUTION else _cases(network, task["size"], batch_size)
    measured = measure(list(cases), task["rounds"], lambda line: None)
    return {name: rate.rates for name, rate in measured.items()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_rounds(json.loads(sys.argv[1]))))
