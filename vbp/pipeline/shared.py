"""Recipes: presents several runs as one, so that they share workers; a single run is the case of one.

``Recipes`` numbers the shards of all runs as units in one sequence.  Its batches have a column ``run``, by which each
step finds the recipe of a row.  So the same workers, on Ray or in this process, do one run after the other and keep
the loaded network; if units are in the order of networks, each network is loaded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock

import numpy as np

from vbp.pipeline.failures import on_behalf_of
from vbp.pipeline.loading import Networks, network_key
from vbp.pipeline.recipe import Recipe
from vbp.pipeline.source import Source, Work
from vbp.pipeline.steps import Batch, objects

UNITS_A_RUN = 1_000_000
"""A number that is larger than the number of shards of a run."""
NETWORKS_AT_WORK = 2
"""Networks that stay on the device: between two runs, batches of both alternate."""


class Recipes:
    """The recipes of several runs, by their number; `Steps` for workers.

    Args:
        recipes: recipes of runs with the same device and threads; if the steps are spread, also the same `shape`.
        networks: loads networks in this process; every other process has its own.
    """

    def __init__(self, recipes: Sequence[Recipe], networks: Networks) -> None:
        self._recipes, self._networks = recipes, networks

    @property
    def batch_size(self) -> int:
        """The largest batch size of all runs; each step uses its run's own."""
        return max(recipe.batch_size for recipe in self._recipes)

    @property
    def rows(self) -> int:
        """As for `Recipe`; the largest of all runs."""
        return max(recipe.rows for recipe in self._recipes)

    @property
    def own_sizes(self) -> bool:
        """As for `Recipe`, of any run."""
        return any(recipe.own_sizes for recipe in self._recipes)

    @property
    def is_slow(self) -> bool:
        """As for `Recipe`, of any run."""
        return any(recipe.is_slow for recipe in self._recipes)

    @property
    def read_by_explain(self) -> frozenset[str] | None:
        """As for `Recipe`, of all runs, and the number of the run; None if it is None for any."""
        each = [recipe.read_by_explain for recipe in self._recipes]
        return None if None in each else frozenset(("run",)).union(*filter(None, each))

    def source(self) -> Sources:
        """Units -> rows that are not done yet."""
        return Sources(self._recipes)

    def fetch(self) -> ByRun:
        """The first step."""
        return ByRun(lambda run: self._recipes[run].fetch())

    def decode(self) -> ByRun:
        """The second step."""
        return ByRun(lambda run: self._recipes[run].decode())

    def explain(self) -> ByRun:
        """The third step; for a single run it is made at once, so that a worker without its network does not start."""
        explain = ByRun(self._explain, NETWORKS_AT_WORK)
        if self._is_alone:
            explain.make(0)
        return explain

    def encode(self) -> ByRun:
        """The fourth step."""
        return ByRun(lambda run: self._recipes[run].encode())

    def write(self) -> ByRun:
        """The last step; its reports have a column ``run``."""
        return ByRun(self._write)

    @property
    def _is_alone(self) -> bool:
        return len(self._recipes) == 1

    def _explain(self, run: int) -> Callable[[Batch], Batch]:
        recipe = self._recipes[run]
        if self._is_alone and not self._networks.has(recipe.config):
            return recipe.explain()  # it loads its own network, so that no second copy is kept
        return recipe.with_network(self._networks.load(recipe.config, recipe.code)).explain()

    def _write(self, run: int) -> Callable[[Batch], Batch]:
        write = self._recipes[run].write()

        def with_run(batch: Batch) -> Batch:
            report = write(batch)
            return report | {"run": np.full(len(report["shard"]), run)} if report else report

        return with_run


class ByRun:
    """One step of several runs: each row goes through the step of its ``run``.

    Args:
        make: makes the step of a run.
        most: the most steps that are kept; None: all.

    Raises:
        RunFailedError: a step raised an exception.
    """

    def __init__(self, make: Callable[[int], Callable[[Batch], Batch]], most: int | None = None) -> None:
        self.make = lru_cache(most)(make)
        self._making = Lock()

    def __call__(self, batch: Batch) -> Batch:
        """Run the step on all rows, those of the same run together."""
        runs = np.asarray(batch["run"])
        return _joined([self._one(int(run), batch, runs == run) for run in np.unique(runs)])

    def _one(self, run: int, batch: Batch, own: np.ndarray) -> Batch:
        with on_behalf_of(run):
            with self._making:  # calls at the same time share a network
                step = self.make(run)
            return step(batch if own.all() else {name: values[own] for name, values in batch.items()})


def _joined(batches: list[Batch]) -> Batch:
    """One batch with the rows of all batches; images and masks of different sizes become objects.

    A run of which all images failed has no maps; they are None there.
    """
    if len(batches) == 1:
        return batches[0]
    rows = [len(next(iter(batch.values()), ())) for batch in batches]
    names = dict.fromkeys(name for batch in batches for name in batch)
    return {
        name: _concatenated(
            [batch.get(name, objects([None] * count)) for batch, count in zip(batches, rows, strict=True)]
        )
        for name in names
    }


def _concatenated(columns: list[np.ndarray]) -> np.ndarray:
    if len({column.shape[1:] for column in columns}) == 1:
        return np.concatenate(columns)
    return objects([value for column in columns for value in column])


class Sources:
    """As ``Source``, for the units of several runs."""

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self._recipes = recipes
        self._source: Callable[[int], Source] = lru_cache(None)(lambda run: recipes[run].source())

    @contextmanager
    def open(self, number: int) -> Iterator[UnitWork]:
        """The images of a unit that are not done yet."""
        run, shard = divmod(number, UNITS_A_RUN)
        with on_behalf_of(run), self._source(run).open(shard) as work:
            yield UnitWork(work, run, self._recipes[run].rows if len(self._recipes) > 1 else None)


class UnitWork:
    """As ``Work``, but batches have the number of their run, and its own `rows` limit them if others' are larger.

    What fails is a failure of that run, also while units of others are open.
    """

    def __init__(self, work: Work, run: int, rows: int | None) -> None:
        self._work, self._run, self._rows = work, run, rows

    def singles(self, step: Callable[[Batch], Batch]) -> Iterator[Batch]:
        """As ``Work.singles``."""
        with on_behalf_of(self._run):
            yield from self._work.singles(lambda batch: step(self._with_run(batch)))

    def batches(self, rows: int) -> Iterator[Batch]:
        """As ``Work.batches``."""
        with on_behalf_of(self._run):
            yield from map(self._with_run, self._work.batches(min(rows, self._rows or rows)))

    def _with_run(self, batch: Batch) -> Batch:
        return batch | {"run": np.full(len(batch["key"]), self._run, np.int32)}


def unit(run: int, shard: int) -> int:
    """The number of a run's shard among all units."""
    return run * UNITS_A_RUN + shard


def shape(recipe: Recipe) -> tuple[object, ...]:
    """A key that is equal for runs with the same columns and sizes, so that their rows may be in one batch."""
    config = recipe.config
    maps = (network_key(config), config.stages) if "maps" in config.outputs else ()
    side = None if config.fit == "original" else recipe.preprocessing.size
    levels = None if recipe.finishing is None else recipe.finishing.mask_format
    return (config.fit, config.decode, side, config.frame, config.outputs, config.layout == "none", maps, levels)
