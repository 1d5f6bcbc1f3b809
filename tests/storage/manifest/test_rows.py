"""Rows in order: few of them need no disk."""

import tempfile

from vbp.storage.collections.tree import ManifestRow
from vbp.storage.manifest.rows import sorted_by_key


def test_few_rows_are_sorted_without_a_folder(tmp_path, monkeypatch):
    """A folder that waits in a generator goes with it, and with a warning where an error had stopped that."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    rows = [ManifestRow(key, f"/{key}", None, None) for key in ("b", "a", "c")]
    assert [row.key for row in sorted_by_key(iter(rows))] == ["a", "b", "c"]
