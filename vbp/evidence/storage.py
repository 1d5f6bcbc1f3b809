"""The part ``storage``: writing, reading and listing small objects in one place, as vbp does it."""

from __future__ import annotations

import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from vbp.evidence.stores import BYTES, THREADS, cases
from vbp.evidence.timing import Findings, Setup, measure
from vbp.storage.files import Folder


def storage(setup: Setup, objects: int = 500) -> Findings:
    """Measure so many objects in a new folder of the place, and remove them."""
    with ExitStack() as stack:
        place = setup.place or stack.enter_context(tempfile.TemporaryDirectory(prefix="vbp-bench-"))
        folder = Folder(place, setup.storage_options).child(f"vbp-bench-{uuid.uuid4().hex}")
        try:
            name = f"{THREADS} threads, {BYTES // 1000} kB, {setup.place or 'a local folder'}"
            rates = measure([*cases(name, folder, objects)], setup.rounds, setup.report)
        finally:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(folder.delete, folder.list()))
    return Findings([*rates.values()])
