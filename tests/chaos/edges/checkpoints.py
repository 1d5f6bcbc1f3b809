"""A structure-aware fuzz of checkpoints: each gives exactly the right weights, or one error message.

``python -m tests.chaos.edges.checkpoints SEED COUNT`` tries that many in this process; `fuzz` does so in one of
its own, so that a crash or a hang is found too. A case is named by seed and number: `case` makes it again.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

SECONDS = 20.0
"""CPU time that one file may take; the first refusal builds all networks of torchvision to say which fits."""
MEMORY_MIB = 1500
"""What the process may grow by; files are under a megabyte."""
CONVOLUTIONS = {"vgg11": (0, 3, 6, 8, 11, 13, 16, 18), "vgg13": (0, 2, 5, 7, 10, 12, 15, 17, 20, 22)}
NESTS = ("state_dict", "model", "net", "weights", "a.b", "student", "0", "checkpoint", "module", "params")
AVERAGED = ("ema", "state_dict_ema", "model_ema", "swa_model")
PREFIXES = ("", "model.", "net.", "backbone.", "my.deep.net.", "encoder_q.", "_net.", "0.", "fc.", "features.")
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module")
DTYPES = (torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)


def weights(name: str, seed: int) -> dict[str, Tensor]:
    """A narrow network with torchvision's names and three classes."""
    generator, found, channels = torch.Generator().manual_seed(seed), {}, 3
    for number in CONVOLUTIONS[name]:
        found[f"features.{number}.weight"] = torch.rand((4, channels, 3, 3), generator=generator)
        found[f"features.{number}.bias"] = torch.rand(4, generator=generator)
        channels = 4
    for number, shape in ((0, (8, 196)), (3, (8, 8)), (6, (3, 8))):
        found[f"classifier.{number}.weight"] = torch.rand(shape, generator=generator)
        found[f"classifier.{number}.bias"] = torch.rand(shape[0], generator=generator)
    return found


KNOWN, OTHER, FOREIGN = weights("vgg11", 1), weights("vgg11", 2), weights("vgg13", 3)


@dataclass(frozen=True)
class Case:
    """A file, and how it may end."""

    what: str
    data: bytes
    known: dict[str, Tensor] | None
    """What it holds; None where it must be refused."""
    whole: bool
    """Whether it must be read."""


def case(seed: int, index: int) -> Case:
    """The file of this number."""
    rng = random.Random(f"{seed}/{index}")
    what, tensors, known = _content(rng)
    as_safetensors = rng.random() < 0.3
    prefix = rng.choice(PREFIXES)
    named = {prefix + _wrapped(rng, key): value for key, value in tensors.items()}
    if as_safetensors:
        data, kind = to_safetensors(named), "safetensors"
    else:
        content = _nested(rng, OrderedDict(named) if rng.random() < 0.5 else named)
        if known is not None and rng.random() < 0.2:
            content, known, what = _twins(rng, content, prefix)
        zipped = rng.random() < 0.8
        data, kind = _saved(content, zipped), "zip" if zipped else "old"
    if rng.random() < 0.4:
        damage, data = _damaged(rng, data, kind)
        return Case(f"{what}, {kind}, {damage}", data, known, whole=False)
    return Case(f"{what}, {kind}", data, known, whole=known is not None)


def _content(rng: random.Random) -> tuple[str, dict[str, Tensor], dict[str, Tensor] | None]:
    """What the file is about, its tensors, and what is right: the weights, or (None) a refusal."""
    dtype = rng.choice(DTYPES)
    tensors = {key: value.to(dtype) for key, value in KNOWN.items()}
    features = {key: value for key, value in tensors.items() if key.startswith("features.")}
    if rng.random() < 0.3:
        tensors |= {"total_ops": torch.zeros(1), "features.0.total_ops": torch.zeros(1), "norm.mean": torch.zeros(3)}
    match rng.randrange(9):
        case 0:
            return "another network", FOREIGN, None
        case 1:
            key = rng.choice(sorted(features))
            return f"without {key}", {each: value for each, value in tensors.items() if each != key}, None
        case 2:
            key = rng.choice(sorted(key for key in features if key.endswith("weight")))
            return f"odd kernel of {key}", tensors | {key: torch.rand(4, 4, 5, 5)}, None
        case 3:
            return (
                "a norm between",
                tensors | {"features.1.weight": torch.rand(4), "features.1.bias": torch.rand(4)},
                None,
            )
        case 4:
            key, value = rng.choice(sorted(features)), rng.choice([float("nan"), float("inf"), float("-inf")])
            return f"{value} in {key}", tensors | {key: torch.full_like(tensors[key], value)}, None
        case 5:
            return "features alone", features, features
        case 6:
            return "own head", features | {"head.weight": torch.rand(5, 4), "head.bias": torch.rand(5)}, features
        case _:
            return "all", tensors, {key: value for key, value in tensors.items() if key in KNOWN}


def _wrapped(rng: random.Random, key: str) -> str:
    parts = key.split(".")
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        parts.insert(rng.randrange(len(parts)), rng.choice(WRAPPERS))
    return ".".join(parts)


def _nested(rng: random.Random, content: Any) -> Any:
    for _ in range(rng.randrange(5)):
        name = rng.choice(NESTS)
        content = [content] if name == "0" else {**_company(rng), name: content, **_company(rng)}
    return content


