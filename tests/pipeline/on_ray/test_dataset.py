"""The plan on Ray: few tasks that list the shards, and batches of one shard, or of several with few images left."""

import logging
import math
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from ray.data import ActorPoolStrategy

from vbp.pipeline.on_ray import dataset as module
from vbp.pipeline.on_ray.parcels import packed, unpacked
from vbp.pipeline.resources import Resources
from vbp.pipeline.source import Work
from vbp.pipeline.steps import objects


def shards_of(task):
    return [shard for table in task() for shard in table["shard"].to_pylist()]


@pytest.mark.parametrize(("shards", "tasks"), [(1, 1), (999, 999), (1000, 1000), (1001, 501), (100_000, 1000)])
def test_the_number_of_read_tasks_is_bounded_and_no_shard_is_lost(shards, tasks):
    made = module.Shards(range(7, 7 + shards)).get_read_tasks(shards)
    assert len(made) == tasks
    assert [shard for task in made for shard in shards_of(task)] == list(range(7, 7 + shards))
    assert [task.metadata.num_rows for task in made] == [len(shards_of(task)) for task in made]


@pytest.mark.parametrize("together", [1, 3])
def test_a_unit_of_work_has_as_many_shards_as_are_asked_for(ray_session, monkeypatch, together):
    import ray.data
    from ray.data import DataContext

    monkeypatch.setattr(module, "READ_TASKS", 3)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = 1
    with DataContext.current(context):
        source = ray.data.read_datasource(module.Shards(range(10)), num_cpus=0.25, override_num_blocks=10)
        blocks = source.map_batches(lambda batch: {"shards": [list(batch["shard"])]}, batch_size=together, num_cpus=0.5)
        found = [list(row["shards"]) for row in blocks.iter_rows()]
    assert sorted(shard for each in found for shard in each) == list(range(10))
    assert sorted(len(each) for each in found) == ([1] * 10 if together == 1 else [1, 3, 3, 3])


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
    ("shards", "images", "together"),
    [
        (100_000, None, 1),
        (100_000, 100_000 * 1024, 1),
        (100_000, 100_000 * 512, 1),
        (100_000, 100_000 * 511, 2),
        (100_000, 100_000 * 10, 52),
        (100_000, 100_000, 64),
        (1_000, 1_000, 15),  # 67 tasks
        (32, 32 * 16, 1),
        (1, 0, 1),
    ],
)
def test_shards_with_few_images_left_fill_batches_together(shards, images, together):
    assert module._shards_a_task(shards, images, 128) == together


class Opened:
    """Shards with so many images, of which the first are done one by one; notes what is open."""

    def __init__(self, shards):
        self.shards, self.now = shards, []

    @contextmanager
    def open(self, number):
        self.now.append(number)
        yield Images(number, *self.shards[number])
        self.now.remove(number)


class Images:
    def __init__(self, shard, single, count):
        self.shard, self.single, self.count = shard, single, count

    def _batch(self, first, rows):
        return {
            "key": objects([f"{self.shard}/{first + row}" for row in range(rows)]),
            "shard": np.full(rows, self.shard),
        }

    def singles(self, step):
        for number in range(self.single):
            yield step(self._batch(number, 1))

    def batches(self, rows):
        for first in range(self.single, self.count, rows):
            yield self._batch(first, min(rows, self.count - first))


def decoded_by(shards, batch_size, *, own_sizes=False, size=10_000):
    """Keys of the batches in each parcel; and what the steps did, with `sent` for each parcel."""
    source, stages = Opened(shards), []

    def step(name):
        def carried_out(batch):
            stages.append((name, len(batch["key"]), list(source.now)))
            return batch

        return carried_out

    steps = SimpleNamespace(
        source=lambda: source, fetch=lambda: step("fetch"), decode=lambda: step("decode"),
        batch_size=batch_size, own_sizes=own_sizes, read_by_explain=None,
    )  # fmt: skip
    found = []
    for parcel in module.fetch_and_decode({"shard": np.array(sorted(shards))}, steps, size):
        found.append([list(each["key"]) for each in unpacked(parcel)])
        stages.append(("sent", sum(map(len, found[-1])), list(source.now)))
    assert not source.now
    return found, stages


def test_a_shard_is_decoded_in_batches_and_only_its_last_one_is_short():
    (found,), stages = decoded_by({5: (0, 10)}, 4)
    assert [len(each) for each in found] == [4, 4, 2]
    assert [key for each in found for key in each] == [f"5/{number}" for number in range(10)]
    assert [stage for stage, *_ in stages] == [*["fetch", "decode"] * 3, "sent"]


def test_batches_of_shards_with_few_images_are_joined():
    (found,), stages = decoded_by({1: (0, 1), 2: (0, 2), 3: (0, 2), 4: (0, 4), 5: (0, 1)}, 4)
    assert found == [["1/0", "2/0", "2/1", "3/0"], ["3/1", "4/0", "4/1", "4/2"], ["4/3", "5/0"]]
    assert all(now == [1, 2, 3, 4, 5] for *_, now in stages)  # the marks of all stand until all are done


def test_images_that_are_done_one_by_one_are_not_joined():
    found, _ = decoded_by({1: (2, 3), 2: (1, 2)}, 4)
    assert found == [[["1/0"], ["1/1"], ["2/0"]], [["1/2", "2/1"]]]


def test_after_a_death_what_is_decoded_is_sent_before_more_is_tried():
    """Else all of it would be lost again with the next process, which would begin with the same images."""
    found, stages = decoded_by({1: (2, 9)}, 3)
    assert found == [[["1/0"], ["1/1"]], [["1/2", "1/3", "1/4"]], [["1/5", "1/6", "1/7"]], [["1/8"]]]
    done = [(stage, rows) for stage, rows, _ in stages if stage != "fetch"]
    singles, batches = done[:3], done[3:]
    assert singles == [("decode", 1), ("decode", 1), ("sent", 2)]
    assert batches == [("decode", 3), ("sent", 3), ("decode", 3), ("sent", 3), ("decode", 1), ("sent", 1)]


