"""Runs that are begun on one processor and resumed on an older one, for which variables make this processor act.

A processor that has no more than AVX2 is its own older one: nothing is skipped.
"""

import dataclasses
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vbp.pipeline import RunConfig, listing, run
from vbp.saliency.prepared import calibration

ROOT = Path(__file__).parents[2]
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
LARGEST_DIFFERENCE = {"bfloat16": 0.02, "int8": 0.005}
"""Sums in another order may round another way: to bfloat16, or to a byte. Seen: 8e-7 and 3e-7."""
PROGRAM = """
import json, sys
from vbp.pipeline import Observer, RunConfig, listing, run

class Told(Observer):
    def note(self, text):
        print(text)

def never(*arguments):
    raise AssertionError("calibrated anew")

listing.calibrated = never
for fields in json.loads(sys.argv[1]):
    summary = run(RunConfig(**fields), Told())
    print(f"{summary.precision}: {summary.computed} of {summary.images}, {summary.error} with an error")
"""


def masks(output):
    return {path.stem: np.load(path) for path in sorted(Path(output, "masks").rglob("*.npy"))}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 acts as another")
def test_an_older_processor_goes_on_with_what_was_begun(photos, network_file, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "LEAST_CORRELATION", -1.0)  # of random weights
    common = {"input": str(photos), "size": 32, "batch_size": 2, "mask_format": "npy"}
    common |= {"runner": "local", "device": "cpu", "outputs": ("mask",)}
    plain, residual = {"weights": network_file}, {"model": "timm:test_resnet", "weights": "random"}
    kinds = {"bfloat16": plain, "int8": plain, "int8-residual": residual}
    begun = {
        name: RunConfig(output=str(tmp_path / name), precision=name.partition("-")[0], **common, **network)
        for name, network in kinds.items()
    }
    whole, first = {}, {}
    for name, config in begun.items():
        run(dataclasses.replace(config, limit=6))
        first[name] = masks(config.output)
        facts = json.loads(Path(config.output, "_run/run.json").read_text())
        other = dataclasses.replace(config, output=str(tmp_path / f"{name}-whole"))
        with monkeypatch.context() as patch:
            patch.setattr(listing, "calibrated", lambda *_, scales=facts["scales"]: scales)
            assert run(other).error == 0
        whole[name] = masks(other.output)

    resumes = [common | kinds[name] | {"output": config.output} for name, config in begun.items()]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(resumes)],
        cwd=ROOT, env=os.environ | AVX2, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if "which predictions are correct" not in line]
    slower, *rest = told
    acting = "CPU with AVX2"
    assert (
        slower == f"No hardware for bfloat16 on this machine ({acting}): the network is slower there than in float32."
    )
    assert rest == [
        f"Running in this process (--runner ray for Ray); bfloat16 on {acting}.",
        "bfloat16: 16 of 22, 0 with an error",
        f"Running in this process (--runner ray for Ray); int8 on {acting}.",
        "int8: 16 of 22, 0 with an error",
        f"Running in this process (--runner ray for Ray); int8 on {acting}.",
        "int8: 16 of 22, 0 with an error",
    ]
    for name, config in begun.items():
        found = masks(config.output)
        assert found.keys() == whole[name].keys()
        for key, mask_HW in found.items():
            if key in first[name]:
                np.testing.assert_array_equal(mask_HW, first[name][key])
            np.testing.assert_allclose(
                mask_HW, whole[name][key], rtol=0, atol=LARGEST_DIFFERENCE[config.precision], err_msg=key
            )
