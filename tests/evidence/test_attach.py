"""The table of attached masks."""

import numpy as np
import pytest

from vbp.evidence import attach
from vbp.evidence.attach import HEAD, Row, kept_lines, measure, smallest_first, table

ROW = Row("a", "dynamo", 20, 5, 3.2e-7, True, 0.010, 0.001)


def test_a_line_says_what_was_found():
    assert ROW.line == "| a | dynamo | 20 | 5 | 3.2e-07 | equal bits | 10.0 ms | 1.0 ms, 10% |"
    wrong = Row("a", "dynamo", 20, 5, 0.3, False, 0.010, 0.001).line
    assert "| 3.0e-01 (too much) | differ |" in wrong
    assert "| a | dynamo | cannot be exported |" in Row("a", "dynamo", 0, 0, 0, False, 0, 0, "cannot be exported").line


def test_lines_of_before_are_kept(tmp_path):
    assert kept_lines(tmp_path / "none.md") == {}
    lines = {("b", "torchscript"): ROW.line.replace("| a | dynamo", "| b | torchscript"), ("a", "dynamo"): ROW.line}
    (tmp_path / "page.md").write_text("# Title\n\n" + table(lines))
    assert kept_lines(tmp_path / "page.md") == lines
    assert table(lines).splitlines() == [*HEAD, lines["a", "dynamo"], lines["b", "torchscript"]]


def test_small_networks_come_first():
    assert smallest_first(["vgg16", "resnet18", "squeezenet1_1"]) == ["squeezenet1_1", "resnet18", "vgg16"]


@pytest.mark.long
def test_a_network_is_measured():
    row = measure("squeezenet1_1", "torchscript", 64)
    assert (row.opset, row.stages, row.is_equal, row.problem) == (17, 18, True, "")
    assert row.difference < 1e-5
    assert row.seconds > 0


def test_a_wrong_mask_is_noticed(monkeypatch):
    class Session:
        def run(self, names, feed):
            return [np.zeros((2, 5)), np.zeros((2, 1, 4, 4), np.float32)]

    monkeypatch.setattr(attach, "_times", lambda sessions, feed: [1.0, 1.5])
    row = attach._compared(ROW, lambda images: images[:, :1] * 0 + 0.5, Session(), Session(), 4)
    assert (row.difference, row.is_equal, row.added) == (0.5, True, 0.5)


def test_what_cannot_be_attached_is_said_in_words(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no\nway")

    monkeypatch.setattr(attach, "export", fail)
    assert measure("squeezenet1_1", "dynamo", 64).problem == "no way"


@pytest.mark.parametrize("exporter", ["torchscript"])
def test_committed_table_has_no_wrong_mask(request, exporter):
    text = (request.config.rootpath / "docs" / "attach.md").read_text()
    rows = [line for line in text.splitlines() if f"| {exporter} |" in line]
    assert rows
    assert not [line for line in rows if "too much" in line or "differ " in line]
