"""Run all fuzzes of odd inputs and write their table: ``python -m tests.chaos.edges docs/edges.md`` (``make chaos``).

The table is written anew after every seed, so that a run that is cut off leaves what it found.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.edges import checkpoints, images, options, trees


@dataclass
class Found:
    """What came of the cases of one seed."""

    cases: int
    ends: Counter[str]
    faults: list[str]


def of_options(seed: int, count: int) -> Found:
    done = [options.run(case) for case in options.cases(seed, count)]
    faults = [f"seed {seed}: {case.arguments} {case.surroundings}: {case.wrong}" for case in done if case.wrong]
    return Found(len(done), Counter(f"exit {case.exit_code}" for case in done), faults)


KINDS: dict[str, tuple[Callable[[int, int], Found], int]] = {
    "checkpoints": (checkpoints.fuzz, 300),
    "image files": (images.fuzz, 3000),
    "trees, keys, manifests, class files": (trees.fuzz, 700),
    "options, places, surroundings": (of_options, 24),
}
"""What is tried, and the cases of one seed."""


@dataclass
class Tally:
    """What came of all seeds of one kind."""

    seeds: int = 0
    cases: int = 0
    seconds: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, found: Found, seconds: float) -> None:
        self.seeds += 1
        self.seconds += seconds
        self.cases += found.cases
        self.ends.update(found.ends)
        self.faults += found.faults


def markdown(tallies: dict[str, Tally]) -> str:
    minutes = sum(tally.seconds for tally in tallies.values()) / 60
    lines = [
        "# Edges\n\nMade by `make chaos` (`python -m tests.chaos.edges docs/edges.md`) on "
        f"{datetime.now(UTC):%Y-%m-%d}, "
        f"{os.cpu_count()} {platform.machine()} cores shared with other work, in {minutes:.0f} minutes.\n\n"
        "What people bring, made at random: each case must end in a right result, in a row of the index, or in one\n"
        "sentence. An exception, a hang, unbounded memory, a lost file and a result that is not the right one are "
        "faults.\n\n"
        "| what | seeds | cases | seconds | faults | how they ended |\n|---|---|---|---|---|---|\n"
    ]
    for name, tally in tallies.items():
        ends = ", ".join(f"{count} {end}" for end, count in tally.ends.most_common())
        lines.append(
            f"| {name} | {tally.seeds} | {tally.cases} | {tally.seconds:.0f} | {len(tally.faults)} | {ends} |\n"
        )
    faults = [fault for tally in tallies.values() for fault in tally.faults]
    if faults:
        lines.append("\n## Faults\n\n" + "".join(f"- `{fault}`\n" for fault in faults))
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.edges", description=__doc__)
    parser.add_argument("file", type=Path, help="where the table goes")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=101, help="the first seed")
    parsed = parser.parse_args()
    place = parsed.file.absolute()
    tallies = {name: Tally() for name in KINDS}
    for seed in range(parsed.first, parsed.first + parsed.seeds):
        for name, (fuzz, count) in KINDS.items():
            began = time.monotonic()
            found = fuzz(seed, count)
            tallies[name].add(found, time.monotonic() - began)
            print(seed, name, found.faults or "no fault", flush=True)  # noqa: T201
            place.write_text(markdown(tallies))


if __name__ == "__main__":
    main()
