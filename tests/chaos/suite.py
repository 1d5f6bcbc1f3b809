"""Runs that are disturbed and killed again and again until they are done, and an audit of their outputs."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.chaos.hostile import hostile
from tests.faultproxy import Fault, FaultProxy
from tests.servers import S3Server
from vbp.pipeline import Observer, RunConfig, run
from vbp.review.output import Output
from vbp.review.validate import validate
from vbp.storage.files import Folder
from vbp.storage.ledger import compaction
from vbp.storage.ledger.holder import holder
from vbp.storage.ledger.lease import TAKE_OVER_AFTER
from vbp.storage.record import SUCCESS, is_complete

IMAGES, SHARD = 48, 8
RATES = {"slowdown": 0.05, "reset": 0.02, "lost": 0.02, "truncated": 0.01}
SHARES = (10, 25, 50, 75, 90, 100)
ATTEMPTS = 15
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.chaos.suite", "vbp.pipeline.job", "vbp.explainer", "s3fs"])


def photos(seed: int, count: int) -> dict[str, bytes]:
    """Small noisy JPEGs and PNGs of 32 to 64 pixels, by path."""
    rng = random.Random(seed)
    files = {}
    for number in range(count):
        width, height = rng.randint(32, 64), rng.randint(32, 64)
        coarse = Image.frombytes("RGB", (6, 6), rng.randbytes(108)).resize((width, height), Image.Resampling.BICUBIC)
        stream, kind = io.BytesIO(), ("JPEG", "PNG")[number % 2]
        coarse.save(stream, kind)
        files[f"class{number % 3}/{number:04d}.{kind.lower()}"] = stream.getvalue()
    return files


def config(source: str, output: str, options: dict[str, Any], **changes: Any) -> RunConfig:
    fields = {"size": 32, "weights": "demo", "precision": "float32", "batch_size": 4, "shard_size": SHARD}
    fields |= {"runner": "local", "workers": 2 if changes.get("runner") == "ray" else None}
    return RunConfig(input=source, output=output, storage_options=options, **fields | changes)


def attempt(made: RunConfig, log: str | None, fatal: int | None) -> None:
    """One process: the main job; `log` gets a line for every image decoded; it dies soon after `fatal` images."""
    import torch

    from vbp.pipeline.steps import Decode

    torch.set_num_threads(1)
    compaction.ROWS_A_FILE = 2 * SHARD  # so that the index has several files, made by tasks where the run has Ray
    decode = Decode.run

    def logged(self, batch):
        with open(log, "a") as lines:
            lines.writelines(f"{json.dumps(key)}\n" for key in batch["key"])
        return decode(self, batch)

    if log is not None:
        Decode.run = logged

    class Progress(Observer):
        done = 0

        def wrote(self, ok: int, error: int) -> None:
            self.done += ok + error
            if fatal is not None and self.done >= fatal:
                threading.Timer(random.uniform(0, 0.2), os.kill, (os.getpid(), signal.SIGKILL)).start()

    run(made, Progress())


@contextmanager
def started(made: RunConfig, log: str | None = None, fatal: int | None = None) -> Iterator[Any]:
    process = _PROCESSES.Process(target=attempt, args=(made, log, fatal))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def workers_of(process: Any) -> list[psutil.Process]:
    """Ray's processes that hold the network."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "Chain" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@dataclass
class Outcome:
    """What came of one seed; all but the first four should be 0."""

    seed: int
    runner: str
    kills: Counter[str]
    faults: Counter[str]
    starts: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    """Files of which a byte differs from the undisturbed run's, and rows that do not say ok."""
    files_without_row: int = 0
    rows_without_file: int = 0
    finished: bool = False

    @property
    def clean(self) -> bool:
        counts = (self.lost, self.doubled, self.wrong, self.files_without_row, self.rows_without_file)
        return self.finished and not any(counts)


def judged(outcome: Outcome, output: Folder, wanted: dict[str, bytes], keys: set[str]) -> Outcome:
    """Hold what lies in `output` against the files of an undisturbed run; shares no code with the job's own checks."""
    tables = [pq.read_table(io.BytesIO(output.read(path))) for path in output.list("index")]
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    found = {path: output.read(path) for folder in ("masks", "overlays") for path in output.list(folder)}
    named = {f"{folder}/{row[f'{kind}_uri'].split(f'/{folder}/', 1)[1]}" for row in rows
             for kind, folder in (("mask", "masks"), ("overlay", "overlays")) if row[f"{kind}_uri"]}  # fmt: skip
    outcome.lost = len(keys - {row["key"] for row in rows})
    outcome.doubled = len(rows) - len({row["key"] for row in rows})
    outcome.wrong = sum(found[path] != wanted.get(path) for path in found) + sum(row["status"] != "ok" for row in rows)
    outcome.files_without_row = len(found.keys() - named)
    outcome.rows_without_file = len(named - found.keys())
    outcome.finished = output.exists("_SUCCESS")
    return outcome


