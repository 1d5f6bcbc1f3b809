"""What grows with the collection, and what does not: listing, resume, memory, and Ray's driver.

``python -m vbp.evidence.scale benchmarks/scale.md`` measures everything and writes the table. Every measurement runs in
a process of its own, so its peak memory can be told. Memory is counted without what a process shares with others (Ray's
object store, libraries).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from vbp.evidence.page import FIGURE_HEAD, figure_row, table
from vbp.evidence.timing import Figure
from vbp.evidence.watch import private, watched
from vbp.pipeline import RunConfig, Summary, prepare, run
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.record import Record
from vbp.pipeline.resources import divide
from vbp.pipeline.steps import Batch, as_table, objects
from vbp.storage.files import Folder
from vbp.storage.ledger import index
from vbp.storage.ledger.compaction import compact
from vbp.storage.manifest.manifest import Manifest, ManifestRow, write_manifest

LISTED, RESUMED, FEW, MANY, SHARDS = 1_000_000, 100_000, 1_000, 20_000, 100_000
STORED = 100_000
"""Files that are written to a store, to be listed there."""
FINISHED = 262_144
"""Images of the run that is finished: one file of the index."""
FILES_A_FOLDER = 1000
ROWS_A_PART = 50
"""About what the main job commits together, every few seconds, on two cores."""
BATCH = 8
DRIVER_SECONDS = 60.0
"""How long shards are counted after the first."""
CHECKPOINT = str(resources.files("vbp.demo") / "vgg16_demo.safetensors")
"""A file as users have one: small, but named by its path."""


def listing(folder: Path, images: int) -> Iterator[Figure]:
    """A tree of empty files, listed to a manifest by a process that holds the network, as the driver does."""
    tree = folder / "tree"
    touch(tree, images)
    found = watched(_list, str(tree), str(folder / "listed"))
    yield figure(f"{images:,} files listed to the manifest", found.value, "s", detail=f"{found.cpu:.0f} s of CPU")
    yield figure("its memory, the network's included", found.own, "MB", 1000)
    found = watched(_list_again, str(tree), str(folder / "listed"))
    detail = f"{found.cpu:.0f} s of CPU, {found.own:.0f} MB"
    yield figure("the same with --refresh, nothing new", found.value, "s", detail=detail)


def resume(folder: Path, images: int, place: str | None, options: Mapping[str, Any]) -> Iterator[Figure]:
    """A finished output, made of rows instead of images; then the command that finds nothing to do."""
    where = "on a disk" if place is None else f"on {place.partition('://')[0]}"
    output = Folder(place or str(folder / "finished"), options)
    config = RunConfig(
        input=str(folder / "few"), output=output.url, weights=CHECKPOINT, size=32, precision="float32", device="cpu",
        batch_size=BATCH, runner="local", storage_options=options,
    )  # fmt: skip
    tiny_photos(folder / "few", 1)
    _finish(config, output, images)
    manifest = Manifest.load(output)
    assert manifest is not None
    for name, work in (("pending_shards", index.pending_shards), ("progress", index.progress)):
        started = time.perf_counter()
        list(work(output, manifest))
        yield figure(f"{name} of {images:,} finished images {where}", time.perf_counter() - started, "s")
    started, cpu = time.perf_counter(), _children_cpu()
    command = ["explain", config.input, config.output, *_flags(config), "--json"]
    done = subprocess.run([sys.executable, "-m", "vbp.cli", *command], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    summary = json.loads(done.stdout)
    assert (summary["images"], summary["computed"]) == (images, 0)
    name = f"the whole command, to know that nothing is left of {images:,} images, {where}"
    yield figure(name, seconds, "s", 10, f"{_children_cpu() - cpu:.1f} s of CPU")


def memory(folder: Path, few: int, many: int, runner: str) -> Iterator[Figure]:
    """The main job on tiny images with the demo's network; the greatest memory of the driver and of any worker."""
    found = {}
    for images in (few, many):
        photos = folder / f"photos-{images}"
        tiny_photos(photos, images)
        found[images] = watched(_explain, str(photos), str(folder / f"out-{runner}-{images}"), runner)
    least, most = found[few], found[many]
    for who, one, other in (("driver", least.own, most.own), ("largest worker", least.workers, most.workers)):
        if one:
            name = f"{runner} runner: {who}'s memory, {many:,} images over {few:,}"
            yield figure(name, other / one, "", 1.1, f"{other:.0f} over {one:.0f} MB")
    yield figure(f"{runner} runner: {many:,} images of 32x32", most.value, "s")


