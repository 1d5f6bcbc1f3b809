"""Runs that are disturbed and killed again and again until they are done, and an audit of their outputs."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import random
import re
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
VICTIMS = {
    "local": {"driver": ""},
    "ray": {"driver": "", "worker": "Chain"},
    "spread": {"driver": "", "decode": "fetch_and_decode", "explain": "ExplainActor", "encode": "encode_and_write"},
}
"""By runner, ``spread`` being Ray in the shape for GPUs: whom something happens to, and what Ray calls its process."""
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
    return RunConfig(input=source, output=output, storage_options=options, **fields | {"runner": "local"} | changes)


def of_runner(runner: str) -> dict[str, Any]:
    """What a configuration says of it; in the spread shape batches are small, so that a shard goes in many pieces."""
    if runner == "local":
        return {}
    return {"runner": "ray", "workers": 2, "batch_size": 2 if runner == "spread" else 4}


def attempt(made: RunConfig, log: str | None = None, fatal: int | None = None, runner: str = "") -> None:
    """One process: the main job; `log` gets a line for every image decoded; it dies soon after `fatal` images."""
    import torch

    from vbp.pipeline.steps import Decode

    if runner == "spread":
        from tests.chaos import spread

        spread.take()
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
def started(made: RunConfig, *arguments: Any, **keywords: Any) -> Iterator[Any]:
    process = _PROCESSES.Process(target=attempt, args=(made, *arguments), kwargs=keywords)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def victim(process: Any, title: str, rng: random.Random, seconds: float = 120) -> psutil.Process | None:
    """The driver or, once there is one, a worker at what its title says; None if the run ends without one."""
    until = time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < until:
        with contextlib.suppress(psutil.Error):
            driver = psutil.Process(process.pid)
            if not title:
                return driver
            if found := [child for child in driver.children(recursive=True) if title in " ".join(_title(child))]:
                return rng.choice(found)
        time.sleep(0.01)
    return None


def _title(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


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
    """Files of which a byte differs from the undisturbed run's, and rows that do not say ok, or say other facts."""
    files_without_row: int = 0
    """And files that nobody knows."""
    rows_without_file: int = 0
    finished: bool = False

    @property
    def clean(self) -> bool:
        counts = (self.lost, self.doubled, self.wrong, self.files_without_row, self.rows_without_file)
        return self.finished and not any(counts)


FACTS = ("status", "label", "width", "height", "sha256", "prediction")
KNOWN = re.compile(
    r"(masks|overlays)/.*|index/part-\d{5}\.parquet|_SUCCESS|_run/(run|manifest|lease)\.json|_run/manifest/.*"
    r"|_run/parts/\d{6}/(.*\.parquet|(begun|alone)-\d+-\w+)"
)


@dataclass
class Made:
    """What a run has made."""

    files: dict[str, bytes]
    """Masks and overlays, by path."""
    rows: list[dict[str, Any]]
    """Of the index."""

    @classmethod
    def of(cls, output: Folder) -> Made:
        tables = [pq.read_table(io.BytesIO(output.read(path))) for path in output.list("index")]
        files = {path: output.read(path) for folder in ("masks", "overlays") for path in output.list(folder)}
        return cls(files, pa.concat_tables(tables).to_pylist() if tables else [])

    @property
    def facts(self) -> set[tuple[Any, ...]]:
        """What any run says of each image."""
        return {(row["key"], *(row[name] for name in FACTS)) for row in self.rows}


def strangers(output: Folder) -> list[str]:
    """Files that no run leaves, such as one that was half written."""
    if not output.is_local:
        return [path for path in output.list() if not KNOWN.fullmatch(path)]
    paths = (path for path in Path(output.url).rglob("*") if path.is_file())
    return [str(path) for path in paths if not KNOWN.fullmatch(path.relative_to(output.url).as_posix())]


