"""Tars that no row points to are removed, and no others."""

import datetime

import pyarrow as pa
import pytest

from vbp.storage.files import Folder
from vbp.storage.ledger.index import write_part
from vbp.storage.ledger.orphans import remove_orphans
from vbp.storage.results.tars import write_tar

NOON = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC)


def commit(folder, shard, uris, attempt="run", minute=0, column="mask_uri"):
    """A part of {position: uri of its mask, None for an error row}."""
    rows = [
        {
            "key": f"{shard}-{position}",
            "uri": "u",
            "status": "error" if uri is None else "ok",
            column: uri,
            "finished_at": NOON + datetime.timedelta(minutes=minute),
            "position": position,
        }
        for position, uri in uris.items()
    ]
    return write_part(folder, pa.Table.from_pylist(rows), shard, attempt)


def tar(folder, shard, positions, content):
    return write_tar(folder, content, shard, positions)


def test_only_what_no_row_points_to_is_removed(folder):
    kept = [tar(folder, 0, range(4), b"a"), tar(folder, 0, range(4, 8), b"b"), tar(folder, 2, [1], b"c")]
    commit(folder, 0, dict.fromkeys(range(4), folder.uri(kept[0])))
    commit(folder, 0, {4: None} | dict.fromkeys(range(5, 8), folder.uri(kept[1])))
    commit(folder, 2, {1: folder.uri(kept[2])}, column="overlay_uri")
    assert remove_orphans(folder) == 0
    assert folder.list("shards") == kept

    orphans = [
        tar(folder, 0, range(8, 12), b"cut off after its tar"),
        tar(folder, 0, range(4), b"of another attempt, cut off; the same positions are committed"),
        tar(folder, 1, range(4), b"of a shard without a part"),
        tar(folder, 3, range(2), b"the same positions failed in the end"),
    ]
    commit(folder, 3, {0: None, 1: None})
    foreign = ["shards/000000/notes.txt", "shards/readme", "shards/000000/000000-000003-zz.tar"]
    for path in foreign:
        folder.write(path, b"mine")
    assert remove_orphans(folder) == len(orphans)
    assert folder.list("shards") == sorted([*kept, *foreign])
    assert remove_orphans(folder) == 0


def test_a_tar_stays_while_any_row_points_to_it(folder):
    """Rows may be taken back, so that the part that is left has another name; older rows may count again."""
    first, second = tar(folder, 0, range(4), b"first"), tar(folder, 0, range(4), b"second")
    commit(folder, 0, dict.fromkeys((1, 2), folder.uri(first)))  # 0 and 3 were taken back
    commit(folder, 0, dict.fromkeys(range(4), folder.uri(second)), attempt="again", minute=5)
    assert remove_orphans(folder) == 0
    assert folder.list("shards") == sorted([first, second])


@pytest.mark.parametrize("elsewhere", ["s3://another-bucket/moved", "/an/older/place", "/odd/shards/000009"])
def test_an_output_that_was_moved_loses_nothing(tmp_path, elsewhere):
    folder = Folder(tmp_path / "out")
    path = tar(folder, 0, range(4), b"a")
    commit(folder, 0, dict.fromkeys((1, 2), f"{elsewhere}/{path}"))
    assert remove_orphans(folder) == 0
    assert folder.exists(path)


def test_without_tars_nothing_happens(folder):
    assert remove_orphans(folder) == 0
    commit(folder, 0, {0: folder.uri("masks/a.png")})
    assert remove_orphans(folder) == 0