@lru_cache
def undisturbed(images: int) -> dict[str, bytes]:
    """Masks and overlays of a run on this disk that nothing happens to."""
    with tempfile.TemporaryDirectory(prefix="vbp-chaos-") as folder:
        source, output = Folder(f"{folder}/photos"), Folder(f"{folder}/out")
        for path, data in photos(0, images).items():
            source.write(path, data)
        with started(config(source.url, output.url, {})) as process:
            process.join()
        return {path: output.read(path) for kind in ("masks", "overlays") for path in output.list(kind)}


def chaos(seed: int, server: S3Server, runner: str = "local", images: int = IMAGES) -> Outcome:
    """One seed: the job on S3 behind the proxy, killed at random moments, the same command until it is done."""
    rng, files, wanted = random.Random(seed), photos(0, images), undisturbed(images)
    direct = Folder(server.new_url(), server.storage_options)
    for path, data in files.items():
        direct.write(f"photos/{path}", data)
    outcome = Outcome(seed, runner, Counter(), Counter())
    proxy = FaultProxy(server.endpoint, seed)
    proxy.faults = [Fault(kind, rate) for kind, rate in RATES.items()]
    proxy.start()
    try:
        made = config(direct.uri("photos"), direct.uri("out"), proxy.storage_options, runner=runner)
        kills = rng.randint(2, 4)
        while outcome.starts < ATTEMPTS and not direct.exists("out/_SUCCESS"):
            outcome.starts += 1
            with started(made) as process:
                if sum(outcome.kills.values()) < kills:
                    _kill_some(process, rng, proxy, images, runner, outcome.kills)
                process.join(600)
    finally:
        proxy.stop()
    outcome.faults = Counter({kind: proxy.counts[kind] for kind in RATES})
    return judged(outcome, direct.child("out"), wanted, set(files))


def _kill_some(
    process: Any, rng: random.Random, proxy: FaultProxy, images: int, runner: str, kills: Counter[str]
) -> None:
    """Kill -9 of the driver or, with Ray, of one of its workers, after a random number of requests.

    A whole run makes more than three requests an image: one to read it, two to write its files.
    """
    whom = rng.choice(["driver", "worker"]) if runner == "ray" else "driver"
    fatal = _requests(proxy) + rng.randint(1, 3 * images)
    while process.is_alive() and _requests(proxy) < fatal:
        time.sleep(0.005)
    if not process.is_alive():
        return
    if whom == "worker" and (workers := workers_of(process)):
        rng.choice(workers).kill()
        kills["worker"] += 1
    elif whom == "driver":
        process.kill()
        kills["driver"] += 1


def _requests(proxy: FaultProxy) -> int:
    return sum(proxy.counts[method] for method in ("GET", "HEAD", "PUT", "POST", "DELETE", "LIST"))


SILENCE = "2"
"""Seconds after which a frozen run is succeeded here; 60 otherwise."""


@dataclass
class Freeze:
    """What came of one seed of runs that freeze; all but the first five should be 0 and True."""

    seed: int
    place: str
    starts: int = 0
    frozen: int = 0
    killed: int = 0
    losers_that_ended_well: int = 0
    """Frozen runs that were succeeded, and said nothing of it."""
    findings: int = 0
    """Of ``vbp validate --deep``."""
    outcome: Outcome | None = None
    """The audit, which shares no code with that."""

    @property
    def clean(self) -> bool:
        return bool(self.outcome and self.outcome.clean) and not (self.findings or self.losers_that_ended_well)


def succeeded_in_silence(made: RunConfig) -> None:
    """One process: the main job, in which silence is short."""
    os.environ[TAKE_OVER_AFTER] = SILENCE
    attempt(made, None, None)


