"""Runs that freeze, lose the output to a successor, and go on: they do no harm to what the successor wrote."""

import dataclasses
import io
import shutil
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.frozen import Aside, Freezer
from tests.protocol.model import Bucket, Turns
from vbp.errors import InterruptedRunError
from vbp.images.encode import decode_mask
from vbp.pipeline import Observer, RunConfig, run, working
from vbp.pipeline.sweep.sweep import sweep
from vbp.pipeline.sweep.sweepfile import parse_sweep
from vbp.storage import files
from vbp.storage.files import Folder
from vbp.storage.record import SWEEP, is_complete
from vbp.storage.results.read import read_result


@pytest.fixture(params=["disk", "memory", "s3"])
def output(request, tmp_path, monkeypatch):
    if request.param == "disk":
        return Folder(tmp_path / "out")
    if request.param == "memory":
        bucket, opened = Bucket(Turns()), files._open
        chosen = lambda base, *rest: (bucket, "memory") if base.startswith("s3") else opened(base, *rest)  # noqa: E731
        monkeypatch.setattr(files, "_open", chosen)
        return Folder("s3://memory/out")
    server = request.getfixturevalue("s3_server")
    return Folder(server.new_url(), server.storage_options)


@pytest.fixture
def asked(photos, output, network_file):
    return RunConfig(
        input=str(photos), output=output.url, weights=network_file, size=32, precision="float32", runner="local",
        batch_size=4, shard_size=8, storage_options=output.options,
    )  # fmt: skip


def contents(output):
    """All files but the lease, by path."""
    return {path: output.read(path) for path in output.list() if not path.endswith("lease.json")}


def audit(output, images, **constants):
    """The promise, judged without the program's own checks: rows by key, and the file that each names."""
    assert is_complete(output)
    rows = pa.concat_tables(
        pq.read_table(io.BytesIO(output.read(path))) for path in output.list("index") if path.endswith(".parquet")
    ).to_pylist()
    assert len(rows) == images
    assert set(Counter(row["key"] for row in rows).values()) == {1}
    for row in rows:
        assert row["status"] == "ok"
        assert row.items() >= constants.items()
        mask = decode_mask(read_result(row, "mask", output.options))
        assert float(mask.mean()) == pytest.approx(row["mask_mean"], abs=0.01)
        assert read_result(row, "overlay", output.options)


class Stopping(Observer):
    """Raises after the first commit: an end that nobody foresaw."""

    def wrote(self, ok, error):
        raise InterruptedRunError("stopped")


def frozen(freezer, config):
    """The run, once it is frozen."""
    first = Aside(run, config)
    assert freezer.reached.wait(120), first.error
    return first


def thawed_too_late(freezer, first):
    freezer.thawed.set()
    first.join()
    assert isinstance(first.error, InterruptedRunError), first.result
    assert "has it now" in str(first.error)


def test_in_the_write_of_a_mask(output, asked, monkeypatch):
    freezer = Freezer(monkeypatch, "replace .*/masks/", 3)
    first = frozen(freezer, asked)
    second = dataclasses.replace(asked, resume_mode="overwrite", preset="reference", fit="stretch")
    assert run(second).succeeded
    before = contents(output)
    thawed_too_late(freezer, first)
    assert contents(output) == before
    audit(output, 22, preset="reference")


@pytest.mark.parametrize("point", ["replace .*/index/part", "replace .*/_SUCCESS"])
def test_in_the_making_of_index_and_promise(output, asked, monkeypatch, point):
    freezer = Freezer(monkeypatch, point)
    first = frozen(freezer, dataclasses.replace(asked, limit=10))
    assert run(asked).images == 22
    before = contents(output)
    thawed_too_late(freezer, first)
    assert contents(output) == before
    audit(output, 22)


@pytest.mark.parametrize("point", ["replace .*/index/part", "replace .*/_SUCCESS"])
def test_before_the_promise_while_the_successor_works(output, asked, monkeypatch, point):
    freezer = Freezer(monkeypatch, point)
    first = frozen(freezer, dataclasses.replace(asked, limit=10))
    with pytest.raises(InterruptedRunError, match="stopped"):
        run(asked, Stopping())
    freezer.thawed.set()
    first.join()
    assert isinstance(first.error, InterruptedRunError)
    assert not is_complete(output)
    assert run(asked).succeeded
    audit(output, 22)


