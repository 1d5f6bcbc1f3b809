"""``vbp benchmark``: each part is timed on this machine, and compared with its limit, its rivals and its target."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vbp.errors import UsageError
from vbp.evidence.capabilities import capabilities as each_capability
from vbp.evidence.codecs import codecs
from vbp.evidence.engine import engine
from vbp.evidence.pipeline import pipeline
from vbp.evidence.scaling import scaling
from vbp.evidence.start import start
from vbp.evidence.storage import storage
from vbp.evidence.timing import Findings, Setup, machine
from vbp.evidence.worker import worker
from vbp.pipeline import RunConfig, prepare
from vbp.pipeline.hardware import common_precision, look

PARTS: Mapping[str, Callable[[Setup], Findings]] = {
    "engine": engine,
    "codecs": codecs,
    "storage": storage,
    "pipeline": pipeline,
    "worker": worker,
    "start": start,
    "scaling": scaling,
}


def benchmark(
    parts: Sequence[str],
    *,
    rounds: int,
    batch_size: int | None = None,
    capabilities: bool = False,
    place: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Measure some parts on this machine.

    Args:
        parts: of `PARTS`.
        rounds: how often each case is timed, after one warm-up.
        batch_size: images in one forward pass; None: what the main job takes on this device.
        capabilities: for the part engine: compare it only with the bare forward pass, as on each weaker processor.
        place: a folder or URL whose storage is measured; None: a temporary folder.
        storage_options: for it, non-secret, by URL prefix.
        report: gets lines of progress.

    Returns:
        JSON values: ``machine``, ``batch_size``, ``rounds``, ``rates``, ``figures`` (with targets), ``notes`` (what
        was left out).

    Raises:
        UsageError: `capabilities` is given with other parts than the engine.
    """
    if capabilities and "engine" not in parts:
        raise UsageError(f"--capabilities is of the part engine, which is not among {', '.join(parts)}.")
    # Under `ray job submit` too it is this machine that is measured; other nodes do not see its temporary files.
    os.environ.pop("RAY_ADDRESS", None)
    config = RunConfig(input="photos", output="out", batch_size=batch_size)
    device = prepare.choose_device(config)
    setup = Setup(
        batch_size=prepare.choose_batch_size(config, device, {}),
        asked=batch_size is not None,
        rounds=rounds,
        device=device,
        precisions=tuple(dict.fromkeys(("float32", common_precision(config.precision, None, [look(device)])))),
        place=place,
        storage_options=storage_options or {},
        report=report,
    )
    work = {**PARTS, "engine": each_capability} if capabilities else PARTS
    found = [work[name](setup) for name in PARTS if name in parts]
    return {
        "machine": machine(device),
        "batch_size": setup.batch_size,
        "rounds": rounds,
        "rates": [rate.as_json() for each in found for rate in each.rates],
        "figures": [figure.as_json() for each in found for figure in each.figures],
        "notes": [note for each in found for note in each.notes],
    }
