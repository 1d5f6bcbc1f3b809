"""``--decode gpu`` in whole runs, on a machine without a GPU: Pillow stands in for the decoder, the CPU for the GPU."""

import json

import pytest

from tests.jpegs import decoder
from tests.pipeline.test_job import EXCEPTED, config, edited, index_of
from vbp.errors import UsageError
from vbp.images import device_decode
from vbp.pipeline import attempt, run

OF_THE_MASK = {
    "log10_max", "mask_mean", "mask_area", "peak_x", "peak_y", "image_peak_x", "image_peak_y", "probability",
}  # fmt: skip
"""Columns that a pixel's last level may change."""


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(device_decode, "torchcodec", lambda device: decoder)
    monkeypatch.setattr(attempt, "refuse_decoding", lambda decode, found: None)


def test_it_is_refused_before_any_work_where_the_network_runs_on_a_cpu(photos, tmp_path, network_file):
    with pytest.raises(UsageError, match="--decode gpu needs an NVIDIA GPU, and the network would run on cpu"):
        run(config(photos, tmp_path / "out", network_file, decode="gpu"))
    assert not (tmp_path / "out" / "index").exists()


def test_rows_are_those_of_the_cpu_but_for_the_last_level_of_pixels(photos, tmp_path, network_file, stand_in):
    for decode in ("cpu", "gpu"):
        assert run(config(photos, tmp_path / decode, network_file, decode=decode)).ok == 22
    found, expected = index_of(tmp_path / "gpu"), index_of(tmp_path / "cpu")
    assert found.keys() == expected.keys()
    for key, row in found.items():
        for name in row.keys() - EXCEPTED - OF_THE_MASK:
            assert row[name] == expected[key][name], (key, name)
        assert row["mask_mean"] == pytest.approx(expected[key]["mask_mean"], abs=0.02)
    assert json.loads((tmp_path / "gpu" / "_run" / "run.json").read_text())["fingerprint"]["decode"] == "gpu"


def test_results_of_both_decoders_are_not_mixed(photos, tmp_path, network_file, stand_in):
    out = tmp_path / "out"
    run(config(photos, out, network_file, limit=4))
    record = out / "_run" / "run.json"
    fingerprint = json.loads(record.read_text())["fingerprint"]
    del fingerprint["decode"]  # as an older vbp left it
    edited(record, fingerprint=fingerprint)
    with pytest.raises(UsageError, match="another configuration: decode was 'cpu', now 'gpu'"):
        run(config(photos, out, network_file, decode="gpu"))
    assert run(config(photos, out, network_file)).ok == 22