@pytest.mark.parametrize("point", ["remove .*/masks/", "remove .*/parts/", "replace .*/run.json"])
def test_in_the_clearing_of_another_start(output, asked, monkeypatch, point):
    run(asked)
    freezer = Freezer(monkeypatch, point, 2)
    first = frozen(freezer, dataclasses.replace(asked, resume_mode="overwrite"))
    assert run(asked).succeeded
    before = contents(output)
    freezer.thawed.set()
    first.join()
    assert isinstance(first.error, InterruptedRunError), first.result
    if output.is_local:  # in an object store, one deletion a thread may come late
        assert contents(output) == before
        audit(output, 22)
    else:
        assert len(before.keys() - contents(output).keys()) <= 16


QUICK = pytest.mark.parametrize("output", ["disk", "memory"], indirect=True)


@QUICK
@pytest.mark.parametrize(
    "point", ["remove .*/masks/", "remove .*/parts/", "replace .*/manifest/", "replace .*/run.json"]
)
def test_in_a_refresh(output, asked, photos, tmp_path, monkeypatch, point):
    tree = shutil.copytree(photos, tmp_path / "tree")
    asked = dataclasses.replace(asked, input=str(tree))
    run(asked)
    Image.radial_gradient("L").resize((97, 71)).convert("RGB").save(tree / "cat" / "01.png")
    refreshed = dataclasses.replace(asked, refresh=True)
    freezer = Freezer(monkeypatch, point)
    first = frozen(freezer, refreshed)
    assert run(refreshed).computed == 1
    before = contents(output)
    thawed_too_late(freezer, first)
    if output.is_local:
        assert contents(output) == before
    gone = {f"{place}/cat/01.png{suffix}" for place, suffix in (("masks", ".png"), ("overlays", ".jpg"))}
    after = contents(output)
    assert before.keys() - after.keys() <= gone  # in an object store, one deletion a thread may come late
    more = after.keys() - before.keys()  # there, a file of a manifest may come late: nothing names it
    assert all(path.startswith("_run/manifest/") for path in more)
    assert not any(path.rpartition("/")[2].encode() in after["_run/manifest.json"] for path in more)
    assert {path: data for path, data in after.items() if path not in more} == {
        path: data for path, data in before.items() if path in after
    }
    if before.keys() == after.keys() - more:
        audit(output, 22)


@QUICK
@pytest.mark.parametrize("point", ["/index/part", "/_SUCCESS", "/_run/sweep.json"])
def test_in_the_making_of_the_index_of_a_sweep(output, photos, network_file, monkeypatch, point):
    common = f"{{weights: {network_file}, size: 32, precision: float32, runner: local, limit: 4}}"
    grid = "{preset: [paper, reference]}"
    asked = parse_sweep(f"output: {output.url}\ninputs: {photos}\ngrid: {grid}\ncommon: {common}")
    freezer = Freezer(monkeypatch, f"replace (?!.*/runs/).*{point}", 2 if point.endswith("json") else 1)
    first = Aside(sweep, asked)
    assert freezer.reached.wait(120), first.error
    assert sweep(asked).exit_code == 0
    before = contents(output)
    thawed_too_late(freezer, first)
    assert contents(output) == before
    assert is_complete(output, SWEEP)
    rows = pq.read_table(io.BytesIO(output.read("index/part-00000.parquet")), columns=["run", "key"]).to_pylist()
    assert len({tuple(row.values()) for row in rows}) == len(rows) == 8


def test_before_the_removal_of_orphans(output, asked, monkeypatch):
    """The first run is about to look for orphans when its successor has written a tar, and not yet its part."""
    tars = dataclasses.replace(asked, layout="webdataset")
    removing = Freezer(monkeypatch, "never")
    remove_orphans = working.remove_orphans

    def waiting(output):
        if not removing.reached.is_set():
            removing.reached.set()
            removing._frozen = output.attempt
            assert removing.thawed.wait(120)
        return remove_orphans(output)

    monkeypatch.setattr(working, "remove_orphans", waiting)
    first = frozen(removing, dataclasses.replace(tars, limit=10))
    committing = Freezer(monkeypatch, "replace .*/parts/.*parquet")
    second = frozen(committing, tars)
    assert [path for path in output.list("shards")]
    before = output.list("shards")
    removing.thawed.set()
    first.join()
    assert isinstance(first.error, InterruptedRunError), first.result
    assert output.list("shards") == before
    committing.thawed.set()
    second.join()
    assert second.error is None, second.error
    audit(output, 22)
