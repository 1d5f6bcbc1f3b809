"""All orders of two attempts with one switch, and a sample of those with two: ``python -m tests.protocol``."""

import argparse
import random
import shutil
import tempfile
from collections import Counter

from tests.protocol.model import SCENES, excused, explore, requests


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.protocol", description=__doc__)
    parser.add_argument("--pairs", type=int, default=200, help="orders of two switches in each scene; 0: none")
    parser.add_argument("--seed", type=int, default=500)
    parser.add_argument("--kind", choices=("bucket", "disk"))
    options = parser.parse_args()
    rng, bad = random.Random(options.seed), 0
    for kind in (options.kind,) if options.kind else ("bucket", "disk"):
        for name, scene in SCENES.items():
            made: list[str] = []

            def place(kind: str = kind, made: list[str] = made) -> str:
                if kind == "bucket":
                    return kind
                while made:
                    shutil.rmtree(made.pop(), ignore_errors=True)
                made.append(tempfile.mkdtemp(prefix="vbp-model-"))
                return made[-1]

            first, second = requests(place, scene.first, scene.before), requests(place, scene.second, scene.before)
            orders = [(stop, None, False) for stop in range(first)]
            orders += [(rng.randrange(first), rng.randrange(second), rng.random() < 0.5) for _ in range(options.pairs)]
            counts = Counter[str]()
            for order in orders:
                outcome = explore(place, scene, *order)
                kindness = "sound" if not outcome.faults else "late deletion" if excused(outcome, kind) else "WRONG"
                counts[kindness] += 1
                if kindness == "WRONG":
                    bad += 1
                    print(kind, name, order, outcome, flush=True)  # noqa: T201
            print(f"{kind} {name}: {first} and {second} requests, {dict(counts)}", flush=True)  # noqa: T201
            while made:
                shutil.rmtree(made.pop(), ignore_errors=True)
    raise SystemExit(bool(bad))


main()
