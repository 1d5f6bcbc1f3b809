"""Warnings of vbp are heard, nothing else."""

import logging

import pytest

from vbp.pipeline.on_ray.warned import listen


@pytest.fixture
def heard():
    log, texts = logging.getLogger("vbp"), []
    before = [*log.handlers]
    listen(texts.append)
    yield texts
    log.handlers[:] = before


def test_warnings_of_vbp_are_heard_with_their_values(heard):
    logging.getLogger("vbp.saliency.prepared.captured").warning("no CUDA graph: %s", "not permitted")
    logging.getLogger("vbp.pipeline").info("10 images")
    logging.getLogger("other").warning("not ours")
    assert heard == ["no CUDA graph: not permitted"]
