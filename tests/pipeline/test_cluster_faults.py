"""What Ray does not give, and what it takes away: sentences, and results as if nothing had happened."""

import time

import psutil
import pyarrow.dataset as pads
import pytest

from vbp.errors import InterruptedRunError
from vbp.pipeline import Observer, RunConfig, plan, run


def config(photos, out, network_file, **changes):
    fields = {"input": str(photos), "output": str(out), "weights": network_file, "size": 32, "precision": "float32"}
    return RunConfig(**fields | {"runner": "ray", "workers": 1, "batch_size": 4, "shard_size": 4} | changes)


@pytest.fixture
def busy_cluster(ray_session):
    """Another job holds all but a tenth of a CPU."""
    import ray

    @ray.remote(num_cpus=3.9)
    class Hog:
        def here(self):
            return True

    hog = Hog.remote()
    assert ray.get(hog.here.remote())
    yield
    ray.kill(hog)
    while ray.available_resources().get("CPU", 0) < 4:
        time.sleep(0.1)


def test_workers_that_do_not_start_in_time_are_told_with_what_they_lack(
    busy_cluster, photos, network_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(plan, "START_SECONDS", 5)
    with pytest.raises(InterruptedRunError) as caught:
        run(config(photos, tmp_path / "out", network_file))
    message = str(caught.value)
    assert "did not all start within 5 s: 1 worker(s) claim 2 CPUs and 0 GPUs" in message
    assert "the cluster has 4 CPUs and 0 GPUs, of which 0.1 CPUs and 0 GPUs are free" in message
    assert "run the same command again" in message
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_a_run_in_which_nothing_moves_ends_with_a_sentence(busy_cluster, photos, network_file, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "START_SECONDS", -1)
    monkeypatch.setattr(plan, "IDLE_SECONDS", 5)
    with pytest.raises(InterruptedRunError, match=r"Nothing was finished for 5 s: 1 worker\(s\) claim .* again"):
        run(config(photos, tmp_path / "out", network_file))


def test_a_worker_that_is_killed_costs_nothing(photos, network_file, tmp_path, ray_session):
    run(config(photos, tmp_path / "calm", network_file, runner="local"))
    killed = []

    class Killer(Observer):
        def wrote(self, ok, error):
            for process in psutil.process_iter(["cmdline"]) if not killed else ():
                if "MapWorker(MapBatches(Chain))" in " ".join(process.info["cmdline"] or []) and _is_ours(process):
                    process.kill()
                    killed.append(process.pid)

    summary = run(config(photos, tmp_path / "out", network_file), Killer())
    assert len(killed) == 1
    assert (summary.ok, summary.error, summary.succeeded) == (22, 0, True)
    files = [
        {p.relative_to(o): p.read_bytes() for p in o.glob("masks/*/*")} for o in (tmp_path / "calm", tmp_path / "out")
    ]
    assert files[0] == files[1]
    keys = pads.dataset(tmp_path / "out" / "index").to_table(columns=["key"])["key"].to_pylist()
    assert len(keys) == len(set(keys)) == 22


def _is_ours(process):
    """Whether it belongs to this test's own Ray: its raylet is a child of this process."""
    me = psutil.Process()
    return any(parent.pid == me.pid for parent in process.parents())
