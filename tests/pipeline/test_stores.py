"""The whole main job on every kind of store that is there."""

import numpy as np
import pytest

from vbp.pipeline import RunConfig, run
from vbp.storage.files import Folder


@pytest.fixture(scope="module")
def masks_on_disk(photos, network_file, tmp_path_factory):
    root = tmp_path_factory.mktemp("disk")
    for path in six(photos):
        Folder(root / "photos" / path.parent.name).write(path.name, path.read_bytes())
    explain(Folder(root), network_file)
    return masks(Folder(root))


def test_the_main_job(any_store, photos, network_file, masks_on_disk):
    for path in six(photos):
        any_store.write(f"photos/{path.parent.name}/{path.name}", path.read_bytes())
    summary = explain(any_store, network_file)
    assert (summary.images, summary.ok, summary.error) == (6, 6, 0)
    assert masks(any_store) == masks_on_disk
    assert any_store.exists("out/_SUCCESS")
    assert explain(any_store, network_file).computed == 0


def six(photos):
    return sorted(photos.rglob("*.*"))[::4][:6]


def explain(folder, network_file):
    return run(
        RunConfig(
            input=folder.uri("photos"), output=folder.uri("out"), weights=network_file, size=64, batch_size=4,
            precision="float32", runner="local", storage_options=folder._options,
        )
    )  # fmt: skip


def masks(folder):
    found = {path: folder.read(path) for path in folder.list("out/masks")}
    assert all(np.frombuffer(data, np.uint8).any() for data in found.values())
    return found
