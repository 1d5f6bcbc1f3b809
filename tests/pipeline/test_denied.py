"""Reads that a store refuses: a few are error rows with their true cause, most of them stop the run, resumably."""

import functools

import pyarrow.dataset as pads
import pyarrow.fs
import pytest

from tests.faultproxy import Fault
from vbp.errors import InterruptedRunError
from vbp.pipeline import RunConfig, run
from vbp.pipeline.breaker import Breaker
from vbp.pipeline.observer import Observer
from vbp.storage.files import Folder


@pytest.fixture
def bucket(s3_server, photos, fault_proxy, monkeypatch):
    """A folder behind the proxy with the small image tree in ``photos/``; the breaker does not pause for long."""
    monkeypatch.setattr("vbp.pipeline.steps.Breaker", functools.partial(Breaker, pause_seconds=0.1))
    folder = Folder(s3_server.new_url(), fault_proxy.storage_options)
    for path in photos.rglob("*.*"):
        folder.write(f"photos/{path.relative_to(photos)}", path.read_bytes())
    return folder


def explain(bucket, network_file, observer=None):
    config = RunConfig(
        input=bucket.uri("photos"), output=bucket.uri("out"), weights=network_file, size=64, precision="float32",
        batch_size=16, runner="local", outputs=("mask",), storage_options=bucket._options, max_failures="50%",
    )  # fmt: skip
    return run(config, observer)


class FaultsAfterPreflight(Observer):
    def __init__(self, proxy, *faults):
        self.proxy, self.faults = proxy, faults

    def started(self, images, done):
        self.proxy.faults = list(self.faults)


def rows(bucket, s3_server):
    store = pyarrow.fs.S3FileSystem(endpoint_override=s3_server.endpoint)
    return pads.dataset(bucket.uri("out/index").removeprefix("s3://"), filesystem=store).to_table().to_pylist()


def test_a_forbidden_folder_becomes_error_rows(bucket, network_file, fault_proxy, s3_server):
    deny = FaultsAfterPreflight(fault_proxy, Fault("denied", methods="GET", path="/photos/cat/"))
    summary = explain(bucket, network_file, deny)
    assert (summary.ok, summary.error, dict(summary.reasons)) == (15, 7, {"fetch: PermissionError": 7})
    failed = [row for row in rows(bucket, s3_server) if row["status"] == "error"]
    assert {row["key"].split("/")[0] for row in failed} == {"cat"}
    assert all("AccessDenied 403" in row["error_message"] for row in failed)
    fault_proxy.faults = []
    again = explain(bucket, network_file)  # what could not be fetched is tried by every run
    assert (again.ok, again.error, again.computed) == (22, 0, 7)


def test_when_all_is_forbidden_the_run_stops_and_can_go_on(bucket, network_file, fault_proxy):
    deny = FaultsAfterPreflight(fault_proxy, Fault("expired", methods="GET", path="/photos/"))
    with pytest.raises(InterruptedRunError, match="PermissionError: .*expired.*run the same command again"):
        explain(bucket, network_file, deny)
    assert bucket.list("out/_run/parts") == []
    assert not bucket.exists("out/_SUCCESS")
    fault_proxy.faults = []
    again = explain(bucket, network_file)
    assert (again.ok, again.error) == (22, 0)


def test_a_shaky_store_changes_nothing(bucket, network_file, fault_proxy):
    shaky = [
        Fault("slowdown", 0.05), Fault("reset", 0.02), Fault("lost", 0.02, methods="PUT"),
        Fault("truncated", 0.02, methods="GET LIST"), Fault("failed", 0.02),
    ]  # fmt: skip
    summary = explain(bucket, network_file, FaultsAfterPreflight(fault_proxy, *shaky))
    assert (summary.ok, summary.error) == (22, 0)
    assert sum(fault_proxy.counts[fault.kind] for fault in shaky) > 0
