"""The steps chained in one process: quick runs, what a CPU worker does, and the definition of correct."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from vbp.pipeline.recipe import Recipe
from vbp.pipeline.steps import Batch


class Chain:
    """All five steps in one object: shard numbers in, one report a part out.

    Args:
        recipe: what to do.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._source = recipe.source()
        self._rows = recipe.batch_size
        self._steps = (recipe.fetch(), recipe.decode(), recipe.explain(), recipe.encode(), recipe.write())

    def __call__(self, shards: Batch) -> Iterator[Batch]:
        """The callable that Ray Data maps over batches with the column ``shard``."""
        for shard in shards["shard"]:
            for batch in self._source.rows(int(shard), self._rows):
                for step in self._steps:
                    batch = step(batch)
                yield batch


def reports(recipe: Recipe, shards: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Work on `shards` here and now; yields a report for every part that was committed."""
    chain = Chain(recipe)
    for shard in shards:
        for batch in chain({"shard": [shard]}):
            yield from rows_of(batch)


def rows_of(batch: Batch) -> Iterator[dict[str, Any]]:
    """The rows of a batch of columns, one dict each."""
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))