def judged(outcome: Outcome, output: Folder, wanted: Made) -> Outcome:
    """Hold what lies in `output` against an undisturbed run's; shares no code with the job's own checks."""
    made = Made.of(output)
    rows, found = made.rows, made.files
    named = {f"{folder}/{row[f'{kind}_uri'].split(f'/{folder}/', 1)[1]}" for row in rows
             for kind, folder in (("mask", "masks"), ("overlay", "overlays")) if row[f"{kind}_uri"]}  # fmt: skip
    outcome.lost = len({row["key"] for row in wanted.rows} - {row["key"] for row in rows})
    outcome.doubled = len(rows) - len({row["key"] for row in rows})
    outcome.wrong = sum(found[path] != wanted.files.get(path) for path in found) + len(made.facts - wanted.facts)
    outcome.files_without_row = len(found.keys() - named) + len(strangers(output))
    outcome.rows_without_file = len(named - found.keys())
    outcome.finished = output.exists("_SUCCESS")
    return outcome


@lru_cache
def undisturbed(images: int) -> Made:
    """What a run on this disk makes that nothing happens to."""
    with tempfile.TemporaryDirectory(prefix="vbp-chaos-") as folder:
        source, output = Folder(f"{folder}/photos"), Folder(f"{folder}/out")
        for path, data in photos(0, images).items():
            source.write(path, data)
        with started(config(source.url, output.url, {})) as process:
            process.join()
        made = Made.of(output)
        assert len(made.facts) == images
        assert len(made.files) == 2 * images
        return made


def chaos(seed: int, server: S3Server, runner: str = "local", images: int = IMAGES) -> Outcome:
    """One seed: the job on S3 behind the proxy, killed at random moments, the same command until it is done.

    In the spread shape even seeds have few images left in each shard: an earlier run has found the others broken.
    """
    rng, files, wanted = random.Random(seed), photos(0, images), undisturbed(images)
    direct = Folder(server.new_url(), server.storage_options)
    for path, data in files.items():
        direct.write(f"photos/{path}", data)
    left = images
    if runner == "spread" and seed % 2 == 0:
        left = images // 4
        _all_done_but(rng.sample(sorted(files), left), direct, files)
    outcome = Outcome(seed, runner, Counter(), Counter())
    proxy = FaultProxy(server.endpoint, seed)
    proxy.faults = [Fault(kind, rate) for kind, rate in RATES.items()]
    proxy.start()
    try:
        options = of_runner(runner) | {"retry_failed": left < images}
        made = config(direct.uri("photos"), direct.uri("out"), proxy.storage_options, **options)
        kills, done = rng.randint(2, 4), False
        while outcome.starts < ATTEMPTS and not done:
            outcome.starts += 1
            with started(made, runner=runner) as process:
                _kill_some(process, rng, proxy, left, runner, outcome.kills, kills)
                process.join(600)
                done = process.exitcode == 0
    finally:
        proxy.stop()
    outcome.faults = Counter({kind: proxy.counts[kind] for kind in RATES})
    return judged(outcome, direct.child("out"), wanted)


def _all_done_but(left: list[str], folder: Folder, files: dict[str, bytes]) -> None:
    """A run that finds these images empty, which they are no longer when it is over."""
    for path in left:
        folder.write(f"photos/{path}", b"")
    made = config(folder.uri("photos"), folder.uri("out"), folder.options, max_failures=str(len(left)))
    with started(made) as process:
        process.join()
    for path in left:
        folder.write(f"photos/{path}", files[path])


def _kill_some(
    process: Any, rng: random.Random, proxy: FaultProxy, images: int, runner: str, kills: Counter[str], most: int
) -> None:
    """Kill -9 of workers, if there are any, until it hits the driver, each after a random number of requests.

    A whole run makes more than three requests an image: one to read it, two to write its files.
    """
    victims = VICTIMS[runner]
    while sum(kills.values()) < most:
        whom = rng.choice(list(victims)) if len(victims) > 1 else "driver"
        fatal = _requests(proxy) + rng.randint(1, 3 * images)
        while process.is_alive() and _requests(proxy) < fatal:
            time.sleep(0.005)
        found = victim(process, victims[whom], rng)
        if found is None:
            return
        found.kill()
        kills[whom] += 1
        if whom == "driver":
            return


def _requests(proxy: FaultProxy) -> int:
    return sum(proxy.counts[method] for method in ("GET", "HEAD", "PUT", "POST", "DELETE", "LIST"))


