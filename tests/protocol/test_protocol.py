"""A sample of the model; `make chaos` goes through all of it."""

import random
import re

import pytest

from tests.protocol.model import FIRST, IMAGES, SCENES, SHARD, Plan, World, excused, explore, requests
from vbp.review.output import Output
from vbp.review.validate import validate
from vbp.storage.manifest.manifest import Manifest

pytestmark = pytest.mark.long
SEED, SINGLE, PAIRS = 500, 4, 3


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("kind", ["bucket", "disk"])
def test_two_attempts_in_many_orders(kind, name, tmp_path):
    rng, places = random.Random(f"{SEED} {kind} {name}"), iter(range(1000))

    def place():
        return "bucket" if kind == "bucket" else str(tmp_path / str(next(places)))

    scene = SCENES[name]
    first, second = requests(place, scene.first, scene.before), requests(place, scene.second, scene.before)
    orders = [(stop, None, False) for stop in rng.sample(range(first), SINGLE)]
    orders += [(rng.randrange(first), rng.randrange(second), rng.random() < 0.5) for _ in range(PAIRS)]
    for order in orders:
        outcome = explore(place, scene, *order)
        assert excused(outcome, kind) or not outcome.faults, (order, outcome)


@pytest.mark.parametrize("until", ["put model/out/_run/manifest.json", "list model/out/_run/parts/000000"])
def test_a_part_of_a_manifest_is_deleted_late(until):
    """Two start over: what the first deletes late must not be what the second has listed."""
    scene = SCENES["two that start over"]
    until = "put model/out/_run/manifest/", until
    outcome = explore(lambda: "bucket", scene, ("delete model/out/_run/manifest/",), until, False)
    assert not outcome.faults, outcome


def test_a_longer_list_comes_late():
    """The second has done all that it found listed, and promised it."""
    stop = ("put model/out/_run/manifest.json",) * 2
    outcome = explore(lambda: "bucket", SCENES["a longer list, then resume"], stop, None, False)
    assert not outcome.faults, outcome


@pytest.mark.parametrize("number", range(IMAGES // SHARD))
def test_an_index_comes_late_whose_version_was_there_again(number):
    """One is gone, comes back, and the second's index has the rows that the first one's request was to replace."""
    stop = (f"put model/out/index/part-0000{number}.parquet",) * 2
    outcome = explore(lambda: "bucket", SCENES["one is gone, and comes back"], stop, None, False)
    assert not outcome.faults, outcome


def test_a_list_is_read_while_its_changed_rows_are_written_late():
    """They go into another file, so that no reader sees a half of each."""
    stop = ("put model/out/_run/manifest/",)
    outcome = explore(lambda: "bucket", SCENES["two that refresh"], stop, ("read model/out/_run/manifest/",), False)
    assert not outcome.faults, outcome


@pytest.mark.parametrize("until", ["list model/out/index", "list model/out/shards", "list model/out/_run/manifest"])
def test_a_part_comes_late_while_another_starts_over_and_is_killed(until):
    """Its files are gone, so its rows must not count, although the other has got no further."""
    scene = SCENES["over it with another preset"]
    outcome = explore(lambda: "bucket", scene, ("put model/out/_run/parts/000001/",), (until,), True)
    assert not outcome.faults, outcome


def test_a_lease_is_given_back_late():
    """What the first gives back is the second's by now."""
    scene, last = SCENES["a limit, then all"], ("put model/out/_SUCCESS", *["read model/out/_run/lease.json"] * 3)
    for stop in (last, (*last, "put")):
        outcome = explore(lambda: "bucket", scene, stop, ("put model/out/masks/2",), False)
        assert not outcome.faults, outcome
        assert "lease.json" in outcome.where


MAY_BE_WRITTEN_AGAIN = re.compile(
    r"_SUCCESS|index/part-\d{5}\.parquet|masks/\d\.png\.png|shards/\d{6}/\d+-\d+-[0-9a-f]{16}\.tar"
)
"""What docs/guarantees.md says of object stores: a late deletion may hit a successor's."""
NOBODY_WRITES_AGAIN = re.compile(r"_run/manifest/[0-9a-f]{16}-\d{5}\.parquet|_run/parts/\d{6}/20261[^/]+\.parquet")
"""Names with a random part, or with the name of the attempt that wrote them."""


def test_what_is_deleted_in_a_bucket():
    deleted = set()
    for scene in SCENES.values():
        with pytest.MonkeyPatch.context() as patch:
            world = World(patch, "bucket")
            for number, plan in enumerate([scene.before or Plan(layout=scene.first.layout), scene.first, scene.second]):
                world.run(f"20261129T000000Z-{number:08d}", plan)
            asked = [request for requests in world.turns.requests.values() for request in requests]
        deleted |= {text.removeprefix("delete model/out/") for text in asked if text.startswith("delete ")}
    left = {path for path in deleted if not MAY_BE_WRITTEN_AGAIN.fullmatch(path)}
    assert len(left) < len(deleted)
    assert {path for path in left if not NOBODY_WRITES_AGAIN.fullmatch(path)} == set()
    assert {path.split("/")[1] for path in left} == {"manifest", "parts"}


def test_a_repair_in_a_bucket_deletes_no_manifest():
    """It takes it back by a write, which fails where a successor has listed meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch, "bucket")
        world.run(FIRST, Plan())
        (listed,) = world.folder.list("_run/manifest")
        world.folder.write(listed, b"damaged")
        with world.turns.of("repair"):
            found = validate(Output.open(world.url), repair=True, sample=0)  # the masks of a model are no pictures
        assert found.repaired
        assert world.folder.exists("_run/manifest.json")
        assert Manifest.load(world.folder) is None
        assert not any("delete" in asked and "manifest" in asked for asked in world.turns.requests["repair"])
        assert len(world.run("20261129T000000Z-dddddddd", Plan())) == 0
        assert world.faults() == []


def test_the_fence_costs_a_fresh_commit_nothing():
    """One request for a result, one for a part, two looks a commit: as many as without a fence."""
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch, "bucket")
        assert len(world.run(FIRST, Plan())) == IMAGES
        asked = world.turns.requests[FIRST]
    results = [request for request in asked if "/masks/" in request or ".parquet" in request and "/parts/" in request]
    commits = IMAGES // SHARD
    written = [request for request in results if not request.startswith(("read ", "list "))]
    assert len(written) == IMAGES + commits
    assert all(request.startswith("put ") for request in written)
    first, last = (asked.index(written[n]) for n in (0, -1))
    assert sum(request == "read model/out/_run/lease.json" for request in asked[first - 1 : last]) == 2 * commits
