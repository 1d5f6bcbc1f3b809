"""Run all chaos tests and write their tables: ``python -m tests.chaos docs/chaos.md`` (``make chaos``).

The tables are written anew after every run, so that a suite that is cut off leaves what it found. With ``--keep`` it
goes on from there.
"""

from __future__ import annotations

import argparse
import os
import pickle
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.suite import (
    IMAGES,
    RATES,
    SHARD,
    SHARES,
    SILENCE,
    Freeze,
    Hostility,
    Outcome,
    Recovery,
    chaos,
    freezes,
    hostility,
    recovery,
)
from tests.servers import ENVIRONMENT, S3Server
from vbp.storage.files import Folder

INTRODUCTION = """# Chaos

Made by `make chaos` (`python -m tests.chaos docs/chaos.md`) on {date}, {machine}.
Demo weights, images of 32 to 64 pixels.

"""


@dataclass
class Results:
    """What was found so far."""

    outcomes: list[Outcome] = field(default_factory=list)
    spread: list[Outcome] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    hostilities: Hostility | None = None
    on_disk: list[Freeze] = field(default_factory=list)
    on_s3: list[Freeze] = field(default_factory=list)
    spread_frozen: list[Freeze] = field(default_factory=list)


def markdown(results: Results) -> str:
    outcomes, recoveries, hostilities = results.outcomes + results.spread, results.recoveries, results.hostilities
    frozen = results.on_disk + results.on_s3
    machine = f"{os.cpu_count()} {platform.machine()} cores shared with other work"
    lines = [INTRODUCTION.format(date=f"{datetime.now(UTC):%Y-%m-%d}", machine=machine)]
    if outcomes:
        clean = sum(outcome.clean for outcome in outcomes)
        rates = ", ".join(f"{kind} {rate:.0%}" for kind, rate in RATES.items())
        lines += [
            f"## Runs on S3 behind a proxy that makes faults\n\n{IMAGES} images in shards of {SHARD}. "
            f"Faults: {rates} of all\nrequests. Killed with SIGKILL after a random number of requests, "
            "the same command until it is done;\nthen every file "
            f"is compared with an undisturbed run's. {clean} of {len(outcomes)} runs are clean.\n\n`spread` is "
            "Ray in the shape for GPUs, with the network on CPUs. There a shard goes in two or four parcels; in\neven "
            "seeds a quarter of the images is left, and up to three shards share a decoding task.\n\n"
            "| seed | runner | starts | killed | faults met | rows lost | doubled | wrong | files without row "
            "| rows without file | |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
        ]
        for each in outcomes:
            faults = ", ".join(f"{count} {kind}" for kind, count in each.faults.items())
            cells = [each.seed, each.runner, each.starts, listed(each.kills), faults]
            lines.append(row(*cells, *counts(each), clean=each.clean))
    if frozen:
        clean = sum(each.clean for each in frozen)
        lines.append(
            f"\n## Runs that freeze\n\n{IMAGES} images. A run is stopped (SIGSTOP) after a random number of files, "
            f"another takes over after {SILENCE} s of\nsilence (60 otherwise), the first goes on (SIGCONT) when the "
            "other has ended or is at work, one in five of the others is\nkilled; odd seeds begin with another preset, "
            "and the other starts over. Then `vbp validate --deep` and an audit of its\nown, file by file. "
            f"{clean} of {len(frozen)} are clean.\n\n"
            "| seed | place | pairs of runs | killed | losers with exit 0 | findings | rows lost | doubled | wrong "
            "| files without row | rows without file | |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n"
        )
        lines += [frozen_row(each, [each.starts, each.killed]) for each in frozen]
    if results.spread_frozen:
        clean = sum(each.clean for each in results.spread_frozen)
        lines.append(
            "\n## Workers that freeze\n\nThe same in the shape for GPUs, on CPUs: a process of one of its three kinds "
            "is stopped, or the driver alone. With a\nworker its driver is stopped too, or killed; the worker goes on "
            f"first. {clean} of {len(results.spread_frozen)} are clean.\n\n"
            "| seed | place | pairs of runs | stopped | drivers killed | losers with exit 0 | findings | rows lost "
            "| doubled | wrong | files without row | rows without file | |\n"
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
        )
        for each in results.spread_frozen:
            lines.append(frozen_row(each, [each.starts, listed(each.stopped), each.killed]))
    if recoveries:
        lines.append(
            "\n## What a killed run computes again\n\nKilled with SIGKILL shortly after the commit that reaches a "
            "share of the images, and the same command again.\n\n"
            "| killed at | committed then | images computed again | in hand at most | rows at the end |\n"
            "|---|---|---|---|---|\n"
        )
        lines += [
            f"| {r.share} % | {r.committed} of {r.total} | {r.again} | {r.in_hand} | {r.rows} |\n" for r in recoveries
        ]
    if hostilities is not None:
        right = sum(kind[4] for kind in hostilities.kinds)
        lines.append(
            f"\n## Hostile images among good ones\n\n{hostilities.ok} of {hostilities.good} good images are ok with "
            f"their masks; {right} of {len(hostilities.kinds)} hostile ones are error rows with\nthe right stage and "
            f"type.\n\n| image | stage | type | message |\n|---|---|---|---|\n"
        )
        lines += [
            f"| {name} | {stage} | {kind}{'' if good else ' (WRONG)'} | {message} |\n"
            for name, stage, kind, message, good in hostilities.kinds
        ]
    return "".join(lines)


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {whom}" for whom, count in sorted(counts.items())) or "0"


