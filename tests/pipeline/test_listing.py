"""INPUT listed by this process alone, or by workers too: the same manifest."""

import os
from types import SimpleNamespace

import pytest

from vbp.errors import LeaseLostError, UsageError
from vbp.pipeline import Observer, RunConfig
from vbp.pipeline.attempt import attempted
from vbp.pipeline.calibrate import TRIED
from vbp.pipeline.listing import Checked
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.resources import Resources
from vbp.storage.files import Folder
from vbp.storage.manifest import manifest as manifest_module
from vbp.storage.manifest import stretches
from vbp.storage.manifest.manifest import Manifest
from vbp.storage.spreading import here

NAMES = [f"{folder}/{number}.jpg" for folder in ("a", "b", "b.c", "d/e") for number in range(3)] + ["c.txt", "z.jpg"]
GIVEN = Resources(workers=1, num_cpus=1, num_gpus=0, threads=1)


class Heard(Observer):
    def __init__(self):
        self.counts = []

    def listed(self, images):
        self.counts.append(images)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(stretches, "ALONE", 4)
    monkeypatch.setattr(manifest_module, "_SHARDS_PER_PART", 2)


@pytest.fixture
def asked(tmp_path):
    """An output beside the photos."""
    for name in NAMES:
        Folder(tmp_path / "in").write(name, b"1")

    def asked(name, **options):
        options = {"shard_size": 2} | options
        return RunConfig(input=str(tmp_path / "in"), output=str(tmp_path / name), **options)

    return asked


def checked(attempt, precision="float32"):
    recipe = Recipe(
        config=attempt.config, run_id=attempt.run_id, device="cpu", precision=precision, batch_size=2,
        weights_sha256="0",
    )  # fmt: skip
    return Checked(attempt, recipe, SimpleNamespace(num_classes=None, class_names=None), lambda: None)


def listed(config, spread=None, observer=None):
    """The manifest without its random names, and the tables of its files."""
    with attempted(config, observer or Observer()) as attempt:
        manifest = checked(attempt).listed(None, spread).manifest
        assert sorted(f"_run/manifest/{name}" for name in manifest.names) == attempt.output.list("_run/manifest")
        shards = [manifest.read_shard(shard).to_pylist() for shard in range(manifest.shards)]
        facts = (manifest.listings, manifest.labels, manifest.left_out, manifest.gone, manifest.complete)
    return shards, facts


def never(function, arguments, done=None):
    raise AssertionError("workers were asked")


def test_workers_list_a_large_tree_and_refresh_it(asked, tmp_path):
    observer, asked_for = Heard(), []

    def spread(function, arguments, done=None):
        asked_for.append(function.__name__)
        return here(function, arguments, done) if done else here(function, arguments)

    one = listed(asked("one"))
    assert one[1] == ((13,), ("a", "b", "b.c", "d"), {".txt": 1}, {}, True)
    assert listed(asked("other"), spread, observer) == one
    assert asked_for == ["list_stretch", "make_file"]
    assert observer.counts == sorted(observer.counts)
    assert observer.counts[-1] == 13
    os.unlink(tmp_path / "in/b/1.jpg")
    Folder(tmp_path / "in").write("b/9.jpg", b"1")
    Folder(tmp_path / "in").write("d/e/0.jpg", b"longer")
    again = listed(asked("one", refresh=True))
    assert again[1][0] == (13, 1)
    assert again[1][3] == {3: 1}
    assert listed(asked("other", refresh=True), spread) == again
    assert asked_for == ["list_stretch", "make_file", "list_stretch"]


def test_a_start_over_looks_first_and_then_lists(asked):
    one = listed(asked("one"))
    asked_for = []

    def spread(function, arguments, done=None):
        for argument in arguments:
            asked_for.append(getattr(argument, "output", None) is not None)
            result = function(argument)
            if done:
                done(result)
            yield result

    assert listed(asked("one", resume_mode="overwrite"), spread) == one
    assert asked_for == sorted(asked_for)
    assert {False, True} == set(asked_for)


def test_a_limit_is_for_one_process(asked):
    assert listed(asked("out", limit=12), never) == listed(asked("other", limit=12))


def test_a_list_of_images_is_for_one_process(asked, tmp_path):
    place = tmp_path / "photos.txt"
    place.write_text("".join(f"{tmp_path}/in/{name}\n" for name in NAMES))
    config = RunConfig(input=str(place), output=str(tmp_path / "out"), shard_size=2)
    assert sum(map(len, listed(config, never)[0])) == len(NAMES)


def test_an_image_among_the_results_is_refused_by_a_worker_too(asked, tmp_path):
    with attempted(asked("out"), Observer()) as attempt:
        attempt.output.write("masks/cat/a.jpg", b"1")
        (tmp_path / "in/y").symlink_to(tmp_path / "out/masks/cat")
        with pytest.raises(UsageError, match=r"in/y/a\.jpg lies in the folder masks"):
            checked(attempt).listed(None, here)
        assert Manifest.load(attempt.output) is None


def test_the_images_that_int8_tries_are_chosen_among_all(asked):
    """Those which this process has listed alone are not enough: then all are looked at again."""
    with attempted(asked("out"), Observer()) as attempt:
        run = checked(attempt, "int8")
        run.listed(None, here)
        assert run._choice.rows == []
    with attempted(asked("other"), Observer()) as attempt:
        run = checked(attempt, "int8")
        run.listed()
        assert len(run._choice.rows) == min(13, TRIED)


def test_a_run_that_lost_its_output_lists_nothing_any_more(asked):
    config = asked("out")

    def spread(function, arguments, done=None):
        Folder(config.output).delete("_run/lease.json")
        with attempted(config, Observer()):
            yield from here(function, arguments)

    with attempted(config, Observer()) as attempt, pytest.raises(LeaseLostError):
        checked(attempt).listed(None, spread)
    assert Manifest.load(Folder(config.output)) is None


def killed_once(task):
    """Lists, and ends the worker of Ray the first time."""
    result = stretches.list_stretch(task)
    if task.output.create("killed", b""):
        os._exit(1)
    return result


def test_workers_of_ray_one_of_which_is_lost(ray_session, asked):
    from vbp.pipeline.on_ray.spread import spread_by

    def spread(function, arguments, done=None):
        whom = killed_once if function is stretches.list_stretch else function
        return spread_by(GIVEN)(whom, arguments, *([done] if done else []))

    observer = Heard()
    assert listed(asked("other"), spread, observer) == listed(asked("one"))
    assert observer.counts[-1] == 13