def _company(rng: random.Random) -> dict[str, Any]:
    """What training scripts keep beside the weights."""
    every = {
        "epoch": 3,
        "best": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1, data=Path("data")),
        "losses": deque([1.0], maxlen=3),
        "array": np.arange(3),
        "optimizer": {"state": {0: {"exp_avg": torch.rand(4, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]},
        "opt": {"momentum": dict(OTHER)},
        "criterion.weight": torch.rand(3),
        "nothing": None,
    }
    return {key: every[key] for key in rng.sample(sorted(every), rng.randrange(3))}


def _twins(rng: random.Random, content: Any, prefix: str) -> tuple[Any, dict[str, Tensor] | None, str]:
    """The network beside another of its kind: averaged, or nobody knows which is meant."""
    other = {prefix + key: value for key, value in OTHER.items()}
    if rng.random() < 0.5:
        return {"one": content, rng.choice(AVERAGED): other}, OTHER, "an average beside"
    return {"one": content, "another": other}, None, "two of a kind"


def _saved(content: Any, zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def _damaged(rng: random.Random, data: bytes, kind: str) -> tuple[str, bytes]:
    """A damage that its format can show: the tensors of all but zip files have no check sums."""
    at = rng.randrange(len(data))
    if kind == "safetensors":
        start = 8 + int.from_bytes(data[:8], "little")
    else:
        start = len(data) if kind == "zip" else 0
    match rng.randrange(4):
        case 0:
            return f"cut at {at}", data[:at]
        case 1:
            junk = rng.choice([b"<html>", b"\0" * 8, b"PK\x03\x04", b"{", b"\x80\x02", rng.randbytes(16)])
            return f"begins {junk!r}", junk + data
        case 2 if start:
            at = rng.randrange(start)
            return f"cut out at {at}", data[:at] + data[at + rng.randint(1, 9) :]
        case _ if start:
            for _ in range(rng.choice([1, 1, 3, 20])):
                at = rng.randrange(start)
                data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
            return f"flipped at {at}", data
        case _:
            return "empty", b""


def judged(made: Case, folder: Path) -> str:
    """How the file ends: ``weights`` or ``refused``. A false fit is an AssertionError; all else escapes."""
    from vbp.errors import VBPError
    from vbp.networks.models import load_model

    file = folder / "some.pth"
    file.write_bytes(made.data)
    try:
        model = load_model("vgg11", str(file))
    except VBPError as error:
        said = str(error)
        assert not made.whole, f"refused: {said}"
        one_sentence = len(said) > 20 and "\n" not in said and "weights_only" not in said
        assert one_sentence, f"no sentence: {said}"
        return "refused"
    assert made.known is not None, f"taken, with {model.notes}"
    found = model.network.state_dict()
    wanted = {key: value.float() for key, value in made.known.items()}
    has_head = model.num_classes is not None
    expected = {key for key in wanted if has_head or key.startswith("features.")}
    assert set(found) == expected, f"holds {sorted(set(found) ^ expected)[:3]}, with {model.notes}"
    assert not made.whole or has_head == any(key.startswith("classifier.") for key in wanted), "a classifier was lost"
    wrong = [key for key, value in found.items() if not torch.equal(value, wanted[key])]
    assert not wrong, f"wrong values of {wrong[:3]}"
    return "weights"


@dataclass
class Outcome:
    """What came of the cases of one seed."""

    seed: int
    cases: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    """``weights`` or ``refused``."""
    seconds: float = 0.0
    """Of the slowest case."""
    grown_mib: int = 0
    faults: list[str] = field(default_factory=list)


def run(seed: int, count: int) -> Iterator[dict[str, object]]:
    """Tries the cases in this process: for each its number before, and what came of it after."""
    torch.set_num_threads(1)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(prefix="vbp-checkpoints-") as folder:
        for index in range(count):
            made = case(seed, index)
            yield {"case": index, "name": made.what}
            begun = time.process_time()
            try:
                end, fault = judged(made, Path(folder)), ""
            except BaseException as error:
                end, fault = "fault", f"{type(error).__name__}: {error}"
            seconds = time.process_time() - begun
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024
            if seconds > SECONDS and index:
                fault = fault or f"took {seconds:.1f} s"
            elif grown > MEMORY_MIB:
                fault = fault or f"memory has grown by {grown} MiB"
            yield {"end": end, "fault": fault, "seconds": seconds, "grown": grown}


def fuzz(seed: int, count: int) -> Outcome:
    """Tries the cases in a process of its own, which a reader may crash or hang."""
    outcome = Outcome(seed)
    command = [sys.executable, "-W", "ignore", "-m", "tests.chaos.edges.checkpoints", str(seed), str(count)]
    last: dict[str, Any] = {"case": -1, "name": "start"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300 + count)
        lines, ended = done.stdout, f"exit {done.returncode}: {done.stderr[-300:]}" if done.returncode else ""
    except subprocess.TimeoutExpired as expired:
        lines, ended = (expired.stdout or b"").decode(), "hangs"
    for line in filter(None, lines.splitlines()):
        report = json.loads(line)
        if "case" in report:
            last = report
            continue
        outcome.cases += 1
        outcome.ends[report["end"]] += 1
        outcome.seconds = max(outcome.seconds, report["seconds"])
        outcome.grown_mib = max(outcome.grown_mib, report["grown"])
        if report["fault"]:
            outcome.faults.append(f"case({seed}, {last['case']}) {last['name']}: {report['fault']}")
    if ended:
        outcome.faults.append(f"case({seed}, {last['case']}) {last['name']}: {ended}")
    return outcome


if __name__ == "__main__":
    for report in run(int(sys.argv[1]), int(sys.argv[2])):
        print(json.dumps(report), flush=True)  # noqa: T201
