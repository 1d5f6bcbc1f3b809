"""Two attempts at one output, stopped before any of their requests, in every order.

It is the program's own code, on stores that say who asks for what.

The lease is taken over without waiting, as if the clock had jumped: whatever silence is for, safety does not rest on
it. Networks and pixels are left out: a mask is a word that names its configuration, its image and the image's version.
"""

from __future__ import annotations

import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vbp.errors import InterruptedRunError, UsageError, VBPError
from vbp.networks.preprocessing import IMAGENET
from vbp.pipeline import Observer, RunConfig, prepare
from vbp.pipeline.attempt import Attempt
from vbp.pipeline.failures import failures_as_sentences
from vbp.pipeline.loading import NetworkFacts
from vbp.pipeline.steps import objects
from vbp.pipeline.working import Working
from vbp.storage import files
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.files import Folder
from vbp.storage.ledger import compaction, index
from vbp.storage.ledger.held import Conditional, HeldFolder
from vbp.storage.ledger.lease import LEASE, Lease, read
from vbp.storage.ledger.staged import StagedStore
from vbp.storage.manifest.manifest import Manifest
from vbp.storage.record import SUCCESS, is_complete, load_record
from vbp.storage.stores.local import LocalStore
from vbp.storage.stores.objects import ObjectStore
from vbp.storage.stores.store import File

IMAGES, SHARD = 4, 2


class Killed(BaseException):
    """As a kill -9."""


Moment = int | tuple[str, ...]
"""Which request of an attempt: its number, or the first with the last of these texts after those with the others."""


class Turns:
    """Says who may go on: an attempt stops before one of its requests, until the other has come to one of its own."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.stops: dict[str, tuple[Moment, threading.Event, threading.Event]] = {}
        self.deaths: dict[str, Moment] = {}
        self.requests: dict[str, list[str]] = {}
        self._mine = threading.local()
        self._lock = threading.Lock()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """In this context the thread asks for attempt `name`."""
        before, self._mine.name = self.mine, name
        try:
            yield
        finally:
            self._mine.name = before

    @property
    def mine(self) -> str | None:
        return getattr(self._mine, "name", None)

    def stop(self, name: str, before: Moment) -> tuple[threading.Event, threading.Event]:
        """Stop attempt `name` before a request: (it is there, let it go on)."""
        self.stops[name] = before, threading.Event(), threading.Event()
        return self.stops[name][1:]

    def ask(self, request: str, name: str | None = None) -> None:
        name = name or self.mine
        if name is None:
            return
        with self._lock:
            self.counts[name] += 1
            self.requests.setdefault(name, []).append(request)
        if self._has_come(name, self.deaths.get(name)):
            raise Killed
        before, reached, go_on = self.stops.get(name, (None, None, None))
        if reached is not None and go_on is not None and self._has_come(name, before):
            reached.set()
            assert go_on.wait(60)

    def _has_come(self, name: str, moment: Moment | None) -> bool:
        return moment is not None and self.number(name, moment) < len(self.requests[name])

    def request(self, name: str, number: int) -> str:
        """The request of that number."""
        asked = self.requests[name]
        return asked[number] if number < len(asked) else "the end"

    def number(self, name: str, moment: Moment) -> int:
        """The number of an attempt's request; far beyond its end if there was none."""
        if isinstance(moment, int):
            return moment
        asked, number = self.requests[name], -1
        for text in moment:
            number = next((n for n in range(number + 1, len(asked)) if text in asked[n]), 1 << 30)
        return number


