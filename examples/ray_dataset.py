"""Use the steps in a Ray Dataset of your own, with a network of your own.

Run::

    python examples/ray_dataset.py photos masks

A step takes a dictionary of columns and returns one; each row needs a ``key``. What fails keeps its row, with a reason.
"""

import sys
from pathlib import Path

import ray
from torch import nn

from vbp.networks.preprocessing import Preprocessing
from vbp.pipeline.steps import Decode, Encode, Explain, Fetch

SEEN = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))  # what the network was trained to see

SUFFIXES = (".jpg", ".jpeg", ".png")


def network() -> nn.Module:
    """Stands for yours; called once in each worker."""
    return nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())


def main(photos: str, masks: str) -> None:
    """Write a mask for each photo."""
    paths = [path for path in sorted(Path(photos).resolve().rglob("*")) if path.suffix.lower() in SUFFIXES]
    rows = ray.data.from_items([{"key": f"{path.parent.name}-{path.name}", "uri": str(path)} for path in paths])
    pixels = rows.map_batches(Fetch("")).map_batches(Decode(96))
    explained = pixels.map_batches(
        Explain, fn_constructor_args=(network,), fn_constructor_kwargs={"preprocessing": SEEN}, concurrency=1
    )
    Path(masks).mkdir(parents=True, exist_ok=True)
    for row in explained.map_batches(Encode(("mask",))).iter_rows():
        if row["file_mask"] is None:
            print(f"{row['key']}: {row['error_stage']}: {row['error_message']}")
        else:
            Path(masks, f"{row['key']}.png").write_bytes(row["file_mask"])


if __name__ == "__main__":
    main(*sys.argv[1:])
