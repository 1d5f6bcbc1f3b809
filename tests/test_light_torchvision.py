"""torchvision is complete, and torch's compiler is imported only when it is needed."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import numpy as np
from vbp.saliency import Explainer

Explainer("vgg16", "demo", device="cpu")(np.zeros((1, 64, 64, 3), np.uint8))
assert not any(name.startswith("torch._dynamo") for name in sys.modules), "the compiler was loaded"

import torch
from torchvision import ops

assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu") is not None
assert type(sys.modules["torch._dynamo.utils"]).__name__ == "module"
assert ops.roi_align(torch.ones(1, 3, 8, 8), torch.tensor([[0, 0, 0, 4, 4.0]]), 2).tolist() == [[[[1.0] * 2] * 2] * 3]
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2.0, 2.0]
"""

SOMETHING_ELSE = """
import sys
import torch
from vbp.light_torchvision import _StandIn, _without_compiler

sys.modules.pop("torch._dynamo", None)
with _without_compiler():
    assert isinstance(sys.modules["torch._dynamo"], _StandIn)
    import torch._dynamo.config
    assert torch._dynamo.config.recompile_limit > 0
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2.0, 2.0]
"""


@pytest.mark.long
def test_the_compiler_comes_when_it_is_wanted():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=300)


@pytest.mark.long
def test_another_wish_brings_it_at_once():
    subprocess.run([sys.executable, "-c", SOMETHING_ELSE], check=True, timeout=300)