class Bucket(ObjectStore):
    """An object store in memory, with conditional requests as S3 has them."""

    def __init__(self, turns: Turns):
        self.objects: dict[str, bytes] = {}
        self._turns, self._mutex = turns, threading.Lock()

    def walk(self, root: str) -> Iterator[File]:
        self._turns.ask(f"list {root}")
        found = {path: data for path, data in self.objects.items() if path.startswith(f"{root}/")}
        for path in sorted(found, key=str.encode):
            yield File(path.removeprefix(f"{root}/"), len(found[path]), str(hash(found[path])))

    def first(self, root: str) -> File | None:
        return next(self.walk(root), None)

    def size(self, path: str) -> int | None:
        self._turns.ask(f"size {path}")
        return len(self.objects[path]) if path in self.objects else None

    def read(self, path: str, start: int | None = None, end: int | None = None, *, limit: Any = None) -> bytes:
        self._turns.ask(f"read {path}")
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path][start or 0 : end]

    def version(self, path: str) -> dict[str, str] | None:
        self._turns.ask(f"version {path}")
        return {"e_tag": str(hash(self.objects[path]))} if path in self.objects else None

    def put_if(self, path: str, data: bytes, version: Any) -> bool:
        self._turns.ask(f"put {path}")
        with self._mutex:
            now = {"e_tag": str(hash(self.objects[path]))} if path in self.objects else None
            if now != version:
                return False
            self.objects[path] = data
            return True

    def write(self, path: str, data: bytes) -> None:
        self._turns.ask(f"overwrite {path}")
        self.objects[path] = data

    def create(self, path: str, data: bytes) -> bool:
        return self.put_if(path, data, None)

    def delete(self, path: str) -> None:
        self._turns.ask(f"delete {path}")
        self.objects.pop(path, None)


def on_disk(patch: pytest.MonkeyPatch, turns: Turns) -> None:
    """The real disk: requests are its last steps."""

    def asking(cls: type, method: str, word: str, place: int) -> None:
        original = getattr(cls, method)

        def ask(store: Any, *arguments: Any, **options: Any) -> Any:
            name = store._staging.rpartition("/")[2] if isinstance(store, StagedStore) else None
            turns.ask(f"{word} {arguments[place]}", name)
            return original(store, *arguments, **options)

        patch.setattr(cls, method, ask)

    for method, word, place in (("_replace", "put", 1), ("_link", "link", 1), ("_remove", "delete", 0)):
        asking(StagedStore, method, word, place)
    for method in ("read", "size", "walk"):
        asking(LocalStore, method, method, 0)
    patch.setattr("os.fsync", lambda descriptor: None)


@dataclass(frozen=True)
class Plan:
    """What one attempt is asked to do."""

    preset: str = "paper"
    mode: str = "resume"
    limit: int | None = None
    refresh: bool = False
    layout: str = "files"
    version: str = "1"
    """Of the second image's content, as this attempt finds it."""
    images: int = IMAGES
    """Images in INPUT, as this attempt finds it."""


