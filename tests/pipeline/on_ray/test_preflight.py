"""The preflight also runs on workers and nodes, before any work."""

import threading

import pytest
import ray

from tests.faultproxy import Fault
from vbp.errors import UsageError
from vbp.pipeline import RunConfig
from vbp.pipeline.on_ray import preflight as module
from vbp.pipeline.on_ray.preflight import preflight_on_a_worker, preflight_on_all_nodes, unseen


def test_a_worker_is_asked(ray_session, places, fault_proxy):
    preflight_on_a_worker(*places)
    fault_proxy.faults = [Fault("expired")]
    with pytest.raises(UsageError, match="^INPUT .*from a Ray worker.*expired") as caught:
        preflight_on_a_worker(*places)
    assert "Traceback" not in str(caught.value)


def test_what_is_there_is_seen_and_what_comes_late_too(tmp_path):
    late = tmp_path / "late"
    threading.Timer(0.3, late.touch).start()
    places = {"INPUT": ("in", str(tmp_path)), "OUTPUT": ("out", str(late))}
    assert unseen(places, 30) == []
    assert unseen(places | {"--weights": ("w", str(tmp_path / "nothing"))}, 0) == ["--weights"]


@pytest.fixture
def on_another_node(ray_session, monkeypatch):
    """The tests have one machine: its own workers stand for those of another node."""
    node = ray.get_runtime_context().get_node_id()
    assert module._other_nodes() == {}
    monkeypatch.setattr(module, "_other_nodes", lambda: {node: "10.0.0.2"})
    monkeypatch.setattr(module, "LOOK_SECONDS", 0)


def test_folders_that_all_nodes_share_are_fine(on_another_node, photos, network_file, tmp_path):
    preflight_on_all_nodes(RunConfig(input=str(photos), output=str(tmp_path / "out"), weights=network_file))
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["INPUT", "OUTPUT", "--weights"])
def test_a_folder_of_one_machine_is_refused(on_another_node, photos, tmp_path, monkeypatch, name):
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path)  # where the workers are not, so that they see another folder of that name
    places = {"INPUT": str(photos), "OUTPUT": str(tmp_path / "out"), "--weights": "random"}
    places[name] = "/proc/self/cwd/x"
    config = RunConfig(input=places["INPUT"], output=places["OUTPUT"], weights=places["--weights"])
    with pytest.raises(UsageError) as caught:
        preflight_on_all_nodes(config)
    assert str(caught.value) == (
        f"{name} (=/proc/self/cwd/x) is of one machine, and node 10.0.0.2 does not see what is there: "
        "use a bucket, or a file system that all nodes share under the same path."
    )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
