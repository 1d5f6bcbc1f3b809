"""Reports on their way through the driver."""

from vbp.pipeline.on_ray import dataset, reports
from vbp.pipeline.resources import Resources

GIVEN = Resources(workers=2, num_cpus=1, num_gpus=1, threads=0)


class Planned:
    """A dataset whose work is done."""

    def __init__(self, *rows):
        self.rows = rows

    def iter_rows(self):
        return iter(self.rows)


def report(shard, **more):
    return {"shard": shard, "ok": 1, "error": 0, "reasons": "{}", **more}


def test_the_log_tells_what_workers_warn_of_once(monkeypatch, caplog, ray_session):
    texts = ["", "no CUDA graph\nslow", "slow\nhot"]
    rows = [report(number, warned=text) for number, text in enumerate(texts)]
    monkeypatch.setattr(dataset, "plan", lambda *_, **__: Planned(*rows))
    assert list(reports.reports(None, [0, 1, 2], GIVEN, 3)) == [report(number) for number in range(3)]
    assert [record.getMessage() for record in caplog.records if record.name.startswith("vbp")] == [
        "no CUDA graph",
        "slow",
        "hot",
    ]


def test_reports_of_workers_without_a_gpu_say_nothing_of_warnings(monkeypatch, caplog, ray_session):
    monkeypatch.setattr(dataset, "plan", lambda *_, **__: Planned(report(1)))
    assert list(reports.reports(None, [1], GIVEN, 1)) == [report(1)]
    assert not [record for record in caplog.records if record.name.startswith("vbp")]
