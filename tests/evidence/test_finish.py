"""The measurement of a run's end, on a few rows: that what it makes is a run's, and that it measures all of it."""

import pyarrow.dataset
import pytest

from vbp.evidence import finish
from vbp.evidence.watch import Look, Watched
from vbp.review.output import Output
from vbp.review.validate import validate
from vbp.storage.files import Folder


def test_what_is_made_is_a_sound_output(tmp_path):
    output = Folder(tmp_path / "out")
    finish.ledger(output, 120)
    assert finish._indexed(output.url, 0).cpu > 0
    assert finish._validated(output.url, 0).cpu > 0
    found = validate(Output.open(output.url), sample=0)
    assert (found.findings, found.ok, found.files) == ((), 120, 240)
    rows = pyarrow.dataset.dataset(tmp_path / "out" / "index").to_table()
    lacking = {name for name in rows.column_names if rows[name].null_count}
    assert lacking == {f"error_{what}" for what in ("stage", "type", "message")} | {
        f"{kind}_{what}" for kind in ("mask", "overlay") for what in ("offset", "length")
    }


def test_estimates_are_of_the_seconds_that_were_measured(monkeypatch):
    """One process: 7 s of CPU for 100 images; a worker 6 s beside 1 s of the driver's, and 32 at a time."""

    def measured(work, workers):
        took = finish.Took(0.0, 10.0, 1.0 if workers else 10.0)
        return Watched(took, 0.0, 0.0, 0.0, [Look(0.0, 0.0, None), Look(10.0, 7.0, None)])

    monkeypatch.setattr(finish, "watched", measured)
    figures = list(finish._measured("rows", print, 100))
    assert [figure.values[0] for figure in figures[:3]] == [10.0] * 3
    assert figures[3].values[0] == pytest.approx(7 / 100 * 1e8 / 60)
    assert figures[4].values[0] == pytest.approx((1 / 100 + 6 / 100 / 32) * 1e8 / 60)
    assert all(figure.detail.endswith("not measured") for figure in figures[3:])