def driver(shards: int) -> Iterator[Figure]:
    """Ray's driver with a plan of so many shards whose work is nothing."""
    found = watched(_plan, shards)
    first, rate, before = found.value
    yield figure(f"Ray, {shards:,} shards without work: first result after", first, "s")
    yield figure("shards a second from there on", rate, "shards/s")
    yield figure("driver's memory", found.own, "MB", detail=f"{before:.0f} MB before the plan")


def figure(name: str, value: float, unit: str, most: float | None = None, detail: str = "") -> Figure:
    """A figure; `most`: what it may be at most."""
    return Figure("scaling", name, [value], unit, most, at_most=True, detail=detail)


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system


def named(files: int) -> Iterator[str]:
    """Names of so many images, in folders of ``FILES_A_FOLDER``."""
    return (f"class{number // FILES_A_FOLDER:05d}/image{number:08d}.jpg" for number in range(files))


def touch(tree: Path, files: int) -> None:
    """Create empty files with names of images."""
    for number, name in enumerate(named(files)):
        if number % FILES_A_FOLDER == 0:
            (tree / name).parent.mkdir(parents=True)
        os.close(os.open(tree / name, os.O_CREAT | os.O_WRONLY))


def tiny_photos(folder: Path, images: int) -> None:
    """Tiny pictures of noise, only a few different ones: what they show does not matter here."""
    rng = np.random.default_rng(0)
    source = folder.parent / "noise.png"
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(source)
    data = source.read_bytes()
    for number in range(images):
        path = folder / f"class{number // FILES_A_FOLDER:03d}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _list(tree: str, output: str) -> float:
    config = RunConfig(input=tree, output=output, weights="demo", size=32)
    model = prepare.load_network(config)
    started = time.perf_counter()
    shard_size, rows = prepare.choose_shard_size(config, prepare.list_input(config))
    write_manifest(Folder(output), rows, shard_size, input=tree)
    seconds = time.perf_counter() - started
    del model
    return seconds


def _list_again(tree: str, output: str) -> float:
    from vbp.storage.manifest.refresh import Changes, refresh_manifest

    manifest = Manifest.load(Folder(output))
    assert manifest is not None
    started = time.perf_counter()
    rows = prepare.list_input(RunConfig(input=tree, output=output))
    _, changes = refresh_manifest(Folder(output), manifest, rows, forget=lambda shard, rows: None)
    assert changes == Changes(0, 0, 0)
    return time.perf_counter() - started


def _finish(config: RunConfig, output: Folder, images: int) -> None:
    """Write what a run over so many images leaves, except masks and overlays."""
    model = prepare.load_network(config)
    recipe = Recipe(
        config=config, run_id="made", device="cpu", precision="float32", batch_size=BATCH,
        weights_sha256=model.sha256, preprocessing=config.preprocessing(model.preprocessing),
    )  # fmt: skip
    record = Record(output, {})
    record.begin(recipe)
    rows = (ManifestRow(name, f"{config.input}/{name}", name.encode(), name[:10], 1, "1") for name in named(images))
    manifest = write_manifest(output, rows, prepare.SHARD_SIZE, input=config.input)
    record.adopt(manifest)

    def commit(shard: int) -> None:
        table = manifest.read_shard(shard)
        for start in range(0, table.num_rows, ROWS_A_PART):
            part = table.slice(start, ROWS_A_PART)
            columns: Batch = {name: objects(part[name].to_pylist()) for name in ("key", "uri", "label", "position")}
            columns["status"] = objects(["ok"] * part.num_rows)
            columns["finished_at"] = objects([datetime.now(UTC)] * part.num_rows)
            columns["mask_uri"] = objects([f"{output.url}/masks/{key}.png" for key in columns["key"]])
            index.write_part(output, as_table(columns), shard, "made")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(commit, range(manifest.shards)))
    totals = compact(output, manifest)
    assert (totals.ok, totals.error) == (images, 0)
    record.end(
        Summary(
            run_id="made", output=output.url, images=images, ok=images, error=0, computed=images, failures_allowed=0,
            seconds=1.0, runner="local", device="cpu", precision="float32", batch_size=BATCH, workers=1,
        ),
        totals.files,
    )  # fmt: skip


def _flags(config: RunConfig) -> list[str]:
    """The flags of a configuration that differ from their defaults."""
    default = RunConfig(input=config.input, output=config.output)
    flags: list[str] = []
    for name, value in config.as_json().items():
        if value != default.as_json()[name]:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            flags += ["--" + name.replace("_", "-"), text]
    return flags


