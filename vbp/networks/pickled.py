"""Read files of ``torch.save`` without running any code that a file names."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections import OrderedDict
from typing import Any

import torch

from vbp.errors import WeightsError

_CHUNK = 1 << 20
SAVE = "save the weights alone, with torch.save(model.state_dict(), FILE)"


class _Nothing:
    """Replaces a harmless object beside the weights; accepts any arguments and state, and stores nothing."""

    def __new__(cls, *args: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Items:
    """Replaces a kind of dict, whose items may be the weights."""

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


class _List:
    """Replaces a kind of list."""

    def __new__(cls, *args: Any) -> Any:
        return []


STAND_INS: dict[type, tuple[str, ...]] = {
    _Nothing: (
        # arguments of the training script: torchvision's references, timm, DETR
        "argparse.Namespace",
        "types.SimpleNamespace",
        # a best score or losses that were not converted to float
        *(f"numpy.{module}.multiarray.{name}" for module in ("core", "_core") for name in ("scalar", "_reconstruct")),
        "numpy.ndarray",
        "numpy.dtype",
        # paths in the settings
        *(
            f"pathlib{module}.{flavour}{system}Path"
            for module in ("", "._local")
            for flavour in ("", "Pure")
            for system in ("Posix", "Windows", "")
        ),
        # settings of Lightning and Hydra
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        *(
            f"omegaconf.nodes.{kind}Node"
            for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Enum", "Path", "Value")
        ),
        "typing.Any",
        # the time of saving
        "datetime.datetime",
        "datetime.timedelta",
        # the type of items in a defaultdict or OmegaConf
        "builtins.dict",
        "builtins.list",
        "builtins.tuple",
        "builtins.int",
        "builtins.float",
        "builtins.str",
        "builtins.bool",
    ),
    _Items: (
        "collections.defaultdict",
        # settings of Lightning, yacs (Detectron, timm's forks) and EasyDict
        *(
            f"{package}.AttributeDict"
            for package in (
                "pytorch_lightning.utilities.parsing",
                "lightning.pytorch.utilities.parsing",
                "lightning_fabric.utilities.data",
                "lightning.fabric.utilities.data",
            )
        ),
        "yacs.config.CfgNode",
        "easydict.EasyDict",
    ),
    # the last losses, in training scripts
    _List: ("collections.deque",),
}
"""Harmless types that checkpoints often hold beside the weights, by the class that replaces them.

No code of these types is run, and their packages need not be installed: only the names are allowed.
"""


def load(data: bytes, uri: str) -> Any:
    """The content of a file that ``torch.save`` wrote.

    Args:
        data: the file's bytes.
        uri: the file's place, for errors.

    Raises:
        WeightsError: the file is damaged, or holds objects that cannot be read without running code.
    """
    if data.startswith(b"PK") and (part := _damaged_part(data)):
        raise WeightsError(f"{uri} is damaged: its {part} is not what was saved; copy or download it again.")
    stand_ins = [(kind, name) for kind, names in STAND_INS.items() for name in names]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            warnings.simplefilter("ignore")  # warnings of old formats, which a user cannot change
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(f"{uri} {_reason(str(error), data)}.") from error


def _damaged_part(data: bytes) -> str | None:
    """The first part of a zip file with a wrong checksum, which torch does not check; None if all are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for part in archive.infolist():
            if not part.CRC:  # torch.serialization.set_crc32_options(False)
                continue
            try:
                with archive.open(part) as stream:
                    while stream.read(_CHUNK):
                        pass
            except Exception:  # a damaged header can raise anything
                return part.filename
    return None


def _reason(message: str, data: bytes) -> str:
    """A message of our own, because torch's advises to read the file with ``weights_only=False``."""
    if b"_rebuild_qtensor" in data:
        return f"holds quantised weights, which are not explained: load the network before it was quantised, and {SAVE}"
    if "DTensor" in message:
        return f"holds weights that are spread over processes (DTensor): gather them there, and {SAVE}"
    if found := re.search(r"GLOBAL (\S+)", message):
        what = "a whole network" if found[1].startswith("torch.nn.") else "an object"
        return (
            f"holds {what} of the type {found[1]}, and nothing but tensors is read because a pickle can run code: "
            f"where you trust it, load it and {SAVE}"
        )
    if data.startswith(b"\x80") and b"torch" not in data:
        return f"is a pickle that torch.save did not write: {SAVE}"
    if "Unsupported operand" in message and data[:1] in (b"P", b"\x80"):
        return f"is damaged, or pickled by another protocol than torch's own (2): copy it again, or {SAVE}"
    return f"is no checkpoint, or is damaged or cut short ({len(data)} bytes): copy or download it again"
