"""obstore and fsspec compared: rates of small objects in one bucket.

``python -m vbp.evidence.stores URL`` writes, lists and reads objects of 20 kB below a new folder of the URL by both,
16 requests at a time, prints objects a second, and removes all. With ``--folders 10`` it compares listings instead, of
so many folders with ``--objects`` tiny objects each: page after page, and as ``vbp`` lists, large folders side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from vbp.errors import UsageError
from vbp.evidence.timing import Case, Rate, clocked, measure
from vbp.storage.files import Folder
from vbp.storage.stores.objects import open_objects
from vbp.storage.stores.order import in_byte_order

BYTES = 20_000
THREADS = 16
BY_FSSPEC: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {}},
    "gs": {"consistency": None},
    "az": {"max_concurrency": None},
}
"""For each protocol an option that obstore does not know and that changes nothing."""


def compare(url: str, options: Mapping[str, Any], objects: int, rounds: int) -> dict[str, Rate]:
    """Rates by the names ``write by obstore``, ``list by fsspec`` and so on.

    Args:
        url: a bucket or a folder of one, ``s3://``, ``gs://`` or ``az://``.
        options: non-secret options by URL prefix.
        objects: how many to write in a round.
        rounds: how often each is timed, after one warm-up.
    """
    protocol = url.partition("://")[0]
    prefix = f"{protocol}://"
    plain = {**options.get(prefix, {})}
    home = f"{url.rstrip('/')}/{uuid.uuid4().hex}"
    folders = {
        "obstore": Folder(f"{home}/o", {prefix: plain}),
        "fsspec": Folder(f"{home}/f", {prefix: plain | BY_FSSPEC[protocol]}),
    }
    try:
        found = [case for name, folder in folders.items() for case in cases(name, folder, objects)]
        side_by_side = sorted(found, key=lambda case: case.name.partition(" ")[0], reverse=True)
        return measure(side_by_side, rounds, lambda line: None)
    finally:
        with ThreadPoolExecutor(THREADS) as pool:
            for folder in folders.values():
                list(pool.map(folder.delete, folder.list()))


def compare_listings(url: str, options: Mapping[str, Any], folders: int, objects: int, rounds: int) -> dict[str, Rate]:
    """Rates by the names ``page after page`` and ``side by side``.

    Args:
        url: as for ``compare``.
        options: as for ``compare``, and such that obstore serves.
        folders: how many to list.
        objects: how many there are in each.
        rounds: as for ``compare``.
    """
    home = Folder(f"{url.rstrip('/')}/{uuid.uuid4().hex}", options)
    protocol, _, root = home.url.partition("://")
    opened = open_objects(f"{protocol}://{root.partition('/')[0]}", options)
    if opened is None:
        raise UsageError(f"{url} is not served by obstore; give a bucket of S3, Google Cloud Storage or Azure")
    store = opened[0]
    names = [f"{number // objects:06d}/{number % objects:06d}.png" for number in range(folders * objects)]
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            list(pool.map(lambda name: home.write(name, b"."), names))
            found = [
                _case("page after page", lambda: list(in_byte_order(store.listed(root))), len(names)),
                _case("side by side", lambda: list(store.walk(root)), len(names)),
            ]
            return measure(found, rounds, lambda line: None)
        finally:
            list(pool.map(home.delete, names))


def cases(name: str, folder: Folder, objects: int) -> Iterator[Case]:
    """Writing, reading and listing so many small objects, in this order; they stay in `folder`."""
    names, data = [f"{number // 100:03d}/{number:06d}.png" for number in range(objects)], os.urandom(BYTES)

    def in_threads(work: Callable[[str], Any]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, names))

    yield _case(f"write by {name}", lambda: in_threads(lambda path: folder.write(path, data)), objects)
    yield _case(f"read by {name}", partial(in_threads, folder.read), objects)
    yield _case(f"list by {name}", lambda: folder.list(), objects)


def _case(name: str, work: Callable[[], Any], objects: int) -> Case:
    return Case("storage", name, clocked(work, objects), "objects/s")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m vbp.evidence.stores", description=__doc__)
    parser.add_argument("url", help="a bucket, or a folder of one")
    parser.add_argument("--objects", type=int, default=500, help="in a round, or in a folder (default: %(default)s)")
    parser.add_argument("--folders", type=int, help="compare listings of so many folders")
    parser.add_argument("--rounds", type=int, default=3, help="timings of each case (default: %(default)s)")
    parser.add_argument("--storage-options", type=json.loads, default={}, help="as for vbp explain")
    asked = parser.parse_args()
    sizes = (asked.objects, asked.rounds)
    if asked.folders:
        rates = compare_listings(asked.url, asked.storage_options, asked.folders, *sizes)
    else:
        rates = compare(asked.url, asked.storage_options, *sizes)
    for name, rate in rates.items():
        print(f"{name:18} {rate.median:8.0f}/s  ({min(rate.rates):.0f} to {max(rate.rates):.0f})")  # noqa: T201


if __name__ == "__main__":
    main()
