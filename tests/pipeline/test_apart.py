"""INPUT inside the results of OUTPUT is refused, by whatever name it is given."""

import os

import pytest

from vbp.errors import UsageError
from vbp.pipeline import RunConfig
from vbp.pipeline.apart import OwnFolders, is_within, rows_apart
from vbp.storage.collections.tree import ManifestRow


@pytest.fixture
def out(tmp_path, monkeypatch):
    (tmp_path / "out" / "inputs" / "a").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out" / "inputs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out"


NAMES = ["{out}/inputs", "out/inputs/a/", "{out}/../out/inputs/a", "link", "link/a", "file://{out}/inputs",
         "file://localhost{out}/inputs/a", "out//inputs", "./out/./inputs"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_tree_within_the_results_is_refused(out, name):
    with pytest.raises(UsageError, match="lies in the folder inputs of OUTPUT"):
        RunConfig(input=name.format(out=out), output=str(out))


@pytest.mark.parametrize("output", ["{out}", "file://{out}", "link/.."])
def test_by_whatever_name_the_output_comes(out, output):
    with pytest.raises(UsageError, match="lies in the folder inputs"):
        RunConfig(input=str(out / "inputs"), output=output.format(out=out))


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("s3://b/out/inputs/x", "s3://b/out"), ("s3a://b/out//inputs", "s3://b/out/"),
        ("s3://b/photos/../out/masks", "s3://b/out"), ("gcs://b/out/maps", "gs://b/out"),
    ],
)  # fmt: skip
def test_in_a_bucket(source, output):
    assert OwnFolders(output).holding(source) in source
    with pytest.raises(UsageError):  # some are refused for their shape already
        RunConfig(input=source, output=output)


def test_places_beside_each_other(out):
    for source, output in (("photos", "out"), ("out", "out/../elsewhere"), ("s3://b/inputs", "s3://b/out"),
                           ("s3://b/out/inputs2", "s3://b/out"), ("out/photos", "out")):  # fmt: skip
        RunConfig(input=source, output=output)
    assert not is_within("s3://b/x", str(out))


def test_a_folder_of_another_name_is_told_by_its_identity(out, monkeypatch):
    """As where case does not count: the disk knows both spellings, and the real path keeps the one that was given."""
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **k: real(str(path).replace("INPUTS", "inputs"), **k))
    with pytest.raises(UsageError, match="lies in the folder inputs"):
        RunConfig(input=f"{out}/INPUTS", output=str(out))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_a_manifest_within_the_results_is_refused(out, name):
    rows = [ManifestRow("k", f"{name.format(out=out).rstrip('/')}/x.png", None, None)]
    with pytest.raises(UsageError, match=r"the image .*x\.png lies in the folder inputs"):
        list(rows_apart(iter(rows), "list.csv", str(out)))


def test_a_tree_with_a_link_into_the_results_is_refused(out):
    (out.parent / "photos" / "more").symlink_to(out / "inputs")
    rows = [ManifestRow("k", "photos/b.png", b"b.png", None), ManifestRow("k", "u", b"more/x.png", None)]
    listed = rows_apart(iter(rows), str(out.parent / "photos"), str(out))
    assert next(listed).path == b"b.png"
    with pytest.raises(UsageError, match="lies in the folder inputs"):
        next(listed)


def test_rows_elsewhere_pass(out):
    rows = [ManifestRow("a", "https://host/out/inputs/x.png", None, None), ManifestRow("b", "/in/x.png", None, None)]
    assert list(rows_apart(iter(rows), "list.csv", str(out))) == rows
