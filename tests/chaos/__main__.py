"""Everything of chaos, and the tables of it: ``python -m tests.chaos docs/chaos.md`` (``make chaos``).

The tables are written anew after every run, so that a suite that is cut off leaves what it found.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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


def markdown(
    outcomes: list[Outcome], recoveries: list[Recovery], hostilities: Hostility | None, frozen: list[Freeze]
) -> str:
    machine = f"{os.cpu_count()} {platform.machine()} cores shared with other work"
    lines = [INTRODUCTION.format(date=f"{datetime.now(UTC):%Y-%m-%d}", machine=machine)]
    if outcomes:
        clean = sum(outcome.clean for outcome in outcomes)
        rates = ", ".join(f"{kind} {rate:.0%}" for kind, rate in RATES.items())
        lines += [
            f"## Runs on S3 behind a proxy that makes faults\n\n{IMAGES} images in shards of {SHARD}. "
            f"Faults: {rates} of all\nrequests. Killed with SIGKILL after a random number of requests, "
            "the same command until it is done;\nthen every file "
            f"is compared with an undisturbed run's. {clean} of {len(outcomes)} runs are clean.\n\n"
            "| seed | runner | starts | killed | faults met | rows lost | doubled | wrong | files without row "
            "| rows without file | |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
        ]
        for each in outcomes:
            killed = ", ".join(f"{count} {whom}" for whom, count in sorted(each.kills.items())) or "0"
            faults = ", ".join(f"{count} {kind}" for kind, count in each.faults.items())
            lines.append(
                f"| {each.seed} | {each.runner} | {each.starts} | {killed} | {faults} | {each.lost} | {each.doubled} | "
                f"{each.wrong} | {each.files_without_row} | {each.rows_without_file} | "
                f"{'clean' if each.clean else 'NOT CLEAN'} |\n"
            )
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
        for each in frozen:
            found = each.outcome
            assert found is not None
            lines.append(
                f"| {each.seed} | {each.place} | {each.starts} | {each.killed} | {each.losers_that_ended_well} | "
                f"{each.findings} | {found.lost} | {found.doubled} | {found.wrong} | {found.files_without_row} | "
                f"{found.rows_without_file} | {'clean' if each.clean else 'NOT CLEAN'} |\n"
            )
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


def in_folder(work: Callable[..., Any], *arguments: Any) -> Any:
    with tempfile.TemporaryDirectory(prefix="vbp-chaos-") as folder:
        return work(*arguments, Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("file", type=Path, help="where the tables go")
    parser.add_argument("--seeds", type=int, default=20, help="runs on S3")
    parser.add_argument("--ray", type=int, default=4, help="how many of these, the last, go through Ray")
    parser.add_argument("--only-freezes", action="store_true", help="on a disk, and nothing else")
    options = parser.parse_args()
    os.environ |= ENVIRONMENT | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    outcomes: list[Outcome] = []
    recoveries: list[Recovery] = []
    hostilities: Hostility | None = None
    frozen: list[Freeze] = []

    def write() -> None:
        options.file.write_text(markdown(outcomes, recoveries, hostilities, frozen))

    for seed in range(1, options.seeds + 1):
        frozen.append(in_folder(lambda seed, folder: freezes(seed, Folder(folder)), seed))
        print(frozen[-1], flush=True)  # noqa: T201
        write()
    if options.only_freezes:
        return
    for share in SHARES:
        recoveries.append(in_folder(recovery, share))
        print(recoveries[-1], flush=True)  # noqa: T201
        write()
    hostilities = in_folder(hostility)
    write()
    with tempfile.TemporaryDirectory(prefix="vbp-chaos-s3-") as folder:
        server = S3Server(Path(folder))
        server.start()
        try:
            for seed in range(1, options.seeds + 1):
                outcomes.append(chaos(seed, server, "ray" if seed > options.seeds - options.ray else "local"))
                print(outcomes[-1], flush=True)  # noqa: T201
                frozen.append(freezes(seed, Folder(server.new_url(), server.storage_options)))
                print(frozen[-1], flush=True)  # noqa: T201
                write()
        finally:
            server.kill()


main()