def counts(of: Outcome) -> tuple[object, ...]:
    return of.lost, of.doubled, of.wrong, of.files_without_row, of.rows_without_file


def row(*cells: object, clean: bool) -> str:
    return " | ".join(("", *map(str, cells), "clean" if clean else "NOT CLEAN", "")).strip() + "\n"


def frozen_row(each: Freeze, facts: list[object]) -> str:
    assert each.outcome is not None
    cells = [each.seed, each.place, *facts, each.losers_that_ended_well, each.findings]
    return row(*cells, *counts(each.outcome), clean=each.clean)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vbp-chaos-") as made:
        yield Path(made)


@contextmanager
def s3() -> Iterator[S3Server]:
    with folder() as made:
        server = S3Server(made)
        server.start()
        try:
            yield server
        finally:
            server.kill()


def work(results: Results, seeds: int, ray: int, spread: int) -> Iterator[object]:
    """Everything that is not among the results yet, one after the other."""
    while (seed := len(results.on_disk) + 1) <= seeds:
        with folder() as made:
            results.on_disk.append(freezes(seed, Folder(made)))
        yield results.on_disk[-1]
    while (seed := len(results.on_s3) + 1) <= seeds:
        with s3() as server:
            results.on_s3.append(freezes(seed, Folder(server.new_url(), server.storage_options)))
        yield results.on_s3[-1]
    for share in SHARES[len(results.recoveries) :]:
        with folder() as made:
            results.recoveries.append(recovery(share, made))
        yield results.recoveries[-1]
    if results.hostilities is None:
        with folder() as made:
            results.hostilities = hostility(made)
        yield f"{results.hostilities.ok} of {results.hostilities.good} among hostile ones"
    while (seed := len(results.outcomes) + 1) <= seeds:
        with s3() as server:
            results.outcomes.append(chaos(seed, server, "ray" if seed > seeds - ray else "local"))
        yield results.outcomes[-1]
    while (seed := len(results.spread) + 1) <= spread:
        with s3() as server:
            results.spread.append(chaos(seed, server, "spread"))
        yield results.spread[-1]
    while (seed := len(results.spread_frozen) + 1) <= spread:
        with folder() as made, s3() as server:
            on_s3 = Folder(server.new_url(), server.storage_options)
            place = on_s3 if seed % 4 in (2, 3) else Folder(made)
            results.spread_frozen.append(freezes(seed, place, runner="spread"))
        yield results.spread_frozen[-1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("file", type=Path, help="where the tables go")
    parser.add_argument("--seeds", type=int, default=20, help="of each chaos")
    parser.add_argument("--ray", type=int, default=4, help="how many seeds of kills, the last, go through Ray")
    parser.add_argument("--spread", type=int, default=12, help="how many seeds of kills, and of freezes, spread")
    parser.add_argument("--keep", type=Path, help="a file of what was found, to go on from")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="nothing is begun after so long")
    options = parser.parse_args()
    os.environ |= ENVIRONMENT | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    until, keep = time.monotonic() + 60 * options.minutes, options.keep
    results = pickle.loads(keep.read_bytes()) if keep and keep.exists() else Results()
    for found in work(results, options.seeds, options.ray, options.spread):
        print(found, flush=True)  # noqa: T201
        options.file.write_text(markdown(results))
        if keep:
            keep.write_bytes(pickle.dumps(results))
        if time.monotonic() > until:
            break


main()
