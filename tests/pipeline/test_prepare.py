"""What a run decides by itself before any work: shard size, device and the like."""

import pytest
import torch

from vbp.errors import UsageError
from vbp.pipeline import RunConfig
from vbp.pipeline.prepare import choose_batch_size, choose_classes, choose_device, choose_shard_size, list_input


def config(**changes):
    return RunConfig(**{"input": "photos", "output": "out", **changes})


@pytest.mark.parametrize(
    ("images", "limit", "size"),
    [(1, None, 16), (512, None, 16), (2000, None, 63), (100_000, None, 1024), (2000, 100, 63)],
)
def test_shards_suit_the_collection_and_no_row_is_lost(images, limit, size):
    chosen, rows = choose_shard_size(config(limit=limit), iter(range(images)))
    assert chosen == size
    assert sum(1 for _ in rows) == images


def test_a_shard_size_that_was_asked_for():
    assert choose_shard_size(config(shard_size=7), iter(range(100)))[0] == 7


@pytest.mark.parametrize(
    ("asked", "before", "size"),
    [
        (None, {}, 2),
        (5, {"batch_size": 8, "device": "cpu"}, 5),
        (None, {"batch_size": 8, "device": "cpu"}, 8),
        (None, {"batch_size": 128, "device": "cuda"}, 2),
    ],
)
def test_batch_size_as_asked_else_as_before_on_such_a_device_else_by_the_device(asked, before, size):
    assert choose_batch_size(config(batch_size=asked), "cpu", before) == size


def test_an_apple_gpu_is_for_this_process_and_for_those_who_ask(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(
        UsageError, match="--device mps needs an Apple GPU, and torch finds none here; use --device cpu"
    ):
        choose_device(config(device="mps"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device(config(device="mps")) == "mps"
    assert choose_device(config()) != "mps"
    assert choose_batch_size(config(), "mps", {"batch_size": 8, "device": "cpu"}) == 32
    with pytest.raises(UsageError, match="--device mps is the GPU of this Mac alone, and Ray counts none such: leave"):
        config(device="mps", runner="ray")


def test_a_folder_without_images_names_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("vbp.pipeline.prepare._reads_heif", lambda: False)
    for name in ("a.heic", "b.heic", "c.txt", "d", "._e.jpg"):
        (tmp_path / name).write_bytes(b"x")
    expected = (
        r"holds no images: of its files 2 end in \.heic, 1 ends in \.txt, 1 has no suffix, "
        r"1 is hidden or a system file \(to read HEIF: pip install 'visualbackprop\[heif\]'\); "
        r"images end in \.jpg .*, and --suffixes names others\.$"
    )
    with pytest.raises(UsageError, match=expected):
        list_input(config(input=str(tmp_path)))
    assert [row.key for row in list_input(config(input=str(tmp_path), suffixes=("none",)))] == ["d"]
    monkeypatch.setattr("vbp.pipeline.prepare._reads_heif", lambda: True)
    assert [row.key for row in list_input(config(input=str(tmp_path)))] == ["a.heic", "b.heic"]


def test_a_listing_tells_how_far_it_is(tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(f"/photos/{n}.jpg" for n in range(2345)))
    told = []
    rows = list_input(config(input=str(tmp_path / "list.txt")), told.append)
    assert sum(1 for _ in rows) == 2345
    assert told == [1000, 2000, 2345]


def test_the_demo_network_names_no_photos():
    def chosen(folders, **changes):
        config = RunConfig(input="photos", output="out", **changes)
        return choose_classes(config, 2, ["disc", "ring"], folders)

    photos = chosen(["cat", "dog"], weights="demo")
    assert (photos.index, photos.advice) == ({}, "")
    assert photos.rule.startswith("--weights demo knows generated shapes only, so its masks and predictions")
    assert chosen([], weights="demo").rule.startswith("the images lie in no class folders, and --weights demo knows")
    assert chosen(["disc", "ring"], weights="demo").index == {"disc": 0, "ring": 1}
    assert "--classes FILE" in chosen(["cat", "dog"], weights="other.pth").advice
    with pytest.raises(UsageError, match="--select correct needs the class of each image: --weights demo knows"):
        chosen(["cat", "dog"], weights="demo", select="correct")
