"""Copies of large arrays past the processor's caches.

For each batch a GPU worker's process copies 19 MB of pixels into pinned memory, and 26 MB of masks and overlays into
Ray's store, and does not read the copies.  Through the caches such a copy also reads what it overwrites.  glibc writes
past them from a size that it takes from the caches' own, which may be more than any array has: 192 MB on a virtual
machine with two cores of an EPYC.
"""

from __future__ import annotations

import os

TUNABLES = "GLIBC_TUNABLES"
"""Environment variable that glibc reads when a process starts; other libraries of C do not know it."""
PAST_CACHES = 2**20
"""Bytes from which a copy goes past the caches; less may be read again at once, while it is in them."""


def environment() -> dict[str, str]:
    """What a process that makes such copies starts with; nothing if you have set the variable yourself."""
    return {} if TUNABLES in os.environ else {TUNABLES: f"glibc.cpu.x86_non_temporal_threshold={PAST_CACHES:#x}"}


def on_any_node() -> dict[str, str]:
    """The same for Ray, which puts in what the variable is on the node, or nothing.

    That comes first, because newer versions of glibc take no value that ends with a colon.
    """
    return {name: f"${{{name}}}:{value}" for name, value in environment().items()}