def _explain(photos: str, output: str, runner: str) -> float:
    config = RunConfig(
        input=photos, output=output, weights="demo", size=32, precision="float32", device="cpu", workers=1,
        shard_size=100, runner=runner,  # type: ignore[arg-type]
    )  # fmt: skip
    summary = run(config)
    assert summary.ok == summary.images
    return summary.seconds


class _Nothing(Recipe):
    """A recipe of steps that do nothing: one report a shard."""

    def source(self) -> Any:
        return self

    @contextmanager
    def open(self, shard: int) -> Iterator[_NoWork]:
        """As `vbp.pipeline.source.Source` does."""
        yield _NoWork(shard)

    def _step(self) -> Any:
        return _unchanged

    fetch = decode = explain = encode = write = _step


class _NoWork:
    """One row that stands for a shard."""

    def __init__(self, shard: int) -> None:
        self._shard = shard

    def singles(self, step: Callable[[Batch], Batch]) -> Iterator[Batch]:
        return iter(())

    def batches(self, rows: int) -> Iterator[Batch]:
        yield {"shard": np.array([self._shard])}


def _unchanged(batch: Batch) -> Batch:
    return batch


def _plan(shards: int) -> tuple[float, float, float]:
    """Seconds to the first report, reports a second from there on, and MB before."""
    from vbp.pipeline.on_ray.cluster import connected, nodes
    from vbp.pipeline.on_ray.dataset import plan

    config = RunConfig(input="in", output="out", size=32)
    recipe = _Nothing(config=config, run_id="r", device="cpu", precision="float32", batch_size=8, weights_sha256="none")
    with connected():
        given = divide(nodes(), "cpu", None)
        before = private(psutil.Process())
        started = time.perf_counter()
        first, done = 0.0, 0
        for _ in plan(recipe, range(shards), given).iter_rows():
            done += 1
            first = first or time.perf_counter() - started
            if time.perf_counter() - started - first > DRIVER_SECONDS:
                break
        spent = time.perf_counter() - started - first
    return first, (done - 1) / max(spent, 1e-9), before


def markdown(figures: list[Figure], parts: Sequence[str]) -> str:
    """The table, with what was measured on what."""
    lines = [
        "# What grows with the collection\n",
        f"Made by `python -m vbp.evidence.scale FILE --parts {' '.join(parts)}`. Memory is what a process has to",
        "itself.",
        f"{os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}.\n",
    ]
    rows = [figure_row(each.as_json()) for each in figures]
    return "\n".join(lines) + "\n" + table(FIGURE_HEAD, rows) + "\n"


def main() -> None:
    """Measure and write the table, after each part anew."""
    from vbp.evidence.finish import finish  # they take the figures and trees from here
    from vbp.evidence.listing import by_workers

    parser = argparse.ArgumentParser(prog="python -m vbp.evidence.scale", description=__doc__)
    parser.add_argument("file", type=Path, help="the table to write")
    parser.add_argument(
        "--parts", nargs="+", default=["listing", "resume", "local", "ray", "driver", "fleet", "finish"], help="which"
    )
    parser.add_argument("--place", help="a new folder on a store, for the parts resume and fleet")
    parser.add_argument("--storage-options", type=json.loads, default={}, help="as of vbp explain")
    parser.add_argument("--divide", type=int, default=1, help="take only one N-th of all counts: a trial")
    options = parser.parse_args()
    share = options.divide
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="vbp-scale-") as name:
        folder = Path(name)
        parts: dict[str, list[Callable[[], Iterator[Figure]]]] = {
            "listing": [lambda: listing(folder, LISTED // share)],
            "resume": [lambda: resume(folder, RESUMED // share, None, {})],
            "local": [lambda: memory(folder, FEW // share, MANY // share, "local")],
            "ray": [lambda: memory(folder, FEW // share, MANY // share, "ray")],
            "driver": [lambda: driver(SHARDS // share)],
            "fleet": [lambda: by_workers(folder, LISTED // share, None, {})],
            "finish": [lambda: finish(folder, FINISHED // share)],
        }
        if options.place:
            on_store = (f"{options.place}/tree", options.storage_options)
            parts["fleet"].append(lambda: by_workers(folder / "store", STORED // share, *on_store))
            parts["resume"].append(lambda: resume(folder, RESUMED // share, options.place, options.storage_options))
        for part in options.parts:
            for work in parts[part]:
                for found in work():
                    figures.append(found)
                    print(*figure_row(found.as_json()), flush=True)  # noqa: T201
                    options.file.parent.mkdir(parents=True, exist_ok=True)
                    options.file.write_text(markdown(figures, options.parts))


if __name__ == "__main__":
    from vbp.evidence import scale  # under its own name, by which Ray's workers find what they are given

    scale.main()
