"""The table of networks."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from vbp.evidence import zoo
from vbp.evidence.zoo import Row, markdown, measure
from vbp.networks.sources.torchvision import model_names
from vbp.saliency.visualbackprop import VisualBackProp


@pytest.mark.long
def test_a_network_is_measured_at_every_size():
    rows = list(measure("squeezenet1_1", [(64, 64), (65, 96), (8, 64)]))
    assert [(row.model, row.size, row.stages) for row in rows] == [
        ("squeezenet1_1", size, 18) for size in [(64, 64), (65, 96), (8, 64)]
    ]
    assert [row.problem for row in rows[:2]] == ["", ""]
    assert all(row.explain_seconds > 0 < row.forward_seconds for row in rows[:2])
    assert "8x64 pixels is too small" in rows[2].problem


def test_what_is_refused_is_said_in_words():
    (row,) = measure("swin_t")
    assert "no activation behind a 2-d convolution" in row.problem


def test_a_wrong_mask_is_noticed():
    flat = VisualBackProp(nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU()))
    assert zoo._problem(flat, torch.zeros(1, 3, 4, 4)) == "flat"
    assert zoo._problem(flat, torch.full((1, 3, 4, 4), torch.inf)) == "not finite"


def test_table_has_a_line_a_network():
    rows = [
        Row("a", (8, 8), 5, "", 0.01, 0.012),
        Row("a", (8, 9), 5, "flat", 0.01, 0.02),
        Row("b", (0, 0), 0, "B has no 2-d convolution", 0, 0),
    ]
    assert markdown(rows, [(8, 8), (8, 9)]).splitlines() == [
        "| network | stages | 8x8 | 8x9 | forward at 8x8 |",
        "|---|---|---|---|---|",
        "| a | 5 | 1.20 | flat | 10 ms |",
        "| b |  | B has no 2-d convolution |  |  |",
    ]


@pytest.mark.long
def test_command_writes_the_table(tmp_path):
    command = [sys.executable, "-m", "vbp.evidence.zoo", str(tmp_path / "docs" / "zoo.md"), "--models", "swin_t"]
    subprocess.run(command, check=True)
    assert "| swin_t |" in (tmp_path / "docs" / "zoo.md").read_text()


def test_committed_table_is_whole(request):
    table = (request.config.rootpath / "docs" / "zoo.md").read_text()
    assert [line.split(" | ")[0][2:] for line in table.splitlines() if line.startswith("| ")][1:] == model_names()
