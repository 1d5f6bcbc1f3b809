"""Take masks out of the tars of --layout webdataset: one by its row, and all of them one after the other.

Run::

    vbp explain photos out --weights demo --layout webdataset
    python examples/masks_from_tars.py out
"""

import json
import sys
import tarfile
from pathlib import Path

import pyarrow.dataset as ds

from vbp.images.encode import decode_mask
from vbp.storage.results import read_result


def main(out: str) -> None:
    """Open one mask by one request; then read a tar as any program can."""
    rows = ds.dataset(f"{out}/index").to_table(filter=ds.field("status") == "ok").to_pylist()
    mask_HW = decode_mask(read_result(rows[0]))  # the row says which bytes of which tar
    print(f"{rows[0]['key']}: {mask_HW.shape[1]} x {mask_HW.shape[0]}, mean {mask_HW.mean():.4f}")

    masks = 0
    for path in sorted(Path(out, "shards").rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".mask.png"):
                    name = member.name.removesuffix(".mask.png")
                    facts = json.load(tar.extractfile(f"{name}.json"))  # type: ignore[arg-type]
                    masks += 1
    print(f"{masks} masks in tars; the last is of {facts['key']}, which lies in the folder {facts['label']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
