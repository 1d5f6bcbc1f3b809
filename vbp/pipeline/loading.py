"""Networks for the runs of one process: loaded one at a time, with facts that are kept when a network is dropped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from vbp.networks.names import source_of
from vbp.networks.owncode import OwnCode
from vbp.networks.preprocessing import Preprocessing
from vbp.pipeline.config import RunConfig

if TYPE_CHECKING:
    from vbp.networks.model import Model


@dataclass(frozen=True)
class NetworkFacts:
    """Facts about a network that a run needs before workers load it; fields as of ``Model``."""

    sha256: str
    preprocessing: Preprocessing | None
    class_names: Sequence[str] | None
    num_classes: int | None
    code: OwnCode | None
    structure_sha256: str | None

    @classmethod
    def of(cls, model: Model) -> NetworkFacts:
        """The facts of a loaded network."""
        return cls(**{field.name: getattr(model, field.name) for field in fields(cls)})


class Networks:
    """Keeps the last loaded network, on this machine's CPU; it is not pickled."""

    def __init__(self) -> None:
        self._loaded: tuple[str, Model] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Networks, ()

    def load(self, config: RunConfig, code: OwnCode | None = None) -> Model:
        """The network that `config` names, with `code` that came from elsewhere; errors as for ``load_model``."""
        from vbp.networks.models import load_model

        if self._loaded is None or not self.has(config):
            self._loaded = None  # frees the old network first
            model = load_model(**config.network, code=code)
            self._loaded = network_key(config), model
        return self._loaded[1]

    def has(self, config: RunConfig) -> bool:
        """Whether that network is the loaded one."""
        return self._loaded is not None and self._loaded[0] == network_key(config)


def network_key(config: RunConfig) -> str:
    """A key that is equal for runs that can share a network."""
    seed = config.seed if config.weights in ("random", "own") else None
    # torchvision's networks are the same for every size; others may be tried at it, or made for it
    size = None if source_of(config.model) == "torchvision" else config.size
    return json.dumps([config.model, config.model_args, config.submodule, config.weights, size, seed])
