"""A cluster of several nodes on this machine, runs that lose some of them, and the proof that nothing is missing.

    python cluster/local/rehearsal.py [--images N]

A head that takes no work, two workers, and an S3 server, each node with an address of its own in 127.0.0.0/8. While
the first run is at work, a third worker joins and one of the others is killed; during the second run the head is
killed, and the same job is submitted to a new cluster.  Both results are compared with a run in one process, byte by
byte.  Every command is printed before it runs, so the output is also the list of what to type on hosts of your own.
Needs Linux, the packages of requirements.lock, 6 GB of memory, and some minutes.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from vbp.demo.scenes import write_tree
from vbp.storage.files import Folder

ROOT = Path(__file__).parents[2]
S3, GCS, JOBS = 8397, 6397, 8297
"""Ports of the S3 server, of the head, and of its job API."""
STORE = {"s3://": {"endpoint_url": f"http://127.0.0.1:{S3}"}}
BUCKET = Folder("s3://vbp", STORE)
FLAGS = (
    "--weights demo --size 224 --precision float32 --batch-size 4 --shard-size 16 "
    f'--storage-options \'{{"s3://": {{"endpoint_url": "http://127.0.0.1:{S3}"}}}}\''
)
SAME = ["key", "status", "width", "height", "sha256", "log10_max", "peak_x", "peak_y", "prediction"]
"""Columns of the index that do not say when, where and how fast."""
WITHIN = 900.0
"""Seconds for each thing that is waited for; all of it takes a few minutes where nothing else runs."""
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # the job's `python` is the head's
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # on hosts of your own: in ~/.ray/auth_token of each
    "RAY_USAGE_STATS_ENABLED": "0",
    "AWS_ACCESS_KEY_ID": "rehearsal",
    "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
    "AWS_REGION": "us-east-1",
    "OMP_NUM_THREADS": "1",
}

Nodes = dict[int, "subprocess.Popen[bytes]"]
"""The `ray start` of each node, by the last number of its address."""


def main() -> int:
    """Rehearse and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=600, help="how many to generate (default: %(default)s)")
    images = parser.parse_args().images
    os.environ.update(ENVIRONMENT)
    os.environ.pop("RAY_ADDRESS", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a stopped rehearsal leaves nothing behind either
    with tempfile.TemporaryDirectory(prefix="vbp-") as name, store(Path(name), images):
        finish(shell(f"vbp explain s3://vbp/photos s3://vbp/alone --runner local {FLAGS}"))
        with cluster(Path(name) / "a") as nodes:
            lose_a_worker(nodes, images, Path(name) / "a")
            first = same("first", images)
            lose_the_head(nodes, images)
        with cluster(Path(name) / "b"):
            finish(submit("again", "second"))
            second = same("second", images)
    return 0 if first and second else 1


@contextmanager
def store(folder: Path, images: int) -> Iterator[None]:
    """An S3 server with a bucket `vbp`, and generated scenes in it."""
    (folder / "s3").mkdir()
    ports = " ".join(f"-{name}.port={S3 + n}" for n, name in enumerate(("master", "volume", "filer", "admin"), 1))
    server = shell(
        f"weed mini -dir={folder}/s3 -ip=127.0.0.1 -ip.bind=127.0.0.1 -bucket=vbp -s3.port={S3} {ports} -webdav=false "
        "-master.telemetry=false -admin.ui=false -s3.port.iceberg=0 -s3.port.lance=0",
        folder / "s3.log",
    )
    try:
        until(answers, "the S3 server answers")
        write_tree(folder / "scenes", folder / "truth", images, seed=1, size=96)
        for path in sorted((folder / "scenes").rglob("*.png")):
            BUCKET.write(f"photos/{path.relative_to(folder / 'scenes')}", path.read_bytes())
        yield
    finally:
        kill(server)


def answers() -> bool:
    """Whether the bucket takes objects."""
    with suppress(Exception):  # whatever comes of asking a server that is not up yet
        BUCKET.write("ready", b"")
        return True
    return False


@contextmanager
def cluster(folder: Path) -> Iterator[Nodes]:
    """A head on 127.0.0.1, workers on 127.0.0.2 and 127.0.0.3; nothing of it is left at the end."""
    folder.mkdir()
    nodes: Nodes = {}
    try:
        for number in (1, 2, 3):
            join(nodes, number, folder)
        yield nodes
    finally:
        for process in nodes.values():
            kill(process)


def join(nodes: Nodes, number: int, folder: Path) -> None:
    """Start a node and wait until the head counts it; on a busy machine Ray may give up, and is asked again."""
    before = len(nodes)

    def joined() -> bool:
        if number not in nodes or nodes[number].poll() is not None:
            nodes[number] = start_node(number, folder)
        return alive() > before

    until(joined, f"127.0.0.{number} has joined")


def start_node(number: int, folder: Path) -> subprocess.Popen[bytes]:
    """A node, as on a host of its own; only here, on one machine, must its ports differ from those of the others."""
    if number == 1:
        role = f"--head --port={GCS} --num-cpus=0 --dashboard-host=127.0.0.1 --dashboard-port={JOBS}"
        here = f"--ray-client-server-port={JOBS + 1}"
    else:
        role = f"--address=127.0.0.1:{GCS} --num-cpus=1"
        here = ""
    # nodes that share a temporary folder take each other's working directories away
    here += f" --temp-dir={folder}/{number} --dashboard-agent-listen-port={52300 + number}"
    here += f" --min-worker-port={20000 + 1000 * number}"
    here += f" --max-worker-port={20999 + 1000 * number} --object-store-memory=100000000"
    return shell(f"ray start --block --node-ip-address=127.0.0.{number} {role} {here}", folder / f"node-{number}.log")


def lose_a_worker(nodes: Nodes, images: int, folder: Path) -> None:
    """While the job is at work a worker joins and another is killed: the newcomer takes its place."""
    job = submit("one", "first")
    until(lambda: BUCKET.list("first/_run/manifest") or over(job), "the job has counted its workers")
    join(nodes, 4, folder)
    until(lambda: masks("first") > images / 10 or over(job), "a tenth of the masks is written")
    say(f"kill -9 everything on 127.0.0.2, with {masks('first')} of {images} masks written")
    kill(nodes[2])
    until(lambda: holds_network(nodes[4]) or over(job), "the newcomer holds a network")
    finish(job)


def lose_the_head(nodes: Nodes, images: int) -> None:
    """With the head the job's driver is gone; what was committed is not."""
    job = submit("two", "second")
    until(lambda: masks("second") > images / 10 or over(job), "a tenth of the masks is written")
    say(f"kill -9 everything on the head, with {masks('second')} of {images} masks written")
    kill(nodes[1])
    kill(job)


def over(job: subprocess.Popen[bytes]) -> bool:
    """False while the job is at work.

    Raises:
        SystemExit: it has ended before anything was taken from it.
    """
    if job.poll() is not None:
        raise SystemExit(f"The job ended ({job.returncode}) before a node was lost; give it more --images.")
    return False


def submit(job: str, output: str) -> subprocess.Popen[bytes]:
    """Submit from the repository's root; the process shows the job's log and ends with it."""
    return shell(
        f"ray job submit --address http://127.0.0.1:{JOBS} --submission-id {job} "
        f"--runtime-env cluster/runtime_env.yaml "
        f"-- python -m jobs.explain s3://vbp/photos s3://vbp/{output} --workers 2 {FLAGS}"
    )


def finish(job: subprocess.Popen[bytes]) -> None:
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
    whole = equal and rows.num_rows == images and BUCKET.exists(f"{output}/_SUCCESS")
    say(
        f"# {output}: {len(found)} files, {rows.num_rows} rows, {'as' if whole else 'NOT as'} in the run of one process"
    )
    return whole


def files(folder: str) -> dict[str, bytes]:
    """Masks and overlays by path."""
    place = BUCKET.child(folder)
    return {path: place.read(path) for kind in ("masks", "overlays") for path in place.list(kind)}


def index(folder: str) -> pa.Table:
    """The rows of the index in the order of their keys."""
    parts = [pq.read_table(pa.BufferReader(BUCKET.read(path))) for path in BUCKET.list(f"{folder}/index")]
    return pa.concat_tables(parts).select(SAME).sort_by("key")


def masks(output: str) -> int:
    """How many masks are written."""
    return len(BUCKET.list(f"{output}/masks"))


def alive() -> int:
    """How many nodes the head counts."""
    from ray.util.state import list_nodes

    with suppress(Exception):  # the job API is up a moment after the head
        return len(list_nodes(f"http://127.0.0.1:{JOBS}", filters=[("state", "=", "ALIVE")]))
    return 0


def holds_network(node: subprocess.Popen[bytes]) -> bool:
    """Whether one of the workers of our job runs there."""
    with suppress(psutil.Error):  # processes come and go while they are looked at
        return any("MapWorker" in " ".join(one.cmdline()) for one in psutil.Process(node.pid).children(recursive=True))
    return False


def shell(command: str, log: Path | None = None) -> subprocess.Popen[bytes]:
    """Print a command and start it."""
    say(command)
    output = log.open("wb") if log else None
    return subprocess.Popen(shlex.split(command), cwd=ROOT, stdout=output, stderr=output)


def kill(process: subprocess.Popen[bytes]) -> None:
    """What a host does when it is switched off: the process and all that it started are gone at once."""
    with suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


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


def say(text: str) -> None:
    """A line of the protocol."""
    sys.stdout.write(f"{text}\n" if text.startswith("#") else f"$ {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