class World:
    """One output, and what happens to it."""

    def __init__(self, patch: pytest.MonkeyPatch, place: str):
        self.turns = Turns()
        self._asked = threading.local()
        """The plan of the attempt that runs in this thread."""
        if place == "bucket":
            bucket = Bucket(self.turns)
            opened = files._open
            patch.setattr(
                files, "_open", lambda base, *rest: (bucket, "model") if base.startswith("s3") else opened(base, *rest)
            )
            self.url = "s3://model/out"
            for method in ("write", "delete"):
                self._in_any_thread(patch, method)
        else:
            on_disk(patch, self.turns)
            self.url = place
        patch.setattr(compaction, "ROWS_A_FILE", SHARD)  # so that the index has several files
        patch.setattr(prepare, "choose_device", lambda config: "cpu")
        patch.setattr(prepare, "list_input", lambda *_: rows_of(self._asked.plan))
        patch.setattr(prepare, "class_folders", lambda *_: [])
        patch.setattr(Lease, "_keep", lambda lease: None)  # but see `run`
        self.folder = Folder(self.url)

    def _in_any_thread(self, patch: pytest.MonkeyPatch, method: str) -> None:
        """Changes are made in threads, too."""
        original = getattr(Conditional, method)

        def change(store: Conditional, *arguments: Any) -> Any:
            with self.turns.of(store._look.__self__.attempt):
                return original(store, *arguments)

        patch.setattr(Conditional, method, change)

    def run(self, name: str, plan: Plan) -> Any:
        """A whole attempt, which does not wait, and renews its lease now and then; the images that it committed."""
        config = RunConfig(
            input="/in", output=self.url, preset=plan.preset, resume_mode=plan.mode, limit=plan.limit,
            refresh=plan.refresh, layout=plan.layout, shard_size=SHARD, outputs=("mask",), weights="w",
            precision="float32", batch_size=2,
        )  # fmt: skip
        output = HeldFolder(self.url, {}, name)
        network = NetworkFacts(
            sha256="w", class_names=None, num_classes=None, preprocessing=IMAGENET, code=None, structure_sha256=None
        )
        with self.turns.of(name), failures_as_sentences(before_work=False):
            lease = Lease(output, name)
            for _ in range(20):
                if lease._begin(read(output)):
                    break
            else:
                raise InterruptedRunError("the lease cannot be had: somebody has it now")
            try:
                checked = Attempt(config, output, Observer()).checked(network, None, pytest.fail)
                self._asked.plan = plan
                listed = checked.listed()
                due = listed.due(None)
                if due.finished():
                    return []
                working = due.begun()
                lease._renew()
                return self._work(working, listed.manifest, plan, lease)
            except UsageError:
                output.look()
                raise
            finally:
                with suppress(VBPError):
                    lease.release()

    def _work(self, working: Working, manifest: Manifest, plan: Plan, lease: Lease) -> list[str]:
        write = working.recipe.write()
        write._layout._threads = 1
        committed: list[str] = []
        while True:
            for shard in working.pending:
                left = index.rows_left(self.folder, manifest, shard.shard, limit=plan.limit)
                if left.num_rows:
                    working.count(one(write(batch_of(left, shard.shard, plan))))
                    committed += left["key"].to_pylist()
            lease._renew()
            summary = working.completed(None)
            if summary is not None:
                assert summary.succeeded
                return committed

    def stood_between(self, name: str, stop: int) -> bool:
        """Whether an attempt stopped when it had the lease, and had its promise still to make."""
        asked = self.turns.requests[name][stop:]
        return self.had_lease(name, stop) and any(SUCCESS in request and "put" in request for request in asked)

    def had_lease(self, name: str, stop: int) -> bool:
        """Whether an attempt stopped when it had the lease."""
        asked = self.turns.requests[name][: max(0, stop - 1)]  # a look of its own ends the taking of it
        return any(LEASE in request and request.startswith(("put", "link")) for request in asked)

    def preset(self) -> str | None:
        """That the output was begun with last."""
        record = load_record(self.folder) or {}
        return (record.get("config") or {}).get("preset")

    def faults(self) -> list[str]:
        """What is wrong under a promise that counts; none where there is no such promise."""
        if not is_complete(self.folder):
            return []
        record = json.loads(self.folder.read("_run/run.json"))
        config = record["config"]
        named = json.loads(self.folder.read(SUCCESS))["index"]
        rows = pa.concat_tables(pq.read_table(io.BytesIO(self.folder.read(path))) for path in named).to_pylist()
        faults = [f"{key} has {n} rows" for key, n in Counter(row["key"] for row in rows).items() if n > 1]
        by_key = {row["key"]: row for row in rows}
        for image in self._listed()[: config["limit"]]:
            row = by_key.get(image["key"])
            if row is None and not image["gone"]:
                faults.append(f"{image['key']} has no row")
            if row is not None and row["gone"] != image["gone"]:
                faults.append(f"{image['key']} is gone: {image['gone']}, and its row says {row['gone']}")
        for row in rows:
            if row["preset"] != config["preset"]:
                faults.append(f"{row['key']} is of {row['preset']}")
            faults += self._faults_of(row)
        return faults

    def _listed(self) -> list[dict[str, Any]]:
        """Key of every image in the manifest, and whether it is gone from INPUT."""
        manifest = Manifest.load(self.folder)
        assert manifest is not None
        return [row for n in range(manifest.shards) for row in manifest.read_shard(n, ["key", "gone"]).to_pylist()]

    def _faults_of(self, row: dict[str, Any]) -> list[str]:
        path = row["mask_uri"].removeprefix(self.folder.url + "/")
        try:
            data = self.folder.read(path)
        except FileNotFoundError:
            return [f"{row['key']} has no file"]
        if row["mask_offset"] is not None:
            data = data[row["mask_offset"] : row["mask_offset"] + row["mask_length"]]
        wanted = word(row["key"], row["preset"], row["version"])
        return [] if data == wanted else [f"{row['key']} is {data!r}, not {wanted!r}"]


