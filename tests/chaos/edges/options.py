"""Random options, places and environments of `vbp explain`: each gives a run, or one error message before any work.

`python -m tests.chaos.edges.options --seeds 20` runs more of them than the test does. In this process, without Ray:
what starts is a run of one small image with the demo weights.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from click.testing import CliRunner
from PIL import Image

from vbp.cli import explain

SECONDS = 60
"""No case may take longer."""
CASES = 12
"""Of one seed."""
ODD = [
    "",
    " ",
    "-1",
    "0",
    "1e9",
    "nan",
    "é",
    "\x1b[31m",
    "a,b",
    "../..",
    "[",
    "{}",
    "null",
    "999999999999999999999",
    "%",
]
NUMBERS = ["1", "2", "auto", *ODD]
OPTIONS = {
    "--preset": ["paper", "reference", *ODD],
    "--stages": ["all", "last", "last,last", *ODD],
    "--size": ["32", "33", *ODD],
    "--fit": ["crop", "pad", "stretch", "original", *ODD],
    "--frame": ["network", "image", *ODD],
    "--batch-size": NUMBERS,
    "--smooth": ["0", "2", *ODD],
    "--noise": ["0.1", *ODD],
    "--select": ["all", "correct", *ODD],
    "--outputs": ["mask", "mask,overlay,input,maps", "mask,mask", *ODD],
    "--mask-format": ["png8", "png16", "npy", *ODD],
    "--layout": ["files", "webdataset", "none", *ODD],
    "--device": ["auto", "cpu", "cuda", *ODD],
    "--precision": ["auto", "float32", *ODD],
    "--resume-mode": ["resume", "overwrite", "fail", *ODD],
    "--max-failures": ["1%", "0", "1.5", "-1%", *ODD],
    "--max-bytes": ["100", "1000000", *ODD],
    "--limit": NUMBERS,
    "--shard-size": NUMBERS,
    "--workers": NUMBERS,
    "--node-labels": ["a=b", "a=in(b,c)", *ODD],
    "--classes": ["nothing.txt", "photos", *ODD],
    "--storage-options": [
        "{}", '{"s3://": {"endpoint_url": "127.0.0.1:1"}}', '{"s3://": {"secret": "x"}}', '{"s3://b": 3}', "[]", *ODD,
    ],
}  # fmt: skip
INPUTS = [
    "photos", "photos/", "./photos", "photos/cat/a.png", "nothing", "list.csv", "list.txt", "http:/h/x", "s3://",
    "s3:b", "s3://b//x", "s3://b/../x", "https://me:word@h/x", "http://127.0.0.1:1/?sig=word", "abc://x",
    "zip://x::y.zip", *ODD,
]  # fmt: skip
OUTPUTS = ["out", "out/", "deep/er/out", "photos/out", "s3:/b/out", "gs://b/./x", *INPUTS]
SURROUNDINGS = {
    "AWS_PROFILE": ["nobody", ""],
    "AWS_CONFIG_FILE": ["broken", "photos"],
    "AWS_ENDPOINT_URL": ["127.0.0.1:1", "http://127.0.0.1:1"],
    "GOOGLE_APPLICATION_CREDENTIALS": ["nothing.json", "broken"],
    "AZURE_STORAGE_CONNECTION_STRING": ["nonsense", "AccountName=x;AccountKey=y"],
    "RAY_ADDRESS": ["", "localhost:1", "ray://localhost:1", "nowhere", "localhost:x", "http://127.0.0.1:1"],
    "RAY_JOB_CONFIG_JSON_ENV_VAR": ["{}"],
}


@dataclass
class Case:
    """One command and what came of it."""

    arguments: list[str]
    surroundings: dict[str, str]
    exit_code: int = 0
    seconds: float = 0.0
    said: str = ""
    left: list[str] | None = None
    """What a refused run has changed below the folder it ran in."""

    @property
    def wrong(self) -> str:
        """What is not as it should be; empty where all is."""
        if self.seconds > SECONDS:
            return f"took {self.seconds:.0f} s"
        if self.exit_code not in (0, 2, 3) or "Traceback" in self.said:
            return f"exit {self.exit_code}: {self.said[-2000:]}"
        if self.exit_code == 2 and not self.said.strip():
            return "refused without a word"
        if self.exit_code == 2 and self.left:
            return f"refused, and left {self.left}"
        if "word@" in self.said or "sig=word" in self.said:
            return f"said a secret: {self.said}"
        return ""


def cases(seed: int, count: int = CASES) -> Iterator[Case]:
    """Draw commands; most have one thing or two that are odd."""
    rng = random.Random(seed)
    for _ in range(count):
        names = rng.sample(sorted(OPTIONS), rng.choice([0, 1, 1, 2, 4]))
        source = rng.choice(INPUTS) if rng.random() < 0.4 else "photos"
        output = rng.choice(OUTPUTS) if rng.random() < 0.4 else "out"
        options = [f"{name}={rng.choice(OPTIONS[name])}" for name in names]
        size = [] if "--size" in names else ["--size=32"]
        around = rng.sample(sorted(SURROUNDINGS), rng.choice([0, 0, 1]))
        surroundings = {name: rng.choice(SURROUNDINGS[name]) for name in around}
        yield Case([*size, "--weights=demo", "--runner=local", *options, "--", source, output], surroundings)


@contextmanager
def folder() -> Iterator[Path]:
    """A working folder with one image, two manifests and a broken file; ``../..`` is of the test, too."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="vbp-options-") as name:
        here = Path(name, "home", "work")
        (here / "photos" / "cat").mkdir(parents=True)
        Image.fromarray(np.full((40, 50, 3), 99, np.uint8)).save(here / "photos" / "cat" / "a.png")
        (here / "list.csv").write_text("uri\nphotos/cat/a.png\n")
        (here / "list.txt").write_text("photos/cat/a.png\nhttp://127.0.0.1:1/a.png?sig=word\n")
        (here / "broken").write_text("[[[ {")
        os.chdir(here)
        try:
            yield here
        finally:
            os.chdir(before)


def run(case: Case) -> Case:
    """Run the command in this process, in a folder of its own."""
    quiet = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_REGION": "us-east-1"}
    with folder() as here, patch.dict(os.environ, quiet | {"HOME": str(here.parent)} | case.surroundings):
        top = here.parents[1]
        before = sorted(top.rglob("*"))
        started = time.monotonic()
        result = CliRunner().invoke(explain, case.arguments)
        case.seconds = time.monotonic() - started
        case.exit_code, case.said = result.exit_code, result.output
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            case.said += f"\nTraceback: {result.exception!r}"
        case.left = [str(path.relative_to(top)) for path in sorted(top.rglob("*")) if path not in before]
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1)
    options = parser.parse_args()
    for seed in range(options.first, options.first + options.seeds):
        done = [run(case) for case in cases(seed)]
        slowest = max(case.seconds for case in done)
        print(f"seed {seed}: {[case.exit_code for case in done]}, slowest {slowest:.1f} s", flush=True)  # noqa: T201
        for case in done:
            if case.wrong:
                print(f"  WRONG {case.arguments} {case.surroundings}: {case.wrong}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
