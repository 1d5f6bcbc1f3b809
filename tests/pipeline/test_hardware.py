"""Which precision all machines of a run can compute, and machines on which the network cannot run."""

import pytest
import torch

from vbp.errors import UsageError
from vbp.pipeline.hardware import (
    Hardware,
    common_precision,
    kinds,
    look,
    refuse_decoding,
    refuse_integers,
    refuse_missing_gpus,
    slow_machines,
)

NEW = Hardware(node="10.0.0.1", device="cpu", processor="CPU with AVX512", bfloat16=True, int8=True)
OLD = Hardware(node="10.0.0.2", device="cpu", processor="CPU with AVX2", bfloat16=False, int8=True)
ARM = Hardware(node="10.0.0.4", device="cpu", processor="CPU with DEFAULT", bfloat16=False)
GPU = Hardware(device="cuda", processor="NVIDIA H200", bfloat16=True)
EMPTY = Hardware(node="10.0.0.3", device="cuda", processor="no GPU", bfloat16=False, available=False)


@pytest.mark.parametrize(
    ("asked", "before", "found", "precision"),
    [
        ("auto", None, [NEW, NEW], "bfloat16"),
        ("auto", None, [NEW, OLD], "float32"),
        ("auto", "bfloat16", [OLD], "bfloat16"),
        ("auto", "float32", [NEW], "float32"),
        ("bfloat16", None, [OLD], "bfloat16"),
        ("float32", "bfloat16", [NEW], "float32"),
        ("int8", None, [OLD], "int8"),
        ("auto", "int8", [NEW], "int8"),
    ],
)
def test_precision_as_asked_else_as_before_else_what_all_machines_compute(asked, before, found, precision):
    assert common_precision(asked, before, found) == precision


def test_machines_that_are_slow_at_it_are_named():
    assert slow_machines("bfloat16", [NEW, NEW]) is None
    assert slow_machines("float32", [NEW, OLD]) is None
    sentence = slow_machines("bfloat16", [NEW, OLD])
    assert "10.0.0.2 (CPU with AVX2)" in sentence
    assert "10.0.0.1" not in sentence
    assert slow_machines("bfloat16", [OLD] * 7).count("10.0.0.2") == 5
    assert "and 2 more" in slow_machines("bfloat16", [OLD] * 7)


def test_gpus_that_torch_does_not_see_are_refused_with_their_node():
    refuse_missing_gpus([NEW, OLD])
    with pytest.raises(UsageError, match=r"Ray counts GPUs on node 10\.0\.0\.3, but torch sees none there"):
        refuse_missing_gpus([EMPTY, NEW])


def test_integers_are_for_cpus_that_have_them():
    refuse_integers("int8", [NEW, OLD])
    refuse_integers("bfloat16", [NEW, ARM, GPU])
    with pytest.raises(UsageError, match="--precision int8 is for CPUs, and the network would run on cuda: add --dev"):
        refuse_integers("int8", [GPU])
    with pytest.raises(UsageError, match=r"missing on 10\.0\.0\.4 \(CPU with DEFAULT\): choose other nodes by --node"):
        refuse_integers("int8", [NEW, ARM])


def test_each_kind_of_processor_is_told_once():
    assert kinds([NEW, OLD, NEW]) == ["CPU with AVX2", "CPU with AVX512"]


def test_an_apple_gpu_computes_floats_alone(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = look("mps")
    assert found == Hardware(device="mps", processor="Apple GPU", bfloat16=False, int8=False)
    with pytest.raises(UsageError, match="for CPUs, and the network would run on mps"):
        refuse_integers("int8", [found])


def test_this_machine_knows_its_processor():
    found = look("cpu")
    assert (found.node, found.device, found.available) == ("this machine", "cpu", True)
    assert found.processor.startswith("CPU with ")


def test_decoding_on_gpus_needs_gpus_that_can():
    lame = Hardware(node="10.0.0.7", device="cuda", processor="NVIDIA T4", bfloat16=False, no_jpeg="no nvJPEG")
    refuse_decoding("cpu", [NEW, lame])
    refuse_decoding("gpu", [GPU, GPU])
    with pytest.raises(UsageError, match="--decode gpu needs an NVIDIA GPU, and the network would run on cpu: leave"):
        refuse_decoding("gpu", [NEW])
    with pytest.raises(
        UsageError, match=r"TorchCodec with CUDA, which does not work on 10\.0\.0\.7 \(no nvJPEG\): pip"
    ):
        refuse_decoding("gpu", [GPU, lame])


def test_a_machine_with_a_gpu_says_whether_it_decodes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr("vbp.explainer.resolve_precision", lambda asked, device: "bfloat16")
    monkeypatch.setattr("vbp.images.device_decode.why_not", lambda device: f"not on {device}")
    assert look("cuda").no_jpeg == "not on cuda"
    assert look("cpu").no_jpeg is None
