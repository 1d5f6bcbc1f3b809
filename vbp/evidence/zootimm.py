"""Which of timm's networks are explained, and why others are not: with random weights, one of each architecture.

``python -m vbp.evidence.zootimm docs/zoo-timm.md`` writes the page; it may be stopped, and goes on where it was.

An architecture is a file of timm and the set of its classes of layers that a network is made of. Of each, the smallest
network stands for those that are only wider or deeper. All are traced, then the explained ones are checked, then the
other names are traced.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from textwrap import fill
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from typing_extensions import override

from vbp.errors import VBPError
from vbp.evidence.page import table
from vbp.evidence.receptive import enliven, problems
from vbp.saliency.trace import trace
from vbp.saliency.visualbackprop import VisualBackProp

LARGEST = 60_000_000
SIZE = (96, 128)
"""Rows and columns of the images of the check: a multiple of 32, which some networks need."""
WEIGHINGS = {"softmax", "scaled_dot_product_attention", "multi_head_attention_forward"}
PRODUCTS = {"matmul", "__matmul__", "bmm", "baddbmm", "einsum"}
"""PyTorch's functions, by name, with which networks weigh pixels against each other."""

Row = dict[str, Any]
"""What is known of a name so far: its network, what tracing found, and what the check found."""


def survey(name: str) -> Row:
    """The network of a name: its file, its parameters, and a text that is the same for all of its architecture."""
    model = _made(name)
    family = type(model).__module__.rpartition(".")[2]
    layers = sorted({type(layer).__name__ for layer in model.modules()})
    return {
        "parameters": sum(one.numel() for one in model.parameters()),
        "family": family,
        "architecture": hashlib.sha1(" ".join([family, *layers]).encode()).hexdigest()[:12],
    }


def look(name: str) -> Row:
    """Trace a network without weights: its stages, or why it is refused, and whether it attends then."""
    model = _made(name)
    try:
        return {"stages": len(trace(model).stages), "reason": ""}
    except VBPError as error:
        return {"stages": 0, "reason": str(error), "attends": attends(model)}


def attends(model: nn.Module) -> bool:
    """Whether a network weighs pixels against each other, or passes them on one after the other.

    That is told by the names and kinds of its layers, and by what it calls when it runs, for whatever cannot be traced.
    """
    layers = list(model.modules())
    if any("Attention" in type(layer).__name__ or isinstance(layer, nn.RNNBase) for layer in layers):
        return True
    size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    device = next(model.requires_grad_(False).parameters()).device
    images = torch.empty(2, *size, device=device, requires_grad=True).clone()  # which layers in place may change
    watching = _Watching()
    with watching, suppress(Exception):  # what ran before it failed counts
        model(images)
    return watching.attends


class _Watching(TorchFunctionMode):
    """Looks for a softmax, or a product of two matrices that are both computed, as linear attention has it.

    What is computed from the images is told by its gradient, which no weight has here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attends = False

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in WEIGHINGS | PRODUCTS:
            computed = [one for one in pytree.tree_leaves(args) if isinstance(one, Tensor) and one.requires_grad]
            self.attends |= len(computed) >= (1 if name in WEIGHINGS else 2)
        return func(*args, **(kwargs or {}))


def check(name: str) -> Row:
    """Explain two images, and hold the geometry against autograd."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"problem": found_wrong(timm.create_model(name, pretrained=False).eval())}


def _made(name: str) -> nn.Module:
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model: nn.Module = timm.create_model(name, pretrained=False).eval()
        return model


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


def representatives(rows: dict[str, Row]) -> list[str]:
    """The smallest network of each architecture."""
    smallest: dict[str, str] = {}
    for name in sorted(rows, key=lambda name: (rows[name]["parameters"], name)):
        if rows[name]["parameters"] <= LARGEST:
            smallest.setdefault(rows[name]["architecture"], name)
    return list(smallest.values())


