"""cuDNN's settings: repeatable within, and afterwards as the user has them."""

import pytest
import torch

from vbp.saliency.prepared.repeatable import repeatable


@pytest.mark.parametrize("users", [(False, True), (True, False), (False, False)])
@pytest.mark.parametrize("fails", [False, True])
def test_on_cuda_settings_are_made_and_put_back(users, fails, monkeypatch):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "deterministic", users[0])
    monkeypatch.setattr(cudnn, "benchmark", users[1])
    try:
        with repeatable(torch.device("cuda", 0)):
            assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert (cudnn.deterministic, cudnn.benchmark) == users


def test_elsewhere_nothing_is_touched(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with repeatable(torch.device("cpu")):
        assert torch.backends.cudnn.benchmark