SILENCE = "2"
"""Seconds after which a frozen run is succeeded here; 60 otherwise."""


@dataclass
class Freeze:
    """What came of one seed of runs that freeze; all but the first five should be 0 and True."""

    seed: int
    place: str
    runner: str
    starts: int = 0
    stopped: Counter[str] = field(default_factory=Counter)
    killed: int = 0
    """Drivers."""
    losers_that_ended_well: int = 0
    """Frozen runs that were succeeded, and said nothing of it."""
    findings: int = 0
    """Of ``vbp validate --deep``."""
    outcome: Outcome | None = None
    """The audit, which shares no code with that."""

    @property
    def clean(self) -> bool:
        return bool(self.outcome and self.outcome.clean) and not (self.findings or self.losers_that_ended_well)


def succeeded_in_silence(made: RunConfig, runner: str = "local") -> None:
    """One process: the main job, in which silence is short."""
    os.environ[TAKE_OVER_AFTER] = SILENCE
    attempt(made, runner=runner)


def freezes(seed: int, folder: Folder, images: int = IMAGES, runner: str = "local") -> Freeze:
    """One seed: a run stops after a random number of files, another takes over; the first goes on at any time.

    Either is killed now and then. The third and every odd seed begin with runs of another preset, over which the
    wanted one starts over.  With Ray it is one pair, unless more are needed; a worker of the first run may stop too,
    then its driver stops or is killed, and the worker goes on before it.
    """
    rng, files, wanted = random.Random(seed), photos(0, images), undisturbed(images)
    for path, data in files.items():
        folder.write(f"photos/{path}", data)
    output, seen = folder.child("out"), Freeze(seed, "disk" if folder.is_local else "S3", runner)
    made = config(folder.uri("photos"), folder.uri("out"), folder.options)
    other = replace(made, preset="reference", fit="stretch")
    first, over = (other, True) if seed % 2 else (made, False)
    least, files_of_a_run = (2, 2 * images + 12) if runner == "local" else (1, images)
    while seen.starts < ATTEMPTS and (over or seen.starts < least or not is_complete(output)):
        seen.starts += 1
        second = replace(made, resume_mode="overwrite") if over else made
        one = _PROCESSES.Process(target=succeeded_in_silence, args=(replace(first, **of_runner(runner)), runner))
        one.start()
        stopped = _stop_after(one, output, rng.randint(1, files_of_a_run), runner, rng, seen)
        had = _holder(output) == one.pid
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
        for number, each in enumerate(stopped):
            time.sleep(rng.uniform(0, 1) if number else 0)
            with contextlib.suppress(psutil.Error):
                each.resume()
        one.join(300)
        two.join(300)
        for each in psutil.wait_procs(stopped, 60)[1]:
            each.kill()
        seen.losers_that_ended_well += lost and one.exitcode == 0
        over = over and two.exitcode != 0
        first = other if over else made
    seen.findings = len(validate(Output.at(output), deep=True).findings)
    seen.outcome = judged(Outcome(seed, runner, Counter(), Counter(), seen.starts), output, wanted)
    return seen


def _stop_after(
    process: Any, output: Folder, files: int, runner: str, rng: random.Random, seen: Freeze
) -> list[psutil.Process]:
    """SIGSTOP, once so many files have come or a little later than that, or the promise; returns who was stopped."""
    before, promised = _written(output), output.exists(SUCCESS)
    while process.is_alive() and _written(output) - before < files:
        time.sleep(0.01)
        if not promised and output.exists(SUCCESS):
            break
    victims, stopped = VICTIMS[runner], list[psutil.Process]()
    whom = rng.choice(list(victims)) if len(victims) > 1 else "driver"
    for each in dict.fromkeys((whom, "driver")):
        if (found := victim(process, victims[each], rng)) is None:
            break
        if each != whom and rng.random() < 0.5:
            process.kill()
            seen.killed += 1
        else:
            with contextlib.suppress(psutil.Error):
                found.suspend()
            stopped.append(found)
            seen.stopped[each] += 1
    return stopped


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
