"""What is done by ranges of shards, by tasks of Ray: the same as in this process."""

import shutil
from pathlib import Path

import pyarrow as pa

from tests.review.conftest import Made
from vbp.pipeline.on_ray.spread import spread_by
from vbp.pipeline.resources import Resources
from vbp.pipeline.runner import spreading
from vbp.review.output import Output
from vbp.review.validate import validate
from vbp.storage.files import Folder
from vbp.storage.ledger import compaction
from vbp.storage.ledger.compaction import compact
from vbp.storage.ledger.held import HeldFolder
from vbp.storage.ledger.parts import write_part
from vbp.storage.manifest.manifest import ManifestRow, write_manifest

GIVEN = Resources(workers=2, num_cpus=1, num_gpus=0, threads=1)


def test_the_index_is_the_same_to_the_byte(ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "ROWS_A_FILE", 8)
    output = HeldFolder(tmp_path / "out", {}, "attempt")
    output.enter()
    listed = [ManifestRow(f"{n:02d}.png", f"/in/{n:02d}.png", b"%02d.png" % n, None, 9, "v") for n in range(30)]
    manifest = write_manifest(output, listed, 4)
    for shard in range(manifest.shards):
        rows = manifest.read_shard(shard, ["key", "uri"])
        count = rows.num_rows
        for name, value in (("status", "ok"), ("run_id", "attempt")):
            rows = rows.append_column(name, pa.array([value] * count))
        rows = rows.append_column("finished_at", pa.array([shard] * count, pa.timestamp("ms", "UTC")))
        write_part(output, rows, shard, "attempt")
    wanted = compact(output, manifest)
    files = {path: output.read(path) for path in output.list("index")}
    assert len(files) == 4
    shutil.rmtree(tmp_path / "out" / "index")
    told = []
    found = compact(output, manifest, spread=spread_by(GIVEN), tell=told.append)
    assert (found, found.files) == (wanted, wanted.files)
    assert {path: output.read(path) for path in output.list("index")} == files
    assert told == [8, 16, 24, 30]


def test_validate_finds_the_same(ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "ROWS_A_FILE", 4)
    made = Made(Folder(tmp_path / "out"), [f"{n}.png" for n in range(10)])
    for numbers in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9]):
        made.commit(numbers)
    output = Output.open(made.promise().url)
    assert output.is_large
    Path(made.url, "masks/1.png.png").write_bytes(b"no mask")
    Path(made.url, "overlays/9.png.jpg").unlink()
    wanted = validate(output, deep=True)
    assert [(finding.kind, finding.count) for finding in wanted.findings] == [("file lost", 1), ("mask differs", 1)]
    with spreading("ray", is_large=True) as spread:
        assert validate(output, deep=True, spread=spread) == wanted