def rows_of(plan: Plan) -> Iterator[ManifestRow]:
    for number in range(plan.images):
        key = f"{number}.png"
        yield ManifestRow(key, f"/in/{key}", key.encode(), None, 9, plan.version if number == 1 else "1")


def word(key: str, preset: str, version: str) -> bytes:
    return f"{key} {preset} {version}".encode()


def batch_of(left: pa.Table, shard: int, plan: Plan) -> dict[str, np.ndarray]:
    keys, versions = left["key"].to_pylist(), left["version"].to_pylist()
    return {
        "key": objects(keys),
        "uri": objects(left["uri"].to_pylist()),
        "label": objects([None] * len(keys)),
        "version": objects(versions),
        "shard": np.full(len(keys), shard, np.int32),
        "position": left["position"].to_numpy().astype(np.int32),
        "error_stage": objects([None] * len(keys)),
        "error_type": objects([None] * len(keys)),
        "error_message": objects([None] * len(keys)),
        "seconds_fetch": np.zeros(len(keys)),
        "file_mask": objects([word(key, plan.preset, version) for key, version in zip(keys, versions, strict=True)]),
    }


def one(reports: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: values[0] for name, values in reports.items()}


FIRST, SECOND, LAST = "20261129T000000Z-aaaaaaaa", "20261129T000000Z-bbbbbbbb", "20261129T000000Z-cccccccc"


class Scene(NamedTuple):
    """Two attempts at one output, and what had been finished there before."""

    first: Plan
    second: Plan
    before: Plan | None = None


TARS = Plan(layout="webdataset")
OVER = Plan(mode="overwrite")
OTHER = Plan(mode="overwrite", preset="reference")
NEWER = Plan(refresh=True, version="2")
LONGER = replace(NEWER, images=IMAGES + 2)
FEWER = Plan(refresh=True, images=IMAGES - 1)
SCENES = {
    "the same twice": Scene(Plan(), Plan()),
    "a limit, then all": Scene(Plan(limit=2), Plan()),
    "over it with another preset": Scene(Plan(), OTHER),
    "two that start over": Scene(OVER, OTHER, Plan()),
    "start over, then resume": Scene(OVER, Plan(), Plan()),
    "refresh, then resume": Scene(NEWER, Plan(), Plan()),
    "resume, then refresh": Scene(Plan(), NEWER, Plan(limit=2)),
    "a longer list, then resume": Scene(LONGER, Plan(), Plan()),
    "two that refresh": Scene(LONGER, replace(LONGER, images=IMAGES + 3), Plan()),
    "one is gone, then resume": Scene(FEWER, Plan(), Plan()),
    "resume, then one is gone without a row": Scene(Plan(), FEWER, Plan(limit=2)),
    "one is gone, and comes back": Scene(FEWER, replace(FEWER, images=IMAGES), Plan()),
    "tars with a limit, then all": Scene(replace(TARS, limit=2), TARS),
    "over tars": Scene(TARS, replace(TARS, mode="overwrite")),
}


@dataclass
class Outcome:
    """What came of one order of events."""

    where: str
    """The request that the first attempt stopped before."""
    other: str
    """The request that the second one stopped before."""
    faults: list[str]


