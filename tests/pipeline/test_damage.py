"""Files of the ledger that are damaged: what was lost is made again, or a sentence says what to do."""

import shutil
from pathlib import Path

import pyarrow.dataset as pads
import pytest

from vbp.errors import InterruptedRunError, UsageError
from vbp.pipeline import Observer, RunConfig, run


def config(photos, out, network_file, **changes):
    fields = {"input": str(photos), "output": str(out), "weights": network_file, "size": 32, "precision": "float32"}
    return RunConfig(**fields | {"runner": "local", "batch_size": 4, "shard_size": 8} | changes)


def keys_of(out):
    return sorted(pads.dataset(out / "index").to_table(columns=["key"])["key"].to_pylist())


@pytest.fixture(scope="module")
def finished(photos, network_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    run(config(photos, out, network_file, limit=21))
    return out


@pytest.fixture
def out(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "out"))


class Notes(Observer):
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


@pytest.mark.parametrize("data", [b"", b"PAR1 and then nothing"])
def test_a_damaged_part_is_made_again_within_the_run(out, photos, network_file, data):
    """Its name says that all is well, so it is noticed when the index is made."""
    part = sorted(out.glob("_run/parts/000001/*.parquet"))[0]
    part.write_bytes(data)
    notes = Notes()
    summary = run(config(photos, out, network_file), notes)
    assert (summary.ok, summary.computed, summary.succeeded) == (22, 1 + 8, True)
    assert [text for text in notes.texts if "damaged" in text] == [
        f"{part} is damaged and was removed; its images are done again."
    ]
    assert len(keys_of(out)) == len(set(keys_of(out))) == 22


def test_a_part_that_is_damaged_while_its_images_are_pending(photos, network_file, tmp_path):
    tree, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, tree)
    (tree / "bird" / "00.jpg").write_bytes(b"no image")
    assert run(config(tree, out, network_file, limit=8, max_failures="1")).error == 1
    (part,) = out.glob("_run/parts/000000/*.parquet")
    part.write_bytes(part.read_bytes()[:-30])
    summary = run(config(tree, out, network_file, max_failures="1"))
    assert (summary.ok, summary.error, summary.computed) == (21, 1, 22)
    assert not part.exists()


def test_rows_that_keep_getting_lost_interrupt(out, photos, network_file, monkeypatch):
    from vbp.pipeline import steps

    monkeypatch.setattr(steps, "write_part", lambda *arguments: None)
    with pytest.raises(InterruptedRunError, match="1 of 22 images have no row.*run the same command again"):
        run(config(photos, out, network_file))
    assert not (out / "_SUCCESS").exists()
    monkeypatch.undo()
    assert run(config(photos, out, network_file)).succeeded


@pytest.mark.parametrize("runner", ["local", "ray"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: b"", lambda data: data[:40] + b"?" + data[41:]]
)
def test_a_damaged_manifest_file_is_a_sentence(out, photos, network_file, runner, damage, ray_session):
    shutil.rmtree(out / "_run" / "parts")
    (path,) = out.glob("_run/manifest/*.parquet")
    path.write_bytes(damage(path.read_bytes()))
    made = config(photos, out, network_file, limit=21, runner=runner, workers=1)
    with pytest.raises(UsageError, match=f"{path} is damaged .*--resume-mode overwrite") as caught:
        run(made)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runner", ["local", "ray"])
def test_a_manifest_file_that_is_gone_is_a_sentence(out, photos, network_file, runner, ray_session):
    shutil.rmtree(out / "_run" / "parts")
    (path,) = out.glob("_run/manifest/*.parquet")
    path.unlink()
    with pytest.raises(InterruptedRunError, match=str(path)) as caught:
        run(config(photos, out, network_file, limit=21, runner=runner, workers=1))
    assert "\n" not in str(caught.value)


def test_results_whose_record_is_gone_are_not_mixed_with_others(out, photos, network_file):
    (out / "_run" / "run.json").unlink()
    with pytest.raises(UsageError, match=r"run\.json is gone.*overwrite"):
        run(config(photos, out, network_file))
    summary = run(config(photos, out, network_file, resume_mode="overwrite", size=48))
    assert (summary.ok, summary.computed) == (22, 22)
