"""Whether a run is finished already, from its output and the weights' bytes alone, as loading torch takes 10 s."""

from __future__ import annotations

from contextlib import suppress

from vbp.choices import NAMED_WEIGHTS
from vbp.errors import StorageError, UsageError
from vbp.networks.names import source_of
from vbp.pipeline import prepare
from vbp.pipeline.config import RunConfig
from vbp.pipeline.record import open_record
from vbp.pipeline.summary import Summary
from vbp.storage.files import Folder
from vbp.storage.ledger import index


def finished_earlier(config: RunConfig, digests: dict[str, str] | None = None) -> Summary | None:
    """The summary of a finished run of `config`; None if it is not known to be finished.

    Some runs are known only after the full check: named weights must be loaded to be known, and so must networks that
    say themselves what they want to see.  Errors are ignored here, because the full check reports them.

    Args:
        config: the run.
        digests: SHA-256 of weights that were read already, by place; those of this run are added.
    """
    with suppress(UsageError, StorageError, OSError):
        return _finished_earlier(config, {} if digests is None else digests)
    return None


def _finished_earlier(config: RunConfig, digests: dict[str, str]) -> Summary | None:
    if config.resume_mode != "resume" or config.refresh or config.weights in NAMED_WEIGHTS:
        return None
    if source_of(config.model) != "torchvision":
        return None
    output = Folder(config.output, config.storage_options)
    record = open_record(config, output)
    manifest = record.manifest(config.input)
    if manifest is None or prepare.wants_more(config, manifest):
        return None
    if config.device not in ("auto", record.facts.get("device")):
        return None
    finished = record.finished(manifest.images_within(config.limit), config)
    if finished is None:
        return None
    digest = digests[config.weights] = digests.get(config.weights) or prepare.weights_sha256(config)
    if not record.fits(manifest) or not record.is_of(config, digest, prepare.contents_sha256(config)):
        return None
    pending = index.pending_shards(output, manifest, config.retry_failed, config.limit)
    return finished if next(pending, None) is None else None