def requests(place: Callable[[], str], plan: Plan, before: Plan | None) -> int:
    """How many requests an attempt makes that nobody disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch, place())
        if before:
            world.run("20261128T000000Z-00000000", before)
        world.run(FIRST, plan)
        return world.turns.counts[FIRST]


def excused(outcome: Outcome, kind: str) -> bool:
    """Whether it is what docs/guarantees.md says of object stores: a deletion that was looked for comes late."""
    told = ("has no file", "were done again", "promise is gone")
    late = kind == "bucket" and any(where.startswith("delete ") for where in (outcome.where, outcome.other))
    return late and all(fault.endswith(told) for fault in outcome.faults)


def explore(place: Callable[[], str], scene: Scene, stop: Moment, until: Moment | None, kill: bool) -> Outcome:
    """The first attempt stops before its request `stop`; the second goes up to its request `until` (None: to its end),
    is killed there or stops; the first goes on to its end; then the second does. At last a third one ends the work.
    """
    first, second, before = scene
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch, place())
        if before:
            world.run("20261128T000000Z-00000000", before)
        ends: dict[str, Any] = {}

        def run(name: str, plan: Plan) -> None:
            try:
                ends[name] = world.run(name, plan)
            except (VBPError, UsageError, Killed) as error:
                ends[name] = error

        reached, go_on = world.turns.stop(FIRST, stop)
        one_thread = threading.Thread(target=run, args=(FIRST, first), daemon=True)
        one_thread.start()
        while one_thread.is_alive() and not reached.wait(0.001):
            pass
        other = threading.Thread(target=run, args=(SECOND, second), daemon=True)
        there, on = threading.Event(), threading.Event()
        if until is not None and kill:
            world.turns.deaths[SECOND] = until
        elif until is not None:
            there, on = world.turns.stop(SECOND, until)
        other.start()
        while other.is_alive() and not there.wait(0.001):
            pass
        faults = [f"while both stand still: {fault}" for fault in world.faults()]
        go_on.set()
        one_thread.join(60)
        faults += [f"when the first is back: {fault}" for fault in world.faults()]
        on.set()
        other.join(60)
        faults += [f"at the end of both: {fault}" for fault in world.faults()]
        for name, moment in ((FIRST, stop), (SECOND, until)):
            if isinstance(moment, tuple):  # a number may lie behind the end; a text that never comes is a wrong test
                assert world.turns.number(name, moment) < len(world.turns.requests[name]), f"{name} never asks {moment}"
        stop = world.turns.number(FIRST, stop)
        other_stop = 1 << 30 if until is None else world.turns.number(SECOND, until)
        taken = until is None or world.had_lease(SECOND, other_stop)
        if taken and not isinstance(ends[FIRST], BaseException) and world.stood_between(FIRST, stop):
            faults.append("the first says that all went well")
        if until is None and not isinstance(ends[SECOND], BaseException) and not is_complete(world.folder):
            faults.append("the second's promise is gone")
        if isinstance(ends[FIRST], UsageError) and world.had_lease(FIRST, stop):
            faults.append(f"the first is refused: {ends[FIRST]}")
        if isinstance(ends[SECOND], UsageError):
            faults.append(f"the second is refused: {ends[SECOND]}")
        gave_back = all(LEASE in request for request in world.turns.requests[FIRST][stop:])
        if gave_back and "nobody has it now" in str(ends[SECOND]):
            faults.append(f"the second is robbed: {ends[SECOND]}")
        last, again = replace(second, mode="resume", preset=world.preset() or second.preset), []
        try:
            again = world.run(LAST, last)
        except VBPError as error:
            faults.append(f"the third is refused: {error}")
        if not isinstance(ends[SECOND], BaseException) and again:
            faults.append(f"{again} were done again")
        faults += [f"after a third run: {fault}" for fault in world.faults()]
        if not is_complete(world.folder):
            faults.append("a third run promises nothing")
        return Outcome(world.turns.request(FIRST, stop), world.turns.request(SECOND, other_stop), faults)
