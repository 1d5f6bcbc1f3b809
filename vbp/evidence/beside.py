"""Two versions of vbp, timed in alternating rounds: writing results and parts, and the resume of a finished run.

``python -m vbp.evidence.beside OTHER`` prints the table. OTHER is a checkout of the other version (``git worktree add
OTHER COMMIT``). Both versions run their own commands, `explain` and ``vbp.evidence.scale``, in the same Python.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from vbp.evidence.page import number, table
from vbp.evidence.scale import CHECKPOINT, RESUMED, tiny_photos

COMMITTED = 1000
"""Images, in parts of at most `SHARD`."""
SHARD = 8
OWN = Path(__file__).parents[2]


def measured(tree: Path, images: int, resumed: int) -> dict[str, float]:
    """One round of one version: seconds by name."""
    with tempfile.TemporaryDirectory(prefix="vbp-beside-") as folder:
        tiny_photos(Path(folder, "photos"), images)
        settings = ["--weights", CHECKPOINT, "--size", "32", "--runner", "local", "--shard-size", str(SHARD), "--json"]
        explain = ["vbp.cli", "explain", f"{folder}/photos", f"{folder}/out", *settings]
        summary = json.loads(_run(tree, explain))
        _run(
            tree, ["vbp.evidence.scale", f"{folder}/page.md", "--parts", "resume", "--divide", str(RESUMED // resumed)]
        )
        return {
            f"results and parts of {images:,} images, written": summary["stage_seconds"]["write"],
            **resume_in(Path(folder, "page.md").read_text()),
        }


def resume_in(page: str) -> dict[str, float]:
    """The times on a page of ``vbp.evidence.scale``: seconds by the clock and seconds of CPU, by name."""
    rows = re.findall(r"^\| (the whole command[^|]*?) *\| ([\d,.]+) s .*\| ([\d.]+) s of CPU", page, re.MULTILINE)
    found: dict[str, float] = {}
    for name, seconds, cpu in rows:
        found[name] = float(seconds.replace(",", ""))
        found[f"{name}, of CPU"] = float(cpu)
    return found


def compared(turns: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The rounds of each version as a table: median, and least to greatest."""
    rows = []
    for name in next(iter(turns.values()))[0]:
        cells = []
        for found in turns.values():
            seconds = [each[name] for each in found]
            spread = f"{number(min(seconds))} to {number(max(seconds))}"
            cells.append(f"{number(statistics.median(seconds))} s ({spread})")
        rows.append([name, *cells])
    return table(["seconds", *turns], rows)


def _run(tree: Path, command: list[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(tree), "RAY_AUTH_MODE": "disabled"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else each command compiles the sources anew
    done = subprocess.run([sys.executable, "-m", *command], env=environment, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tree}: {command} ended with {done.returncode}: {done.stderr[-1000:]}")
    return done.stdout


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m vbp.evidence.beside", description=__doc__)
    parser.add_argument("other", type=Path, help="a checkout of another version")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--images", type=int, default=COMMITTED, help="explained in each turn")
    parser.add_argument("--resumed", type=int, default=RESUMED, help="images of the finished run")
    options = parser.parse_args()
    turns: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(options.rounds):
        for name, tree in (("other", options.other.absolute()), ("this", OWN)):
            turns[name].append(measured(tree, options.images, options.resumed))
    print(compared(turns))  # noqa: T201


if __name__ == "__main__":
    main()