def freezes(seed: int, folder: Folder, images: int = IMAGES) -> Freeze:
    """One seed: a run stops after a random number of files, another takes over; the first goes on at any time.

    Either is killed now and then. The third and every odd seed begin with runs of another preset, over which the
    wanted one starts over.
    """
    rng, files, wanted = random.Random(seed), photos(0, images), undisturbed(images)
    for path, data in files.items():
        folder.write(f"photos/{path}", data)
    output, seen = folder.child("out"), Freeze(seed, "disk" if folder.is_local else "S3")
    made = config(folder.uri("photos"), folder.uri("out"), folder.options)
    other = replace(made, preset="reference", fit="stretch")
    first, over = (other, True) if seed % 2 else (made, False)
    while seen.starts < ATTEMPTS and not (seen.starts > 1 and is_complete(output)):
        seen.starts += 1
        second = replace(made, resume_mode="overwrite") if over else made
        one = _PROCESSES.Process(target=succeeded_in_silence, args=(first,))
        one.start()
        _stop_after(one, output, rng.randint(1, 2 * images + 12))
        had = _holder(output) == one.pid
        seen.frozen += 1
        two = _PROCESSES.Process(target=succeeded_in_silence, args=(second,))
        two.start()
        if rng.random() < 0.5:
            two.join(300)
        else:
            time.sleep(rng.uniform(float(SILENCE), 2 * float(SILENCE)))
        if rng.random() < 0.2 and two.is_alive():
            two.kill()
            seen.killed += 1
        lost = had and _holder(output) not in (None, one.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGCONT)
        one.join(300)
        two.join(300)
        seen.losers_that_ended_well += lost and one.exitcode == 0
        over = over and two.exitcode != 0
        first = other if over else made
    seen.findings = len(validate(Output.at(output), deep=True).findings)
    seen.outcome = judged(Outcome(seed, "local", Counter(), Counter(), seen.starts), output, wanted, set(files))
    return seen


def _stop_after(process: Any, output: Folder, files: int) -> None:
    """SIGSTOP, once so many files have come or a little later than that, or the promise."""
    before, promised = _written(output), output.exists(SUCCESS)
    while process.is_alive() and _written(output) - before < files:
        time.sleep(0.01)
        if not promised and output.exists(SUCCESS):
            break
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGSTOP)


def _written(output: Folder) -> int:
    """Files of results, ledger and index; the folders of holders come and go."""
    return sum(len(output.list(name)) for name in ("masks", "overlays", "_run/parts", "index"))


def _holder(output: Folder) -> int | None:
    """The process that has the output now."""
    found = holder(output)
    return found and found.pid


@dataclass
class Recovery:
    """Killed when `share` per cent were committed, and resumed."""

    share: int
    committed: int
    again: int
    """Images that were decoded twice."""
    in_hand: int
    """What may have been in hand at that moment: one shard, which is committed as one part here."""
    total: int = 0
    rows: int = 0


def recovery(share: int, folder: Path, images: int = IMAGES, shard: int = SHARD) -> Recovery:
    """Kill -9 shortly after the commit that reaches `share` per cent, and the same command again."""
    source, output = Folder(folder / "photos"), Folder(folder / "out")
    for path, data in photos(share, images).items():
        source.write(path, data)
    log, made = folder / "decoded", config(source.url, output.url, {}, shard_size=shard)
    with started(made, str(log), -(-images * share // 100)) as process:
        process.join()
    parts = [pq.read_table(path, columns=["key"]) for path in Path(output.url).glob("_run/parts/*/*.parquet")]
    with started(made, str(log)) as process:
        process.join()
    decoded = Counter(log.read_text().splitlines())
    tables = [pq.read_table(path, columns=["key"]) for path in Path(output.url).glob("index/*.parquet")]
    return Recovery(
        share,
        committed=sum(part.num_rows for part in parts),
        again=sum(decoded.values()) - len(decoded),
        in_hand=shard,
        total=images,
        rows=sum(table.num_rows for table in tables),
    )


@dataclass
class Hostility:
    """Hostile images among good ones: what each ended in."""

    good: int
    ok: int
    seconds: float
    kinds: list[tuple[str, str, str, str, bool]] = field(default_factory=list)
    """Name, stage, type, message, and whether stage and type are the right ones."""


def hostility(folder: Path, good: int = 1000) -> Hostility:
    """Twenty hostile images among `good` ones."""
    source, output, bad = Folder(folder / "photos"), Folder(folder / "out"), hostile()
    for path, data in photos(0, good).items():
        source.write(path, data)
    (folder / "photos" / "bad").mkdir(parents=True)
    for name, (data, _, _) in bad.items():
        if data is None:
            (folder / "photos" / "bad" / name).symlink_to("nowhere")
        else:
            source.write(f"bad/{name}", data)
    start = time.monotonic()
    with started(config(source.url, output.url, {}, shard_size=128, batch_size=8, max_failures="20")) as process:
        process.join()
    seconds = time.monotonic() - start
    tables = [pq.read_table(path) for path in Path(output.url).glob("index/*.parquet")]
    rows = {row["key"]: row for row in pa.concat_tables(tables).to_pylist()}
    whole = [key for key, row in rows.items() if row["status"] == "ok" and os.path.exists(row["mask_uri"])]
    outcome = Hostility(good, len([key for key in whole if not key.startswith("bad/")]), seconds)
    for name, (_, stage, kind) in bad.items():
        row = rows[f"bad/{name}"]
        found = (row["error_stage"] or "", row["error_type"] or "")
        message = (row["error_message"] or "").replace(str(folder), "").replace("|", "/")
        outcome.kinds.append((name, *found, message, found == (stage, kind)))
    return outcome
