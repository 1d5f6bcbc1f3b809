"""``vbp benchmark engine --capabilities``: the engine beside the bare forward pass, as on weaker processors.

Variables make torch and oneDNN use no more than an older processor has; they are read when torch is imported, so each
capability has a process of its own. There one thread computes, as in every worker on a CPU, and all networks run with
their classifier.
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

from vbp.evidence.rivals import bare_forward
from vbp.evidence.timing import Case, Findings, Rate, Setup, clocked, measure, ratio
from vbp.explainer import PRECISIONS, Explainer, has_bfloat16
from vbp.networks.models import load_model

NETWORKS = ("vgg16", "resnet50", "efficientnet_b0", "mobilenet_v3_large", "densenet201")
LEAST = 0.95
"""Of the bare forward pass, in masks a second."""
MODULE = "vbp.evidence.capabilities"


@dataclass(frozen=True)
class Capability:
    """How far a processor's vector instructions go."""

    name: str
    aten: str
    """ATEN_CPU_CAPABILITY."""
    onednn: str
    """ONEDNN_MAX_CPU_ISA."""

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process use no more."""
        return {**os.environ, "ATEN_CPU_CAPABILITY": self.aten, "ONEDNN_MAX_CPU_ISA": self.onednn}


SSE41 = Capability("SSE4.1", "default", "SSE41")
AVX2 = Capability("AVX2", "avx2", "AVX2")
AVX512 = Capability("AVX512", "avx512", "AVX512_CORE")
AVX512_BF16 = Capability("AVX512-BF16", "avx512", "AVX512_CORE_BF16")


def present() -> list[Capability]:
    """Those that this processor has, the least first; none if it is no x86 processor."""
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
        task = {"networks": networks, "size": size, "rounds": setup.rounds, "batch_size": setup.batch_size}
        done = subprocess.run(
            [sys.executable, "-m", MODULE, json.dumps(task)],
            env=capability.environment, check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        rates = {name: _rate(capability, name, rounds) for name, rounds in json.loads(done.stdout).items()}
        findings.rates += rates.values()
        for name, ours in rates.items():
            if name.startswith("vbp, "):
                rest = name.removeprefix("vbp, ")
                title = f"{capability.name}: engine over bare forward, {rest}"
                findings.figures.append(ratio(title, ours, rates[f"bare forward, {rest}"], LEAST))
        setup.report(f"capabilities: {capability.name}")
    if not findings.rates:
        findings.notes.append("--capabilities makes an x86 processor act as older ones, and this is none.")
    return findings


def _rate(capability: Capability, name: str, rounds: list[float]) -> Rate:
    return Rate("capabilities", f"{capability.name}: {name}", rates=rounds)


def _cases(networks: Sequence[str], size: int, batch_size: int) -> Iterator[Case]:
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8)
    images_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float().div(255)
    for precision in ("float32", "bfloat16") if has_bfloat16("cpu") else ("float32",):
        for name in networks:
            model = load_model(name, "random")
            network: Any = deepcopy(model.network).to(PRECISIONS[precision])
            bare = bare_forward(network.to(memory_format=torch.channels_last))
            images = images_BCHW.to(PRECISIONS[precision], memory_format=torch.channels_last)
            explainer = Explainer(model, device="cpu", precision=precision, batch_size=batch_size)
            for title, work in (("bare forward", partial(bare, images)), ("vbp", partial(explainer, pixels_BHWC))):
                yield Case("capabilities", f"{title}, {name}, {precision}", clocked(work, batch_size))


def _rounds(task: Mapping[str, Any]) -> dict[str, list[float]]:
    """Images a second of every case in this process, by its name."""
    torch.set_num_threads(1)
    cases = list(_cases(task["networks"], task["size"], task["batch_size"]))
    measured = measure(cases, task["rounds"], lambda line: None)
    return {name: rate.rates for name, rate in measured.items()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_rounds(json.loads(sys.argv[1]))))
