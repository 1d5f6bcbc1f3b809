"""The check as a whole: sections one after the other, each in the time that is left to it, and one result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from vbp.errors import UsageError
from vbp.evidence.gpucheck.limited import limited
from vbp.evidence.gpucheck.limits import told
from vbp.evidence.gpucheck.scope import Found, Piece, Scope
from vbp.evidence.gpucheck.sections import SECTIONS, Section, about
from vbp.evidence.timing import Figure

SECONDS = 345.0
"""Of the whole check, unless told otherwise."""
BATCH, SIZE, ROUNDS = 128, 224, 5
DRY = "A dry check: small networks and images on a CPU. Its figures mean nothing."
DRY_BATCH, DRY_SIZE, DRY_ROUNDS = 2, 32, 1


def gpu_check(
    names: Sequence[str],
    *,
    seconds: float,
    is_dry: bool,
    weights: str | None,
    report: Callable[[dict[str, Any], str], None],
) -> dict[str, Any]:
    """Check this machine's GPU.

    Args:
        names: of `SECTIONS`; they are done in their own order.
        seconds: for all together. What one section leaves, the next may use.
        is_dry: everything small and on the CPU, to try the check itself.
        weights: a checkpoint of VGG16; None: random weights.
        report: gets the result so far, and a line of progress, after each section.

    Returns:
        JSON values as of ``vbp benchmark``: ``machine``, ``batch_size``, ``rounds``, ``rates`` (none), ``figures``
        (with targets), ``notes`` (what is not whole, and why), and ``sections`` (the seconds that each took).

    Raises:
        UsageError: a section does not exist, torch sees no GPU, or cannot even be asked.
    """
    if unknown := set(names) - SECTIONS.keys():
        raise UsageError(f"--sections names {min(unknown)!r}, which is none of {', '.join(SECTIONS)}.")
    started = time.monotonic()
    device: Literal["cpu", "cuda"] = "cpu" if is_dry else "cuda"
    scope = Scope(
        device=device,
        batch_size=DRY_BATCH if is_dry else BATCH,
        size=DRY_SIZE if is_dry else SIZE,
        rounds=DRY_ROUNDS if is_dry else ROUNDS,
        weights=weights,
        is_dry=is_dry,
    )
    known: list[dict[str, Any] | None] = []
    trouble = limited(about, device, seconds, known.append)
    if trouble:
        raise UsageError(
            f"what this machine has could not be found out ({trouble}): see above, or give a longer --budget."
        )
    if known[0] is None:
        raise UsageError("torch sees no CUDA device: vbp gpu-check needs one; --dry tries it on a CPU.")
    found: dict[str, Any] = {
        "machine": known[0], "batch_size": scope.batch_size, "rounds": scope.rounds,
        "rates": [], "figures": [], "notes": [DRY] if is_dry else [], "sections": {},
    }  # fmt: skip

    def receive(thing: Figure | str) -> None:
        if isinstance(thing, str):
            found["notes"].append(thing)
        else:
            found["figures"].append(thing.as_json())

    chosen = {name: section for name, section in SECTIONS.items() if name in names}
    whole, planned = sum(section.seconds for section in chosen.values()), 0.0
    for name, section in chosen.items():
        planned += section.seconds
        begun = time.monotonic()
        trouble = _whole(name, section, scope, started + seconds * planned / whole, receive)
        found["sections"][name] = round(time.monotonic() - begun, 1)
        if trouble:
            found["notes"].append(f"{name} is not whole: {trouble}.")
        report(_with_limits(found), f"{name}: {found['sections'][name]} s{f', {trouble}' if trouble else ''}")
    return _with_limits(found)


def _whole(name: str, section: Section, scope: Scope, until: float, receive: Callable[[Figure | str], None]) -> str:
    """Do a section; where a piece ends its process, go on behind that piece in another one.

    Returns:
        Why it is not whole; empty if it is.
    """
    pieces, troubles = list[str](), list[str]()

    def told(thing: Found) -> None:
        if isinstance(thing, Piece):
            pieces.append(thing.name)
        elif isinstance(thing, str):
            receive(f"{', '.join([name, *pieces[-1:]])}: {thing}")
        else:
            receive(thing)

    while True:
        behind = tuple(pieces)
        trouble = limited(section, replace(scope, behind=behind), until - time.monotonic(), told)
        if not trouble:
            return "; ".join(troubles)
        troubles.append(f"{trouble}, in {pieces[-1]}" if pieces else trouble)
        if len(pieces) == len(behind) or time.monotonic() >= until:
            return "; ".join(troubles)


def _with_limits(found: Mapping[str, Any]) -> dict[str, Any]:
    return {**found, "figures": list(told(found["figures"]))}