def test_no_image_is_alone_in_hand_while_a_parcel_waits_for_room():
    """Ray stops a task where it hands on a parcel. Whoever kills it then, kills no worker of an image."""
    alone = []

    class Marks:
        stuck, deaths = True, Counter()

        @contextmanager
        def alone(self, position):
            alone.append(position)
            yield
            alone.remove(position)

    @contextmanager
    def opened(shard):
        yield Work(shard, listed, Marks())

    def decode(batch):
        assert alone == list(batch["position"])
        return batch | {"pixels": np.zeros((1, 1000), np.uint8)}

    listed = pa.table({name: ["a", "b"] for name in ("key", "uri", "path", "label", "version")})
    listed = listed.append_column("position", pa.array([0, 1], pa.int32()))
    steps = SimpleNamespace(
        source=lambda: SimpleNamespace(open=opened), fetch=lambda: dict, decode=lambda: decode,
        batch_size=4, own_sizes=True, is_slow=False, read_by_explain=None,
    )  # fmt: skip
    found = module.fetch_and_decode({"shard": np.array([5])}, steps, 1000)
    assert [(list(unpacked(parcel)[0]["key"]), list(alone)) for parcel in found] == [(["a"], []), (["b"], [])]


def test_a_parcel_is_sent_when_it_has_its_bytes():
    found, _ = decoded_by({1: (0, 5)}, 2, size=1)
    assert found == [[["1/0", "1/1"]], [["1/2", "1/3"]], [["1/4"]]]


GPUS = {"workers": 1, "num_cpus": 1, "num_gpus": 1, "threads": 0}


@pytest.mark.parametrize(
    ("is_slow", "store", "expected"), [(False, 38, 160 * 2**20), (False, 3, 64 * 2**20), (True, 38, 1)]
)
def test_decoding_tasks_are_told_the_size(monkeypatch, is_slow, store, expected):
    """Of the nodes that Ray has; slow images, those of an evaluation, do not wait for others."""
    sizes = []
    node = {"Alive": True, "Labels": {}, "Resources": {"CPU": 16.0, "GPU": 1.0, "object_store_memory": store * 1e9}}
    monkeypatch.setattr("ray.nodes", lambda: [node])
    monkeypatch.setattr(module, "_spread", lambda source, steps, given, together, size: sizes.append(size))
    monkeypatch.setattr("ray.data.read_datasource", lambda *_, **__: None)
    module.plan(SimpleNamespace(is_slow=is_slow, batch_size=8), range(64), Resources(**GPUS))
    assert sizes == [expected]


def test_images_of_their_own_sizes_are_decoded_in_small_batches(monkeypatch):
    monkeypatch.setattr(module, "OWN_SIZES_ROWS", 2)
    (found,), _ = decoded_by({1: (0, 5)}, 4, own_sizes=True)
    assert [len(each) for each in found] == [2, 2, 1]


def test_a_parcel_is_written_together():
    written = []
    steps = SimpleNamespace(
        encode=lambda: lambda batch: {"key": batch["key"]},
        write=lambda: lambda batch: written.append(list(batch["key"])) or {"ok": np.array([len(batch["key"])])},
    )
    batches = [{"key": objects(["a", "b"]), "mask": np.zeros((2, 4, 4))}, {"key": objects(["c"])}]
    parcel = packed([batch | {module.WARNED: objects([""] * len(batch["key"]))} for batch in batches])
    assert module.encode_and_write(parcel, steps)["ok"].tolist() == [3]
    assert written == [["a", "b", "c"]]


@pytest.mark.parametrize(("num_cpus", "num_gpus"), [(0, 1), (0, 0.25), (2, 0)])
def test_workers_claim_what_was_decided_and_no_more(num_cpus, num_gpus):
    class Recorder:
        calls = []

        def map_batches(self, step, **settings):
            self.calls.append((step, settings))
            return self

    given = Resources(workers=1, num_cpus=num_cpus, num_gpus=num_gpus, threads=0)
    module._spread(Recorder(), SimpleNamespace(batch_size=8), given, 1, 64 * 2**20)
    settings = dict(Recorder.calls)[module.ExplainActor]
    assert settings["batch_size"] == 1  # Ray refuses a step that claims a GPU without a size
    assert settings["num_cpus"] == num_cpus  # said also where it is 0: by itself Ray Data claims one beside a GPU
    assert (settings["num_gpus"] or 0) == num_gpus


class WarningSteps:
    """Explain warns when it is made and at each call."""

    def explain(self):
        log = logging.getLogger("vbp.saliency")
        log.warning("convolutions are not fused: %s", "no engine")

        def step(batch):
            log.warning("no CUDA graph")
            return batch

        return step

    def encode(self):
        return lambda batch: batch

    def write(self):
        return lambda batch: {"ok": np.array([1, 1])} if len(batch["key"]) > 1 else {}


def test_a_workers_warnings_are_in_the_reports_once():
    log = logging.getLogger("vbp")
    before = [*log.handlers]
    try:
        steps = WarningSteps()
        actor = module.ExplainActor(steps)
        one, two = ({"key": np.array(keys, object)} for keys in (["a"], ["b", "c"]))
        reports = module.encode_and_write(actor(packed([one, two])), steps)
        assert list(reports["warned"]) == ["convolutions are not fused: no engine\nno CUDA graph"] * 2
        assert module.encode_and_write(actor(packed([one])), steps) == {}
    finally:
        log.handlers[:] = before
