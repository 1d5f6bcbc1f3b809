"""A sample of the model; `make chaos` goes through all of it."""

import random

import pytest

from tests.protocol.model import FIRST, IMAGES, SCENES, SHARD, Plan, World, excused, explore, requests

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
