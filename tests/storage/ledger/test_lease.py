import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from vbp.errors import LeaseLostError
from vbp.storage.files import Folder
from vbp.storage.ledger.lease import LEASE, Lease, check

QUICK = {"renew_every": 0.1, "take_over_after": 1.5, "poll_every": 0.1}
HOLDER = """
import sys, time
from vbp.storage.files import Folder
from vbp.storage.ledger.lease import Lease
lease = Lease(Folder(sys.argv[1]), "other", renew_every=0.1, take_over_after=1.5, poll_every=0.1)
lease.acquire()
print("held", flush=True)
while not lease.lost:
    time.sleep(0.02)
print("lost", flush=True)
"""


def lease(folder, attempt, **changes):
    return Lease(folder, attempt, **{**QUICK, **changes})


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lease of `tmp_path`."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def rewrite(folder, **changes):
    """Change what the lease says of its holder."""
    folder.write(LEASE, json.dumps({**json.loads(folder.read(LEASE)), **changes}).encode())


def test_held_renewed_released(folder):
    mine = lease(folder, "one")
    mine.acquire()
    check(folder, "one")
    with pytest.raises(LeaseLostError, match="attempt two lost .*attempt one on .* has it now"):
        check(folder, "two")
    before = folder.read(LEASE)
    time.sleep(0.5)
    assert folder.read(LEASE) != before
    assert {"host", "pid", "started", "attempt", "renewed_at"} <= set(json.loads(before))
    assert not mine.lost
    mine.release()
    assert folder.list() == [LEASE] * (not folder.is_local)
    with pytest.raises(LeaseLostError, match="nobody"):
        check(folder, "one")


def test_what_was_given_back_is_taken_at_once(folder):
    for name in ("one", "two"):
        mine, waits = lease(folder, name), []
        mine.acquire(lambda *wait, waits=waits: waits.append(wait))
        check(folder, name)
        mine.release()
        assert not waits


def test_the_next_waits_for_the_release(folder):
    first, second, waits = lease(folder, "one"), lease(folder, "two"), []
    first.acquire()
    threading.Timer(2.2, first.release).start()  # longer than take_over_after: renewing keeps it
    begin = time.monotonic()
    second.acquire(lambda holder, seconds: waits.append((holder.attempt, seconds)))
    assert time.monotonic() - begin > 2.1
    assert not first.lost
    assert {attempt for attempt, _ in waits} == {"one"}
    assert all(0 < seconds <= 1.5 for _, seconds in waits)
    check(folder, "two")
    second.release()


def test_two_at_once(folder):
    leases = [lease(folder, str(n)) for n in range(6)]
    held, most = [], []

    def work(mine):
        mine.acquire()
        held.append(mine)
        most.append(len(held))
        time.sleep(0.05)
        held.remove(mine)
        mine.release()

    threads = [threading.Thread(target=work, args=(mine,)) for mine in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6


def test_a_killed_process_is_succeeded_at_once(tmp_path, other):
    other.send_signal(signal.SIGKILL)  # and not waited for: a zombie is dead, too
    time.sleep(0.2)
    mine = lease(Folder(tmp_path), "mine", take_over_after=1000.0)
    begin = time.monotonic()
    mine.acquire()
    assert time.monotonic() - begin < 2
    mine.release()


def test_a_stopped_process_is_succeeded_and_sees_it(tmp_path, other):
    folder, waits = Folder(tmp_path), []
    other.send_signal(signal.SIGSTOP)
    mine = lease(folder, "mine")
    begin = time.monotonic()
    mine.acquire(lambda holder, seconds: waits.append(str(holder)))
    assert 1.4 < time.monotonic() - begin < 5
    assert f"process {other.pid}" in waits[0]
    other.send_signal(signal.SIGCONT)
    assert other.stdout.readline() == "lost\n"
    time.sleep(0.3)
    assert not mine.lost
    check(folder, "mine")
    mine.release()


def test_a_used_again_process_id_is_another_process(tmp_path):
    folder = Folder(tmp_path)
    gone = lease(folder, "gone", renew_every=1000.0)
    gone.acquire()
    rewrite(folder, started="tick 1")
    mine = lease(folder, "mine", take_over_after=1000.0)
    begin = time.monotonic()
    mine.acquire()
    assert time.monotonic() - begin < 2
    mine.release()


class Enough(Exception):
    """Waited long enough."""


@pytest.mark.parametrize("seconds", [10, -10, 3600])
def test_a_clock_that_is_set_succeeds_nobody(tmp_path, other, monkeypatch, seconds):
    """Neither what tells processes apart nor silence is measured by it. psutil adds the machine's start to ticks."""
    now, boot, waits = time.time, psutil._pslinux.boot_time, []
    monkeypatch.setattr(time, "time", lambda: now() + seconds)
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot() + seconds)

    def waiting(holder, left):
        waits.append(holder.attempt)
        if len(waits) == 5:
            raise Enough

    with pytest.raises(Enough):
        lease(Folder(tmp_path), "mine").acquire(waiting)
    assert set(waits) == {"other"}
    check(Folder(tmp_path), "other")


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"machine": "another container"}])
def test_of_another_machine_only_silence_counts(tmp_path, changes):
    folder = Folder(tmp_path)
    gone = lease(folder, "gone", renew_every=1000.0)
    gone.acquire()
    rewrite(folder, pid=2**22 + 1, renewed_at="1970-01-01T00:00:00+00:00", **changes)
    begin = time.monotonic()
    mine = lease(folder, "mine")
    mine.acquire()
    assert time.monotonic() - begin > 1.4
    mine.release()


def test_a_damaged_lease_runs_out(folder):
    folder.write(LEASE, b"{")
    waits = []
    mine = lease(folder, "mine")
    mine.acquire(lambda holder, seconds: waits.append(holder))
    assert set(waits) == {None}
    mine.release()


def test_release_leaves_anothers_lease(folder):
    first = lease(folder, "one", renew_every=1000.0)
    first.acquire()
    rewrite(folder, token="another", attempt="two")
    first.release()
    check(folder, "two")


def test_a_store_that_does_not_answer_loses_nothing(tmp_path):
    folder = Folder(tmp_path)
    mine = lease(folder, "mine")
    mine.acquire()
    os.rename(tmp_path / "_run", tmp_path / "away")
    (tmp_path / "_run").write_bytes(b"")  # every operation fails now
    time.sleep(0.4)
    (tmp_path / "_run").unlink()
    os.rename(tmp_path / "away", tmp_path / "_run")
    time.sleep(0.3)
    assert not mine.lost
    mine.release()
