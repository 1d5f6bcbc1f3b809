"""A cluster of several hosts on this machine, runs that lose some of them, and the proof that nothing is missing.

    python cluster/local/rehearsal.py [--short] [--images N]

A head that takes no work, workers of different sizes, and an S3 server beside them (what a host is here stands in
`hosts.py`).  The first job is submitted on the command line; while it is at work a worker joins, and another is
switched off.  The second is submitted by Ray's SDK; one of its workers is cut off from the network, taken for dead,
and comes back.  In the third the head is switched off, and the same job is submitted to a new cluster.  All results
are compared with a run in one process, byte by byte.  ``--short`` is the first job alone, with two workers, one of
which is switched off.  Every command is printed before it runs, so the output is also the list of what to type on
hosts of your own.  Needs Linux, the packages of requirements.lock, 6 GB of memory, and some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hosts import KIND, ROOT, Host, beside, enclose, make_host, say

from vbp.demo.scenes import write_tree
from vbp.storage.files import Folder

SAME = ["key", "status", "width", "height", "sha256", "log10_max", "peak_x", "peak_y", "prediction"]
"""Columns of the index that do not say when, where and how fast."""
WITHIN = 900.0
"""Seconds for each thing that is waited for; all of it takes a few minutes where nothing else runs."""
STARTS = 3
"""On a busy machine Ray may give a start up, and is asked again."""
S3 = 8397
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # the job's `python` is the head's
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "AWS_ACCESS_KEY_ID": "rehearsal",
    "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
    "AWS_REGION": "us-east-1",
    "OMP_NUM_THREADS": "1",
}

WORKER = "MapWorker"
"""In the title of each process that holds a network."""

Hosts = dict[str, Host]
"""By name: `head`, `worker1` and so on."""
Job = subprocess.Popen[bytes]


def main() -> int:
    """Rehearse and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="one job that loses a worker")
    parser.add_argument("--images", type=int, help="how many to generate (default: 160, or 48 for the short form)")
    asked = parser.parse_args()
    images = asked.images or (48 if asked.short else 160)
    enclose()
    os.environ.update(ENVIRONMENT)
    os.environ.pop("RAY_ADDRESS", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a stopped rehearsal leaves nothing behind either
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vbp-") as name, store(Path(name), images):
        equal = (short if asked.short else long)(Path(name), images)
    say(f"# {time.monotonic() - started:.0f} s on hosts that are {os.environ[KIND]}")
    return 0 if equal else 1


def long(folder: Path, images: int) -> bool:
    """Three jobs, of which each loses something; whether all results are whole."""
    alone = explain_alone()
    with cluster(folder / "a", [2, 1]) as hosts:
        finish(alone)
        first = lose_a_worker(hosts, images, folder / "a")
        second = cut_a_worker_off(hosts, images)
        lose_the_head(hosts, images)
    with cluster(folder / "b", [1, 1]) as hosts:
        finish(submit(hosts, "again", "third"))
    return all([first, second, same("third", images)])


def short(folder: Path, images: int) -> bool:
    """One job that loses one of two workers; whether its result is whole."""
    alone = explain_alone()
    with cluster(folder / "a", [1, 1]) as hosts:
        finish(alone)
        job = submit(hosts, "one", "first")
        until_a_tenth_is_done(job, "first", images)
        busiest = max(hosts, key=lambda name: hosts[name].running(WORKER))
        switch_off(hosts, busiest, "first", images)
        finish(job)
    return same("first", images)


def lose_a_worker(hosts: Hosts, images: int, folder: Path) -> bool:
    """While the job is at work a worker joins and another is switched off: the newcomer takes its place."""
    job = submit(hosts, "one", "first")
    until(lambda: bucket().list("first/_run/manifest") or over(job), "the job has counted its workers")
    join(hosts, "worker3", 1, folder)
    until_a_tenth_is_done(job, "first", images)
    switch_off(hosts, "worker1", "first", images)
    until(lambda: hosts["worker3"].running(WORKER) or over(job), "the newcomer holds a network")
    finish(job)
    return same("first", images)


def cut_a_worker_off(hosts: Hosts, images: int) -> bool:
    """The job goes on without it; when it is back it finds itself replaced, and does no harm."""
    job = submit(hosts, "two", "second", by="python cluster/local/submit.py")
    until_a_tenth_is_done(job, "second", images)
    lost, other = hosts["worker2"], hosts["worker3"]
    workers = lost.running(WORKER) + other.running(WORKER)
    say(f"# worker2 is cut off, with {masks('second')} of {images} masks written; workers: {at_work(hosts)}")
    lost.cut()
    until(lambda: other.running(WORKER) == workers or over(job), "worker3 has taken over what worker2 had")
    say(f"# worker2 is back on the network, with {masks('second')} of {images} masks written")
    lost.heal()
    until(lambda: not lost.running("raylet/raylet"), "Ray on worker2 has found that it was given up, and ended")
    finish(job)
    return same("second", images)


def lose_the_head(hosts: Hosts, images: int) -> None:
    """With the head the job's driver is gone; what was committed is not."""
    job = submit(hosts, "three", "third")
    until_a_tenth_is_done(job, "third", images)
    switch_off(hosts, "head", "third", images)
    job.kill()
    job.wait()


def until_a_tenth_is_done(job: Job, output: str, images: int) -> None:
    """Wait for the moment when all workers are at work."""
    until(lambda: masks(output) > images / 10 or over(job), "a tenth of the masks is written")


def switch_off(hosts: Hosts, name: str, output: str, images: int) -> None:
    """Switch a host off, and say what is lost."""
    say(f"# {name} is switched off, with {masks(output)} of {images} masks written; workers: {at_work(hosts)}")
    hosts[name].off()


def at_work(hosts: Hosts) -> str:
    """How many workers of our job each host has."""
    return ", ".join(f"{host.name} {host.running(WORKER)}" for host in hosts.values())


@contextmanager
def store(folder: Path, images: int) -> Iterator[None]:
    """An S3 server with a bucket `vbp`, and generated scenes in it."""
    (folder / "s3").mkdir()
    ports = " ".join(f"-{name}.port={S3 + n}" for n, name in enumerate(("master", "volume", "filer", "admin"), 1))
    server = shell(
        f"weed mini -dir={folder}/s3 -ip={beside()} -ip.bind={beside()} -bucket=vbp -s3.port={S3} {ports} "
        "-webdav=false -master.telemetry=false -admin.ui=false -s3.port.iceberg=0 -s3.port.lance=0",
        folder / "s3.log",
    )
    try:
        until(answers, "the S3 server answers")
        write_tree(folder / "scenes", folder / "truth", images, seed=1, size=96)
        for path in sorted((folder / "scenes").rglob("*.png")):
            bucket().write(f"photos/{path.relative_to(folder / 'scenes')}", path.read_bytes())
        yield
    finally:
        server.kill()
        server.wait()


@cache
def bucket() -> Folder:
    """The bucket `vbp`, seen from beside the hosts."""
    return Folder("s3://vbp", {"s3://": {"endpoint_url": f"http://{beside()}:{S3}"}})


def flags() -> str:
    """The job's options: small shards, so that every worker soon has something to lose."""
    endpoint = json.dumps({"s3://": {"endpoint_url": f"http://{beside()}:{S3}"}})
    return f"--weights demo --size 448 --precision float32 --batch-size 4 --shard-size 4 --storage-options '{endpoint}'"


def answers() -> bool:
    """Whether the bucket takes objects."""
    with suppress(Exception):  # whatever comes of asking a server that is not up yet
        bucket().write("ready", b"")
        return True
    return False


@contextmanager
def cluster(folder: Path, cpus: Sequence[int]) -> Iterator[Hosts]:
    """A head that takes no work, and a worker for each of `cpus`; nothing of them is left at the end."""
    folder.mkdir()
    hosts: Hosts = {}
    try:
        for number, count in enumerate([0, *cpus]):
            join(hosts, f"worker{number}" if number else "head", count, folder)
        yield hosts
    finally:
        for host in hosts.values():
            host.off()


def join(hosts: Hosts, name: str, cpus: int, folder: Path) -> None:
    """Switch a host on and start Ray there.

    Raises:
        SystemExit: Ray does not start.
    """
    log = folder / f"{name}.log"
    for attempt in range(STARTS):
        hosts[name] = host = make_host(name, len(hosts) + 1 - (name in hosts), folder / str(attempt))
        if host.run(start(hosts, cpus, host), log).wait() == 0:
            return
        host.off()
    raise SystemExit(f"Ray does not start on {name}:\n{log.read_text()}")


def start(hosts: Hosts, cpus: int, host: Host) -> str:
    """The command that starts Ray on a host; only here, where all share a machine, must it be told its size."""
    head = hosts["head"]
    token = Path(".ray", "auth_token")
    if host is head:
        host.run("ray get-auth-token --generate", host.home / "token").wait()
        role = f"--head --port={host.port} --num-cpus=0 --dashboard-host=127.0.0.1"
    else:
        say(f"# the head's ~/{token} is copied to {host.name}")
        shutil.copy(head.home / token, host.home / token)
        role = f"--address={head.address}:{head.port} --num-cpus={cpus}"
    return f"ray start {role} --object-store-memory=100000000 {host.options}".strip()


def submit(hosts: Hosts, job: str, output: str, by: str = "ray job submit") -> Job:
    """Submit on the head; the process shows the job's log and ends with it."""
    head = hosts["head"]
    return head.run(
        f"{by} --address http://127.0.0.1:{head.jobs_port} --submission-id {job} "
        f"--runtime-env cluster/runtime_env.yaml -- python -m jobs.explain s3://vbp/photos s3://vbp/{output} {flags()}"
    )


def explain_alone() -> Job:
    """The same in one process, without any host: what all results must be equal to."""
    return shell(f"vbp explain s3://vbp/photos s3://vbp/alone --runner local {flags()}")


def over(job: Job) -> bool:
    """False while the job is at work.

    Raises:
        SystemExit: it has ended before anything was taken from it.
    """
    if job.poll() is not None:
        raise SystemExit(f"The job ended ({job.returncode}) before a node was lost; give it more --images.")
    return False


def finish(job: Job) -> None:
    """Wait for a run to succeed.

    Raises:
        SystemExit: it did not.
    """
    if job.wait(WITHIN) != 0:
        raise SystemExit("The run failed; its log stands above.")


def same(output: str, images: int) -> bool:
    """Whether the output holds the files and rows of the undisturbed run, and says so."""
    found, wanted = (files(folder) for folder in (output, "alone"))
    rows, expected = (index(folder) for folder in (output, "alone"))
    equal = found == wanted and rows.equals(expected)
    whole = equal and rows.num_rows == images and bucket().exists(f"{output}/_SUCCESS")
    say(
        f"# {output}: {len(found)} files, {rows.num_rows} rows, {'as' if whole else 'NOT as'} in the run of one process"
    )
    return whole


def files(folder: str) -> dict[str, bytes]:
    """Masks and overlays by path."""
    place = bucket().child(folder)
    return {path: place.read(path) for kind in ("masks", "overlays") for path in place.list(kind)}


def index(folder: str) -> pa.Table:
    """The rows of the index in the order of their keys."""
    parts = [pq.read_table(pa.BufferReader(bucket().read(path))) for path in bucket().list(f"{folder}/index")]
    return pa.concat_tables(parts).select(SAME).sort_by("key")


def masks(output: str) -> int:
    """How many masks are written."""
    return len(bucket().list(f"{output}/masks"))


def shell(command: str, log: Path | None = None) -> Job:
    """Print a command and start it beside the hosts."""
    say(f"$ {command}")
    output = log.open("wb") if log else None
    return subprocess.Popen(shlex.split(command), cwd=ROOT, stdout=output, stderr=output)


def until(holds: Callable[[], object], what: str) -> None:
    """Wait for something, and say when it is so.

    Raises:
        SystemExit: it was not so in time.
    """
    start = time.monotonic()
    while not holds():
        if time.monotonic() - start > WITHIN:
            raise SystemExit(f"After {WITHIN:.0f} s it is still not so that {what}.")
        time.sleep(0.2)
    say(f"# {what} ({time.monotonic() - start:.0f} s)")


if __name__ == "__main__":
    sys.exit(main())
