"""The state of a run, read from its output alone."""

import json
import os
import socket
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from tests.review.conftest import FIRST, SECOND, Made
from vbp.cli import main
from vbp.errors import UsageError
from vbp.review.output import Output
from vbp.review.status import status
from vbp.review.validate import validate
from vbp.storage.files import Folder
from vbp.storage.ledger import pace
from vbp.storage.ledger.lease import LEASE, Lease


def seen(made):
    found = status(made.url)
    return found.state, found.images, found.ok, found.error, found.left


def test_a_finished_run(finished):
    assert seen(finished) == ("finished", 10, 10, 0, 0)
    found = status(finished.url)
    assert found.seconds_left is None
    assert found.holder is None
    assert [(attempt.run_id, attempt.ok, attempt.error) for attempt in found.attempts] == [(FIRST, 10, 0)]
    assert found.attempts[0].begun_at == datetime(2026, 11, 15, 11, 59, tzinfo=UTC)
    assert found.newest_row_at == datetime(2026, 11, 15, 12, 0, 8, tzinfo=UTC)


def test_a_run_that_gave_the_output_back_before_the_end(make):
    made = make()
    assert seen(made) == ("interrupted", 10, 0, 0, 10)
    made.commit([0, 1])
    made.commit([4], "error")
    assert seen(made) == ("interrupted", 10, 2, 1, 7)


def test_a_limit_and_rows_beyond_it(make):
    made = make(limit=3)
    assert seen(made) == ("interrupted", 3, 0, 0, 3)
    made.commit([0, 1, 2, 3])
    assert seen(made)[1:] == (3, 3, 0, 0)


def test_more_failures_than_allowed(make):
    made = make(2)
    made.commit([0])
    made.commit([1], "error")
    made.finish(success=False)
    assert seen(made) == ("failed", 2, 1, 1, 0)


def test_a_repaired_output_has_not_failed(finished):
    finished.folder.write("index/part-00000.parquet", b"broken")
    validate(Output.open(finished.url), repair=True)
    assert seen(finished) == ("interrupted", 10, 10, 0, 0)


@pytest.mark.parametrize("promised", [True, False])
def test_a_lost_list_of_images_is_no_success_and_no_failure(finished, promised):
    finished.folder.delete("_run/manifest.json")
    if not promised:
        finished.folder.delete("_SUCCESS")
    assert seen(finished)[0] == "interrupted"


def test_at_work_with_the_time_left(make):
    made = make(100)
    for shard in range(10):
        made.commit(range(4 * shard, 4 * shard + 4), seconds=2 * shard)
    lease = Lease(made.folder, FIRST)
    lease.acquire()
    try:
        found = status(made.url)
    finally:
        lease.release()
    assert (found.state, found.ok, found.left) == ("running", 40, 60)
    assert found.images_per_second == pytest.approx(2.0)
    assert found.seconds_left == pytest.approx(30.0)
    assert (found.holder.attempt, found.holder.pid) == (FIRST, os.getpid())
    assert found.silent_seconds < 30
    assert status(made.url).state == "interrupted"


def test_an_attempt_that_committed_nothing_is_there(make):
    made = make()
    made.commit([0, 1])
    made.begin(SECOND)
    attempts = [(attempt.run_id, attempt.ok, attempt.error) for attempt in status(made.url).attempts]
    assert attempts == [(FIRST, 2, 0), (SECOND, 0, 0)]


def test_retries_count_once_and_attempts_tell_what_each_did(make):
    made = make(8)
    made.commit([0, 1, 2], seconds=1)
    made.commit([3], "error", seconds=1)
    made.begin(SECOND)
    made.commit([3], "ok", seconds=900)
    made.commit([4, 5, 6, 7], seconds=902)
    assert seen(made) == ("interrupted", 8, 8, 0, 0)
    attempts = [(attempt.run_id, attempt.ok, attempt.error) for attempt in status(made.url).attempts]
    assert attempts == [(FIRST, 3, 1), (SECOND, 5, 0)]
    assert status(made.url).images_per_second == pytest.approx(2.0)  # the newest attempt's, not the pause before it


