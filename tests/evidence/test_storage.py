"""The part storage."""

from dataclasses import replace

from vbp.evidence.storage import storage


def test_a_place_is_measured_and_left_as_it_was(setup, tmp_path):
    found = storage(replace(setup, place=str(tmp_path)), objects=3)
    what = f"16 threads, 20 kB, {tmp_path}"
    assert [rate.name for rate in found.rates] == [f"{verb} by {what}" for verb in ("write", "read", "list")]
    assert all(rate.median > 0 and rate.unit == "objects/s" for rate in found.rates)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_without_a_place_it_is_a_local_folder(setup):
    assert all(rate.name.endswith("a local folder") for rate in storage(setup, objects=1).rates)
