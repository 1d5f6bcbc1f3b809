"""The engine's tests on weaker processors: variables make this one act as such, in a process for each.

What this processor can do by itself is tested where the tests lie. A processor that has no more than what is asked for
acts as it is, on one thread.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
ROOM = "tests/saliency"
TESTS = [
    *(f"{ROOM}/prepared", "tests/test_explainer.py", f"{ROOM}/test_forward.py"),
    *(f"{ROOM}/test_zoo.py::test_engine_runs_them[{precision}-resnet18]" for precision in ("float32", "bfloat16")),
    f"{ROOM}/test_zoo.py::test_engine_runs_them[bfloat16-shufflenet_v2_x0_5]",
]
PROGRAM = """
import sys, pytest, torch
assert torch.backends.cpu.get_cpu_capability() == sys.argv[1], torch.backends.cpu.get_cpu_capability()
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-n", "0", *sys.argv[2:]]))
"""
OWN = torch.backends.cpu.get_cpu_capability()

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 acts as another")


@pytest.mark.long
@pytest.mark.parametrize(
    ("capability", "variables"),
    [
        ("DEFAULT", {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}),
        ("AVX2", {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
        pytest.param(
            OWN,
            {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
            marks=pytest.mark.skipif(OWN != "AVX512", reason="this processor has no AVX512: the case AVX2 is the same"),
        ),
    ],
    ids=["SSE4.1", "AVX2", "no hardware for bfloat16"],
)
def test_the_engine_on_a_weaker_processor(capability, variables):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, capability, *TESTS],
        cwd=ROOT, env={**plain, **variables, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