def page(rows: dict[str, Row]) -> str:
    """The page: counts, a table of families, and the reasons."""
    first = representatives(rows)
    looked = [rows[name] for name in first if "stages" in rows[name]]
    checked = [name for name in first if "problem" in rows[name]]
    wrong = [(name, rows[name]["problem"]) for name in checked if rows[name]["problem"]]
    small = [row for row in rows.values() if row["parameters"] <= LARGEST]
    traced = [row for row in small if "stages" in row]
    paragraphs = (
        f"Made by `python -m vbp.evidence.zootimm docs/zoo-timm.md`, with random weights. timm has {len(rows)} names, "
        f"{len(small)} of them with at most {LARGEST // 1_000_000} million parameters. An architecture is a file of "
        "timm and the set of classes of layers that a network is made of; its smallest network stands for those that "
        "are only wider or deeper.",
        f"{len(looked)} of {len(first)} architectures were looked at: {_share(looked)}.",
        f"{len(traced)} of the {len(small)} names were looked at: {_share(traced)}.",
        "Convolutional is a network that is explained, or one that is refused, has a convolution with an activation, "
        "and neither attention nor recurrence: no layer of PyTorch's recurrent ones or with Attention in its name, and "
        "when it runs, no softmax and no product of two matrices that are both computed, as linear attention has it.",
        f"Of {len(checked)} architectures, two images of {SIZE[0]}x{SIZE[1]} pixels were explained, too. The mask has "
        "the input's size, is finite, in [0, 1] and not flat; it is the same alone as in the batch; the network's "
        "output is bit-equal. In every stage, a pixel depends by autograd on the pixels of its window, and on those "
        f"alone. {len(checked) - len(wrong)} of these have no fault.",
        f"torch {torch.__version__}, timm {timm.__version__}, {platform.machine()} CPU.",
    )
    introduction = "\n\n".join(fill(text, 120, break_on_hyphens=False) for text in paragraphs)
    tables = [
        _families(looked),
        *([table(("network", "fault"), wrong)] if wrong else []),
        *([table(("convolutional and refused", "why"), refused)] if (refused := _refusals(rows)) else []),
    ]
    return "\n\n".join(["# The networks of timm", introduction, *tables]) + "\n"


def _share(rows: list[Row]) -> str:
    explained = sum(row["stages"] > 0 for row in rows)
    convolutional = sum(_is_convolutional(row) for row in rows)
    share = f", {explained / convolutional:.0%} of the {convolutional} convolutional ones" if convolutional else ""
    return f"{explained} are explained{share}"


def _is_convolutional(row: Row) -> bool:
    without = ("no 2-d convolution", "no activation behind")
    return row["stages"] > 0 or not (row["attends"] or any(text in row["reason"] for text in without))


def _families(rows: list[Row]) -> str:
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    lines = [
        (
            family,
            f"{sum(row['stages'] > 0 for row in members)} of {len(members)}",
            "; ".join(sorted({_kind(row) for row in members if row["reason"]})),
        )
        for family, members in sorted(families.items())
    ]
    return table(("family", "explained", "why the others are not"), lines)


def _refusals(rows: dict[str, Row]) -> list[tuple[str, str]]:
    return [
        (name, re.split(r"\. (?=[A-Z])", row["reason"])[0].replace("|", "/").rstrip("."))
        for name, row in sorted(rows.items())
        if row.get("reason") and _is_convolutional(row)
    ]


def _kind(row: Row) -> str:
    """A reason without the network's name and its layers' numbers."""
    for pattern, kind in (
        ("no activation behind", "no convolution with an activation"),
        ("no 2-d convolution", "no convolution"),
    ):
        if pattern in row["reason"]:
            return kind
    if row["attends"]:
        return "attention or recurrence"
    return re.sub(r"^\w+ (has an )?", "", row["reason"].partition(":")[0])


def steps(names: Iterable[str], rows: dict[str, Row]) -> Iterator[tuple[str, Row]]:
    """What is to be found of each name, in turn; `rows` grows between two steps."""
    for name in names:
        if name not in rows:
            yield name, survey(name)
    first = representatives(rows)
    for name in first:
        if "stages" not in rows[name]:
            yield name, look(name)
    for name in first:
        if rows[name]["stages"] and "problem" not in rows[name]:
            yield name, check(name)
    for name, row in sorted(rows.items()):
        if "stages" not in row and row["parameters"] <= LARGEST:
            yield name, look(name)


def main() -> None:
    """Find what is not known yet, and write the page after every step."""
    parser = argparse.ArgumentParser(prog="python -m vbp.evidence.zootimm", description=__doc__)
    parser.add_argument("file", type=Path, help="the page to write")
    parser.add_argument("--rows", type=Path, default=Path("zoo-timm.jsonl"), help="what was found so far")
    parser.add_argument("--models", nargs="+", default=timm.list_models(), help="default: all of timm")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Row] = {}
    for line in options.rows.read_text().splitlines() if options.rows.exists() else []:
        known = json.loads(line)
        rows.setdefault(known.pop("name"), {}).update(known)
    for name, found in steps(options.models, rows):
        rows.setdefault(name, {}).update(found)
        with options.rows.open("a") as file:
            file.write(json.dumps({"name": name, **found}) + "\n")
        options.file.write_text(page(rows))
    options.file.write_text(page(rows))


if __name__ == "__main__":
    main()
