"""Tars of results: their names bind their content."""

import hashlib

from vbp.storage.results.tars import write_tar


def tar(folder, shard, positions, content):
    return write_tar(folder, content, shard, positions)


def test_the_name_tells_shard_positions_and_content(folder):
    path = tar(folder, 7, [3, 12, 5], b"content")
    digest = hashlib.sha256(b"content").hexdigest()[:16]
    assert path == f"shards/000007/000003-000012-{digest}.tar"
    assert folder.read(path) == b"content"
    assert tar(folder, 7, [12, 5, 3], b"content") == path
    other = tar(folder, 7, [3, 12, 5], b"other content, other lengths")
    assert other != path
    assert folder.read(path) == b"content"
