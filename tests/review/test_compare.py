"""How the runs of a sweep agree, compared with plain loops and masks made by hand."""

import datetime
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vbp.review import compare as module
from vbp.review.compare import compare, measures_of, save
from vbp.storage.files import Folder
from vbp.storage.ledger.combined import combine
from vbp.storage.ledger.compaction import compact
from vbp.storage.ledger.index import write_part
from vbp.storage.manifest.manifest import ManifestRow, write_manifest

NOON = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC)
SIZE = 16


def smooth(seed, size=SIZE):
    """A mask with one blob."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    blob = np.exp(-((x - rng.uniform(0.2, 0.8)) ** 2 + (y - rng.uniform(0.2, 0.8)) ** 2) / 0.03)
    return ((blob - blob.min()) / (blob.max() - blob.min())).astype(np.float32)


@pytest.fixture
def made(tmp_path):
    """Makes a sweep's output of masks by run and key; settings of a run lead its rows."""

    def made(runs, columns, **changes):
        indexes = []
        for name, (settings, masks) in runs.items():
            folder = Folder(tmp_path / "out" / "runs" / name)
            keys = sorted(masks)
            manifest = write_manifest(
                folder, [ManifestRow(k, f"/in/{k}", k.encode(), None, 9, "v") for k in keys], 1000
            )
            rows = []
            for position, key in enumerate(keys):
                row = {"key": key, "uri": f"/in/{key}", "status": "ok", "position": position, "finished_at": NOON}
                row |= {"width": 100, "height": 100, "frame_left": 0.0, "frame_top": 0.0}
                row |= {"frame_right": 100.0, "frame_bottom": 100.0, "mask_mean": 0.1}
                if masks[key] is not None:
                    buffer = io.BytesIO()
                    np.save(buffer, masks[key])
                    folder.write(f"masks/{key}.npy", buffer.getvalue())
                    row["mask_uri"] = folder.uri(f"masks/{key}.npy")
                rows.append(row | changes.get(name, {}).get(key, {}))
            write_part(folder, pa.Table.from_pylist(rows), 0, "attempt")
            compact(folder, manifest)
            indexes.append((folder, {"run": name} | settings))
        combine(Folder(tmp_path / "out"), indexes, pa.schema([("run", pa.string()), *columns]))
        return str(tmp_path / "out")

    return made


def pairs_of(found):
    return {(pair.run, pair.other): pair for pair in found.pairs}


def test_a_mask_agrees_with_itself_and_not_with_its_mirror(made):
    masks = {f"{n:02d}": smooth(n) for n in range(12)}
    mirrored = {key: mask[:, ::-1].copy() for key, mask in masks.items()}
    column = [("run_preset", pa.string())]
    runs = {"a": ({"run_preset": "x"}, masks), "b": ({"run_preset": "y"}, masks), "c": ({"run_preset": "z"}, mirrored)}
    pairs = pairs_of(compare(made(runs, column)))
    assert set(pairs) == {("a", "b"), ("a", "c"), ("b", "c")}
    same, mirror = pairs["a", "b"], pairs["a", "c"]
    assert (same.images, same.differ, same.predictions_changed) == (12, ("preset",), None)
    assert (same.correlation, same.rank_correlation, same.overlap) == pytest.approx((1, 1, 1))
    assert same.peak_distance == 0
    assert mirror.correlation < 0.9
    peaks = [np.unravel_index(mask.argmax(), mask.shape) for mask in masks.values()]
    apart = np.mean([abs(SIZE - 1 - 2 * x) / np.hypot(SIZE, SIZE) for _, x in peaks])
    assert mirror.peak_distance == pytest.approx(apart)
    worst = min(masks, key=lambda key: np.corrcoef(masks[key].ravel(), mirrored[key].ravel())[0, 1])
    assert mirror.least_alike == worst
    mean = np.mean([np.corrcoef(masks[key].ravel(), mirrored[key].ravel())[0, 1] for key in masks])
    assert mirror.correlation == pytest.approx(mean)


def test_measures_against_plain_loops():
    rng = np.random.default_rng(3)
    levels = rng.integers(0, 6, (2, 7, 9)) / 5  # many ties
    found = measures_of(levels)
    one, other = (list(map(float, mask.ravel())) for mask in levels)

    def rank(values):
        return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]

    assert found["rank_correlation"][0, 1] == pytest.approx(np.corrcoef(rank(one), rank(other))[0, 1])
    assert found["correlation"][0, 1] == pytest.approx(np.corrcoef(one, other)[0, 1])
    tops = [{n for n, value in enumerate(values) if value == 1} for values in (one, other)]
    assert all(len(top) > 0.05 * 63 for top in tops)  # ties of the brightest: all of them
    assert found["overlap"][0, 1] == pytest.approx(len(tops[0] & tops[1]) / len(tops[0] | tops[1]))
    (y0, x0), (y1, x1) = (divmod(values.index(1.0), 9) for values in (one, other))
    assert found["peak_distance"][0, 1] == pytest.approx(((y0 - y1) ** 2 + (x0 - x1) ** 2) ** 0.5 / 130**0.5)