@pytest.mark.parametrize("sampled", [16, 64])
def test_the_rate_is_that_of_now_whatever_the_number_of_workers(make, monkeypatch, sampled):
    """Two workers, each on shards of its own: first 1 image a second together, then 4; read from a sample."""
    monkeypatch.setattr(pace, "SAMPLE", sampled)
    made = make(640)
    for shard in range(160):
        order = shard // 2
        made.commit(
            range(4 * shard, 4 * shard + 4), files=False, seconds=8 * order if order < 24 else 192 + 2 * (order - 24)
        )
    assert status(made.url).images_per_second == pytest.approx(4.0, rel=0.3)


def test_few_parts_are_read_however_many_there_are(make, monkeypatch):
    monkeypatch.setattr(pace, "SAMPLE", 16)
    made = make(400)
    for shard in range(100):
        made.commit(range(4 * shard, 4 * shard + 4), files=False, seconds=shard)
    read, original = [], Folder.read

    def counted(self, path):
        read.append(path)
        return original(self, path)

    monkeypatch.setattr(Folder, "read", counted)
    assert status(made.url).ok == 400
    assert sum(path.endswith(".parquet") for path in read) <= 17


def test_a_killed_process_on_this_machine_is_dead_at_once(make):
    made = make()
    lease = Lease(made.folder, FIRST, renew_every=1000)
    lease.acquire()
    holder = json.loads(made.folder.read(LEASE))
    made.folder.write(LEASE, json.dumps(holder | {"started": "tick 1"}).encode())
    assert status(made.url).state == "dead"


@pytest.mark.parametrize(("seconds", "state"), [(30, "running"), (90, "dead")])
def test_a_holder_elsewhere_is_dead_once_it_is_silent(make, seconds, state):
    made = make()
    renewed = datetime.now(UTC) - timedelta(seconds=seconds)
    holder = {"attempt": FIRST, "host": "else" + socket.gethostname(), "machine": "m", "pid": 1, "started": 0.0}
    made.folder.write(LEASE, json.dumps(holder | {"token": "t", "renewed_at": renewed.isoformat()}).encode())
    found = status(made.url)
    assert found.state == state
    assert found.silent_seconds == pytest.approx(seconds, abs=20)


def test_while_the_input_is_listed(tmp_path):
    folder = Folder(tmp_path / "out")
    folder.write("_run/run.json", b'{"run_id": null, "input": "/in"}')
    lease = Lease(folder, FIRST)
    lease.acquire()
    try:
        assert status(folder.url).state == "listing"
    finally:
        lease.release()
    assert status(folder.url).state == "interrupted"


def test_an_output_without_a_run(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        status(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["run.json", "manifest.json"])
def test_a_damaged_record(finished, name):
    finished.folder.write(f"_run/{name}", b"{" if name == "run.json" else b"{}")
    with pytest.raises(UsageError, match="damaged"):
        status(finished.url)


def test_on_a_real_store(s3_server):
    made = Made(Folder(s3_server.new_url(), s3_server.storage_options), ["a.jpg", "b.jpg"])
    made.commit([0])
    found = status(made.url, s3_server.storage_options)
    assert (found.state, found.images, found.ok) == ("interrupted", 2, 1)


def test_the_command(make):
    made = make()
    made.commit([0, 1, 2], seconds=0)
    made.commit([4, 5], seconds=4)
    result = CliRunner().invoke(main, ["status", made.url, "--watch"])
    assert result.exit_code == 0, result.output
    for text in ("interrupted", "5 of 10 (50.0 %): 5 ok, 0 failed", "left", FIRST, made.url, "0.5 images a second"):
        assert text in result.stdout
    told = json.loads(CliRunner().invoke(main, ["status", made.url, "--json"]).stdout)
    assert (told["state"], told["left"], told["attempts"][0]["ok"]) == ("interrupted", 5, 5)
    missing = CliRunner().invoke(main, ["status", "/nowhere"])
    assert (missing.exit_code, missing.stderr.count("\n")) == (2, 1)
