"""Work that CUDA does for Explain and Encode, done by torch on the CPU: the same files and rows as without it."""

import numpy as np
import pytest
import torch

from tests.pipeline.test_job import EXCEPTED, config, files_below, index_of
from tests.pipeline.test_steps import Small
from vbp.columns import ColumnError
from vbp.networks.preprocessing import Preprocessing
from vbp.pipeline import RunConfig, run
from vbp.pipeline.finishing import MASK_FACTS, Finishing
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.steps import Encode, Explain, objects

PREPROCESSING = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
ROUNDED = {"mask_mean", "probability"}
"""Columns whose last digit depends on the order of a sum."""


def recipe(device="cuda", **changes):
    chosen = RunConfig(**{"input": "photos", "output": "out", **changes})
    return Recipe(config=chosen, run_id="r", device=device, precision="float32", batch_size=4, weights_sha256="")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mask_format": "png16", "overlay_style": "reference", "outputs": ("mask", "overlay", "input", "maps")},
        {"mask_format": "npy", "overlay_style": "red", "fit": "original", "batch_size": None},
        {"select": "misclassified", "outputs": ("mask",)},
        {"layout": "none"},
    ],
    ids=["as it comes", "all outputs", "of their own sizes", "selected", "no files"],
)
def test_files_and_rows_are_the_same(photos, network_file, tmp_path, monkeypatch, changes):
    run(config(photos, tmp_path / "plain", network_file, **changes))
    plain = Recipe.finishing.fget
    monkeypatch.setattr(Recipe, "finishing", property(lambda made: plain(recipe(**vars(made.config)))))
    run(config(photos, tmp_path / "finished", network_file, **changes))
    for folder in ("masks", "overlays", "inputs", "maps"):
        assert files_below(tmp_path / "finished" / folder) == files_below(tmp_path / "plain" / folder)
    found, expected = index_of(tmp_path / "finished"), index_of(tmp_path / "plain")
    assert found.keys() == expected.keys()
    for key, row in found.items():
        for name in row.keys() - EXCEPTED:
            value = expected[key][name]
            is_rounded = name in ROUNDED and value is not None
            assert row[name] == (pytest.approx(value, rel=2e-7) if is_rounded else value), (key, name)


@pytest.mark.parametrize(
    ("made", "finishing"),
    [
        (recipe(), Finishing(overlay_style="heat")),
        (recipe(outputs=("mask", "input"), mask_format="npy"), Finishing(mask_format="npy", keep_pixels=True)),
        (recipe(layout="none"), Finishing()),
        (recipe(frame="image"), None),
        (recipe("cpu"), None),
        (recipe("mps"), None),
    ],
    ids=["cuda", "input", "no files", "at the size of the image", "cpu", "mps"],
)
def test_the_device_finishes_what_is_stored(made, finishing):
    found = made.finishing
    assert (found and (found.mask_format, found.overlay_style, found.keep_pixels)) == (
        finishing and (finishing.mask_format, finishing.overlay_style, finishing.keep_pixels)
    )


def test_images_without_a_mask_keep_their_rows_and_shapes():
    """One failed before; for another, which is white, the network gives infinity."""
    network = Small()
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].weight[0] = 1e37
        network[2].weight.fill_(1e-30)
    pixels = np.random.default_rng(1).integers(0, 256, (4, 20, 24, 3), dtype=np.uint8)
    pixels[2] = 255
    explain = Explain(
        {"model": network, "preprocessing": PREPROCESSING, "precision": "float32"},
        finishing=Finishing(mask_format="png16", overlay_style="red"),
    )
    stages = objects([None, "decode", None, None])
    seen = explain({"key": objects(list("abcd")), "pixels": pixels, "error_stage": stages})
    assert (seen["mask"].shape, seen["mask"].dtype) == ((4, 20, 24), np.uint16)
    assert (seen["overlay"].shape, seen["overlay"].dtype) == ((4, 20, 24, 3), np.uint8)
    assert not seen["overlay"][1].any()
    assert "pixels" not in seen
    assert list(seen["error_stage"]) == [None, "decode", "explain", None]
    found = Encode(("mask", "overlay"), "png16", "red", finished=True)(seen)
    for name in ("file_mask", "file_overlay", "mask_mean", "peak_x", "mask_width"):
        assert [value is not None for value in found[name]] == [True, False, False, True], name


def test_where_all_have_failed_the_columns_are_there():
    finishing = Finishing(overlay_style="heat")
    explain = Explain({"model": Small, "preprocessing": PREPROCESSING}, finishing=finishing)
    failed = objects(["decode"] * 2)
    batch = {"key": objects(list("ab")), "pixels": np.zeros((2, 8, 8, 3), np.uint8), "error_stage": failed}
    seen = explain(batch)
    assert (seen["mask"].dtype, seen["overlay"].shape[3:]) == (np.uint8, (3,))
    assert all(list(seen[name]) == [None, None] for name in MASK_FACTS)
    assert list(Encode(finished=True)(seen)["file_overlay"]) == [None, None]


def test_what_was_not_finished_is_missed():
    batch = {"key": objects(["a"]), "mask": np.zeros((1, 4, 4), np.float32), "pixels": np.zeros((1, 4, 4, 3), np.uint8)}
    with pytest.raises(ColumnError, match=r"encode needs the columns \['mask_area', .*'overlay', 'peak_x', 'peak_y'\]"):
        Encode(finished=True)(batch)