def test_the_brightest_twentieth_of_distinct_values():
    mask = np.arange(400.0).reshape(1, 20, 20) / 399
    found = measures_of(np.concatenate([mask, mask[:, ::-1, ::-1], np.roll(mask, 10)]))
    assert found["overlap"][0, 1] == 0
    assert found["overlap"][0, 0] == 1
    assert 0.3 < found["overlap"][0, 2] < 0.4  # 21 brightest each, 11 in common: 11 / 31


def test_what_chance_gives_is_what_masks_of_different_images_score(made):
    """All pairs of different images, by plain loops; each image meets one other, so only the spread is known."""
    masks = {f"{n:02d}": smooth(n) for n in range(16)}
    (pair,) = compare(made({"x": ({}, masks), "y": ({}, masks)}, [])).pairs
    assert (pair.correlation, pair.overlap, pair.peak_distance) == (pytest.approx(1), 1, 0)
    others = [
        np.corrcoef(masks[a].ravel(), masks[b].ravel())[0, 1] for a in masks for b in masks if a != b
    ]  # fmt: skip
    assert pair.correlation_by_chance == pytest.approx(np.mean(others), abs=3 * np.std(others) / 16**0.5)
    assert 0 < pair.overlap_by_chance < 0.5
    assert 0.1 < pair.peak_distance_by_chance < 0.6
    assert abs(pair.rank_correlation_by_chance) < 0.5


def test_two_images_are_held_against_each_other(made):
    masks = {"a": smooth(1), "b": smooth(2)}
    (pair,) = compare(made({"x": ({}, masks), "y": ({}, masks)}, [])).pairs
    expected = np.corrcoef(masks["a"].ravel(), masks["b"].ravel())[0, 1]
    assert pair.correlation_by_chance == pytest.approx(expected)


def test_by_chance_masks_of_other_sizes_are_compared_too(made):
    masks = {"a": smooth(1, 32), "b": smooth(2, 16)}
    (pair,) = compare(made({"x": ({}, masks), "y": ({}, masks)}, [])).pairs
    small = smooth(1, 32).reshape(16, 2, 16, 2).mean((1, 3))
    expected = np.corrcoef(small.ravel(), masks["b"].ravel())[0, 1]
    assert pair.correlation_by_chance == pytest.approx(expected, abs=0.05)


def test_chance_needs_a_second_image(made):
    (pair,) = compare(made({"x": ({}, {"a": smooth(1)}), "y": ({}, {"a": smooth(1)})}, [])).pairs
    assert (pair.correlation_by_chance, pair.peak_distance_by_chance) == (None, None)


def test_chance_is_measured_on_some_images_alone(made, monkeypatch):
    asked = []
    real = module._unrelated
    monkeypatch.setattr(module, "_unrelated", lambda *arguments: asked.append(1) or real(*arguments))
    masks = {f"{n:03d}": smooth(n) for n in range(80)}
    (pair,) = compare(made({"x": ({}, masks), "y": ({}, masks)}, [])).pairs
    assert (pair.images, len(asked)) == (80, 48)


def test_flat_masks_count_for_nothing(made):
    flat = np.zeros((SIZE, SIZE), np.float32)
    one = {"a": smooth(1), "b": flat}
    (pair,) = compare(made({"x": ({}, one), "y": ({}, {"a": smooth(1), "b": smooth(2)})}, [])).pairs
    assert (pair.images, pair.correlation, pair.overlap, pair.peak_distance) == (2, pytest.approx(1), 1, 0)
    assert pair.least_alike == "a"


def test_nothing_but_flat_masks(made):
    flat = np.zeros((SIZE, SIZE), np.float32)
    (pair,) = compare(made({"x": ({}, {"a": flat}), "y": ({}, {"a": smooth(1)})}, [])).pairs
    assert (pair.images, pair.correlation, pair.overlap, pair.peak_distance) == (1, None, None, None)


def test_masks_of_other_sizes_and_frames_are_compared_where_both_lie(made):
    """One run saw the middle of the picture, at twice the scale."""
    fine = {str(n): smooth(n, 64) for n in range(6)}
    whole = {key: mask.reshape(32, 2, 32, 2).mean((1, 3)).astype(np.float32) for key, mask in fine.items()}
    middle = {key: mask[16:48, 16:48].copy() for key, mask in fine.items()}
    frame = {"frame_left": 25.0, "frame_top": 25.0, "frame_right": 75.0, "frame_bottom": 75.0}
    runs = {"whole": ({}, whole), "middle": ({}, middle)}
    (pair,) = compare(made(runs, [], middle=dict.fromkeys(middle, frame))).pairs
    assert pair.correlation > 0.99
    assert pair.peak_distance < 0.1


