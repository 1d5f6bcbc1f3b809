"""Which of timm's networks are explained, and why others are not: one of each name, with random weights.

``python -m vbp.evidence.zootimm docs/zoo-timm.md`` writes the page; it may be stopped, and goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vbp.errors import VBPError
from vbp.evidence.page import table
from vbp.evidence.receptive import enliven, problems
from vbp.saliency.trace import trace
from vbp.saliency.visualbackprop import VisualBackProp

LARGEST = 60_000_000
SIZE = (96, 128)
"""Rows and columns of the images of the check: a multiple of 32, which some networks need."""

Row = dict[str, Any]


def look(name: str, check: bool) -> Row | None:
    """Trace a network without weights; with `check` also explain two images. None: it has too many parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False).eval()
        parameters = sum(one.numel() for one in model.parameters())
        if parameters > LARGEST:
            return None
        row = {"name": name, "family": type(model).__module__.rpartition(".")[2], "parameters": parameters}
        try:
            row["stages"], row["reason"] = len(trace(model).stages), ""
        except VBPError as error:
            row["stages"], row["reason"] = 0, str(error)
        if check and row["stages"]:
            torch.manual_seed(0)
            row["problem"] = found_wrong(timm.create_model(name, pretrained=False).eval())
    return row


def found_wrong(model: nn.Module) -> str:
    """What is wrong with the masks of two images and with the geometry, in words; empty: nothing."""
    enliven(model)
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    vbp = VisualBackProp(model)
    with torch.inference_mode():
        masks, alone = vbp(images), vbp(images[1:])
        result = vbp.explain(images)
        output = model(images)
    same = [torch.equal(one, other) for one, other in _pairs(result.output, output)]
    findings = {
        f"mask of shape {tuple(masks.shape)}": masks.shape != (2, 1, *SIZE),
        "not finite": not bool(result.finite.all()),
        "outside [0, 1]": not (masks.min() >= 0 and masks.max() <= 1),
        "flat": bool(result.flat.any()),
        "images influence each other": not torch.allclose(masks[1:], alone, rtol=0, atol=1e-6),
        "the output is another": not all(same),
    }
    wrong = [finding for finding, found in findings.items() if found]
    return "; ".join([*wrong, *problems(model, SIZE)[:1]])


def _pairs(one: Any, other: Any) -> Iterable[tuple[Any, Any]]:
    return zip(one, other, strict=True) if isinstance(one, tuple | list) else [(one, other)]


def in_turn(names: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The names by family of names, the first of each first and to be checked, so that a part stands for the whole."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(re.split(r"[\d_]", name.removeprefix("test_"))[0], []).append(name)
    for place in range(max(map(len, families.values()))):
        for members in families.values():
            if place < len(members):
                yield members[place], place == 0


def page(rows: list[Row], names: int) -> str:
    """The page: counts, a table by family, and the reasons by family."""
    explained = sum(row["stages"] > 0 for row in rows)
    checked = [row for row in rows if "problem" in row]
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    lines = [
        (
            family,
            f"{sum(row['stages'] > 0 for row in members)} of {len(members)}",
            "; ".join(sorted({_kind(row["reason"]) for row in members if row["reason"]})),
        )
        for family, members in sorted(families.items())
    ]
    wrong = [(row["name"], row["problem"]) for row in checked if row["problem"]]
    looked, right = len(rows), len(checked) - len(wrong)
    height, width = SIZE
    introduction = f"""# The networks of timm

Made by `python -m vbp.evidence.zootimm docs/zoo-timm.md`, with random weights. timm has {names} names. Looked at were
{looked} networks of at most {LARGEST // 1_000_000} million parameters; {explained} of them are explained.

Of {len(checked)}, two images of {height}x{width} pixels were explained, too. The mask has the input's size, is
finite, in [0, 1] and not flat; it is the same alone as in the batch; the network's output is bit-equal. In every
stage, a pixel depends by autograd on the pixels of its window, and on those alone. {right} of these have no fault.

torch {torch.__version__}, timm {timm.__version__}, {platform.machine()} CPU.

"""
    faults = f"\n{table(('network', 'fault'), wrong)}\n" if wrong else ""
    return f"{introduction}{table(('family', 'explained', 'why the others are not'), lines)}\n{faults}"


def _kind(reason: str) -> str:
    """A reason without the network's name and its layers' numbers."""
    for pattern, kind in (
        (", for attention in ", "attention over pixels"),
        ("no activation behind", "no convolution with an activation"),
        ("no 2-d convolution", "no convolution"),
        ("moves pixels", "pixels are moved between windows or into a row"),
        ("cannot be traced", "cannot be traced"),
        ("something else each time", "keeps results of an earlier pass"),
    ):
        if pattern in reason:
            return kind
    return re.sub(r"^\w+ has ", "", reason.partition(":")[0])


def main() -> None:
    """Look at what was not looked at yet, and write the page after every network."""
    parser = argparse.ArgumentParser(prog="python -m vbp.evidence.zootimm", description=__doc__)
    parser.add_argument("file", type=Path, help="the page to write")
    parser.add_argument("--rows", type=Path, default=Path("zoo-timm.jsonl"), help="what was found so far")
    parser.add_argument("--models", nargs="+", default=timm.list_models(), help="default: all of timm")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = options.rows.read_text().splitlines() if options.rows.exists() else []
    rows: list[Row] = [json.loads(line) for line in known]
    done = {row["name"] for row in rows}
    for name, check in in_turn(options.models):
        if name not in done:
            row = look(name, check) or {"name": name}
            rows.append(row)
            with options.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
        options.file.write_text(page([row for row in rows if "family" in row], len(options.models)))


if __name__ == "__main__":
    main()
