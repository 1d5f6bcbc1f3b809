"""The plan on Ray: few tasks that list the shards, one shard in each unit of work."""

import math
from types import SimpleNamespace

import pytest
from ray.data import ActorPoolStrategy

from vbp.pipeline.on_ray import dataset as module
from vbp.pipeline.resources import Resources


def shards_of(task):
    return [shard for table in task() for shard in table["shard"].to_pylist()]


@pytest.mark.parametrize(("shards", "tasks"), [(1, 1), (999, 999), (1000, 1000), (1001, 501), (100_000, 1000)])
def test_the_number_of_read_tasks_is_bounded_and_no_shard_is_lost(shards, tasks):
    made = module.Shards(range(7, 7 + shards)).get_read_tasks(shards)
    assert len(made) == tasks
    assert [shard for task in made for shard in shards_of(task)] == list(range(7, 7 + shards))
    assert [task.metadata.num_rows for task in made] == [len(shards_of(task)) for task in made]


@pytest.mark.parametrize("block_bytes", [1, module.BLOCK_BYTES], ids=["fused", "spread"])
def test_each_unit_of_work_is_one_shard(ray_session, monkeypatch, block_bytes):
    """In both shapes of the plan, which differ in the size of the blocks that they ask for."""
    import ray.data
    from ray.data import DataContext

    monkeypatch.setattr(module, "READ_TASKS", 3)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = block_bytes
    with DataContext.current(context):
        source = ray.data.read_datasource(module.Shards(range(10)), num_cpus=0.25, override_num_blocks=10)
        blocks = source.map_batches(lambda batch: {"shards": [list(batch["shard"])]}, batch_size=None, num_cpus=0.5)
        found = sorted(list(row["shards"]) for row in blocks.iter_rows())
    assert found == [[shard] for shard in range(10)]


def test_workers_that_hold_all_cpus_do_not_starve_the_listing(ray_session, monkeypatch):
    """As after the loss of nodes, whose workers crowd those that are left."""

    class Chain:
        def __init__(self, recipe):
            pass

        def __call__(self, batch):
            return {"shard": batch["shard"]}

    monkeypatch.setattr(module, "Chain", Chain)
    monkeypatch.setattr(module, "IDLE_SECONDS", 60)
    given = Resources(workers=4, num_cpus=1, num_gpus=0, threads=1)
    reports = module.plan(None, range(60), given, spread=False)
    assert sorted(row["shard"] for row in reports.iter_rows()) == list(range(60))


@pytest.mark.parametrize(
    ("workers", "at_most", "shards", "least", "most"),
    [
        (4, 0, math.inf, 4, 4),
        (4, 0, 2, 2, 2),
        (1, 8, math.inf, 1, 8),
        (1, 8, 3, 1, 3),
        (2, math.inf, math.inf, 2, None),
    ],
)
def test_the_pool_of_workers_grows_as_far_as_it_may(workers, at_most, shards, least, most):
    labels = {"zone": "a"} if most is None else {}
    given = Resources(workers=workers, at_most=at_most, num_cpus=0, num_gpus=1, threads=0, labels=labels)
    pool = module._pool(given, shards)
    assert pool["compute"].max_concurrent_calls_per_actor == 1
    assert not pool["compute"].enable_true_multi_threading
    expected = ActorPoolStrategy(min_size=least, max_size=most)
    assert (pool["compute"].min_size, pool["compute"].max_size) == (expected.min_size, expected.max_size)
    assert pool.get("label_selector") == (labels or None)


def test_calls_of_a_gpu_worker_run_at_the_same_time():
    given = Resources(workers=1, num_cpus=0, num_gpus=1, threads=0, calls=3)
    pool = module._pool(given)["compute"]
    assert pool.max_concurrent_calls_per_actor == 3
    assert pool.enable_true_multi_threading  # without it Ray would overlap everything but the step


@pytest.mark.parametrize(
    ("batch_bytes", "block_bytes"),
    [(None, module.BLOCK_BYTES), (128 * 224 * 224 * 3, 18_304_204), (4 * 32 * 32 * 3, module.LEAST_BLOCK_BYTES)],
)
def test_a_block_ends_where_a_batch_does(batch_bytes, block_bytes):
    """Ray ends a block above that size, and cuts it from 1.5 times that size on."""
    found = module._block_bytes(SimpleNamespace(batch_bytes=batch_bytes))
    assert found == block_bytes
    if batch_bytes and found > module.LEAST_BLOCK_BYTES:
        mask, overlay = batch_bytes / 3, batch_bytes
        assert found < batch_bytes
        assert mask + overlay < 1.5 * found


@pytest.mark.parametrize(("num_cpus", "num_gpus"), [(0, 1), (0, 0.25), (2, 0)])
def test_workers_claim_what_was_decided_and_no_more(num_cpus, num_gpus):
    class Recorder:
        calls = []

        def map_batches(self, step, **settings):
            self.calls.append((step, settings))
            return self

    given = Resources(workers=1, num_cpus=num_cpus, num_gpus=num_gpus, threads=0)
    module._spread(Recorder(), SimpleNamespace(batch_size=8), given)
    settings = dict(Recorder.calls)[module.ExplainActor]
    assert settings["num_cpus"] == num_cpus  # said also where it is 0: by itself Ray Data claims one beside a GPU
    assert (settings["num_gpus"] or 0) == num_gpus
