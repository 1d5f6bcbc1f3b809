"""The cost of layouts: what is counted, and that nothing stays behind."""

import pytest

from vbp.evidence.layouts import measure


@pytest.mark.long
@pytest.mark.parametrize(("layout", "objects"), [("files", 24), ("webdataset", 3)])
def test_what_is_counted(tmp_path, layout, objects):
    cost = measure(str(tmp_path), layout, images=12, commit=5, options={})
    assert (cost.images, cost.objects) == (12, objects)
    assert cost.bytes > 12 * 2000
    assert cost.write_seconds > 0 < cost.read_seconds
    assert f"| {layout} | 5 |" in cost.as_row()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