def test_a_mask_at_the_picture_s_size_covers_all_of_it(made):
    """``--frame image``: the frame in the index is the network's, the mask is not."""
    large = {str(n): smooth(n, 100) for n in range(4)}
    frame = {"frame_left": 10.0, "frame_top": 0.0, "frame_right": 90.0, "frame_bottom": 100.0}
    cut = {key: mask[:, 10:90].copy() for key, mask in large.items()}
    changes = {name: dict.fromkeys(large, frame) for name in ("image", "network")}
    (pair,) = compare(made({"image": ({}, large), "network": ({}, cut)}, [], **changes)).pairs
    assert pair.correlation == pytest.approx(1, abs=1e-3)


def test_runs_of_different_inputs_are_not_compared(made):
    masks = {"a": smooth(1), "b": smooth(2)}
    column = [("run_input", pa.string()), ("run_size", pa.int64())]
    runs = {
        f"{source}{size}": ({"run_input": source, "run_size": size}, masks)
        for source in ("old", "new") for size in (32, 64)
    }  # fmt: skip
    assert set(pairs_of(compare(made(runs, column)))) == {("old32", "old64"), ("new32", "new64")}


def test_pairs_that_differ_least_come_first(made):
    masks = {"a": smooth(1)}
    column = [("run_preset", pa.string()), ("run_size", pa.int64())]
    runs = {f"{p}{s}": ({"run_preset": p, "run_size": s}, masks) for p in "xy" for s in (32, 64)}
    differ = [pair.differ for pair in compare(made(runs, column)).pairs]
    assert differ == [("preset",)] * 2 + [("size",)] * 2 + [("preset", "size")] * 2


def test_changed_predictions_and_runs_without_masks(made):
    none = dict.fromkeys("abcde")
    predicted = {
        "x": {key: {"prediction": 1} for key in "abcd"},
        "y": {key: {"prediction": int(key != "b")} for key in "abce"},
    }
    (pair,) = compare(made({"x": ({}, none), "y": ({}, none)}, [], **predicted)).pairs
    assert (pair.images, pair.correlation, pair.overlap, pair.least_alike) == (0, None, None, None)
    assert pair.predictions_changed == pytest.approx(1 / 3)


def test_a_mask_that_is_gone_or_broken_is_left_out(made):
    masks = {"a": smooth(1), "b": smooth(2), "c": smooth(3)}
    url = made({"x": ({}, masks), "y": ({}, masks)}, [])
    Folder(url).delete("runs/y/masks/a.npy")
    Folder(url).write("runs/x/masks/b.npy", b"broken")
    (pair,) = compare(url).pairs
    assert (pair.images, pair.correlation) == (1, pytest.approx(1))


@pytest.mark.parametrize("rows_at_once", [7, 65_536])
def test_a_sample_is_even_seeded_and_the_same_in_all_runs(made, monkeypatch, rows_at_once):
    monkeypatch.setattr("vbp.storage.ledger.index.ROWS_AT_ONCE", rows_at_once)
    masks = {f"{n:03d}": smooth(n) for n in range(100)}
    url = made({"x": ({}, masks), "y": ({}, masks)}, [])
    (pair,) = compare(url, sample=20).pairs
    assert pair.images == 20
    opened = {seed: set(module._sampled(Folder(url), 20, seed)[0]["x"]) for seed in range(40)}
    counts = np.bincount([int(key) for keys in opened.values() for key in keys], minlength=100)
    assert counts.max() < 25  # 8 expected; the first and the last as often as others
    assert abs(counts[:50].sum() - 400) < 80
    assert set(module._sampled(Folder(url), 20, 3)[0]["y"]) == opened[3]


def test_it_is_written_as_a_table(made):
    found = compare(made({"x": ({}, {"a": smooth(1)}), "y": ({}, {"a": smooth(2)})}, []))
    save(found)
    (row,) = pq.read_table(f"{found.output}/comparison.parquet").to_pylist()
    assert (row["run"], row["other"], row["images"], row["differ"]) == ("x", "y", 1, [])
    assert row["correlation"] == found.pairs[0].correlation
    assert row["correlation_by_chance"] is None
    assert found.as_json()["pairs"][0]["overlap"] == row["overlap"]


def test_one_run_has_nobody_to_agree_with(made):
    found = compare(made({"x": ({}, {"a": smooth(1)})}, []))
    assert found.pairs == ()
    save(found)
    assert pq.read_table(f"{found.output}/comparison.parquet").num_rows == 0
