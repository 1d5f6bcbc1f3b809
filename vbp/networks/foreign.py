"""Recognise files that hold no checkpoint by their bytes alone, because names and suffixes may be wrong."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from collections.abc import Sequence

OTHER = "give the network's weights as PyTorch or safetensors keeps them"
AGAIN = "copy or download it again"
UNPACK = "unpack it, and give the checkpoint in it"

MAGIC = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes its weights", OTHER),
    (b"GGUF", "a GGUF file, which holds a language model", OTHER),
    (b"\x93NUMPY", "a NumPy array", OTHER),
    (b"MATLAB 5.0", "a MATLAB file", OTHER),
    (b"PAR1", "a Parquet file", OTHER),
    (b"%PDF", "a PDF document", OTHER),
    (b"\x89PNG", "an image (PNG)", OTHER),
    (b"\xff\xd8\xff", "an image (JPEG)", OTHER),
    (b"GIF8", "an image (GIF)", OTHER),
    (b"II*\0", "an image (TIFF)", OTHER),
    (b"MM\0*", "an image (TIFF)", OTHER),
    (b"\x1f\x8b", "a gzip archive", UNPACK),
    (b"BZh", "a bzip2 archive", UNPACK),
    (b"\xfd7zXZ\0", "an xz archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!", "a rar archive", UNPACK),
)
"""The first bytes of a kind of file, its name, and the remedy."""

TEXT_LOOKED_AT = 4096
"""Number of first bytes from which text is recognised, and a page's title or a store's answer is read."""


def describe(data: bytes) -> str | None:
    """A clause on what `data` is, and the remedy, to follow a file's name; None if it may be a checkpoint.

    >>> describe(b"")
    'is empty: copy or download it again'
    """
    if not data:
        return f"is empty: {AGAIN}"
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(data)
    for magic, what, way in MAGIC:
        if data.startswith(magic):
            return f"is {what}: {way}"
    if data[257:262] == b"ustar":
        return _tar(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return f"is an image (WebP): {OTHER}"
    return _graph(data) or _text(data)


def _zip(data: bytes) -> str | None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except Exception:  # a damaged directory can raise anything
        return (
            f"is cut short or damaged ({len(data)} bytes): it begins like a checkpoint, but its end is missing; {AGAIN}"
        )
    members = {name.rpartition("/")[2] for name in names}
    folders = {folder for name in names for folder in name.split("/")[:-1]}
    if members & {"archive_format", "serialized_exported_program.json"}:
        return (
            "is an exported program (.pt2): save its weights with torch.save(torch.export.load(FILE).state_dict, NEW)"
        )
    if "constants.pkl" in members and "data.pkl" in members:
        return "is TorchScript: save its weights with torch.save(torch.jit.load(FILE).state_dict(), NEW)"
    if "data.pkl" in members:
        return None
    if "model.weights.h5" in members:
        return f"is a Keras model: {OTHER}"
    if "saved_model.pb" in members or "variables" in folders:
        return f"is a TensorFlow model in a zip archive: {OTHER}"
    if any(name.endswith(".npy") for name in names):
        return f"is a NumPy archive (.npz): {OTHER}"
    return _archive("zip", names)


def _tar(data: bytes) -> str:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            names = archive.getnames()
    except Exception:  # as above
        names = []
    return _archive("tar", names)


def _archive(kind: str, names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return f"is a {kind} archive of {f'files ({shown})' if names else 'nothing'}: {UNPACK}"


def _graph(data: bytes) -> str | None:
    """A clause on graphs of other frameworks, recognised by their first protobuf or flatbuffer fields; else None."""
    if data[4:8] == b"TFL3":
        return f"is a TensorFlow Lite model: {OTHER}"
    if data[:3] == b"\x08\x01\x12":
        return f"is a TensorFlow SavedModel: {OTHER}"
    if data[0] == 8 and data[1:2] <= b"\x20" and data[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42"):
        return "is an ONNX graph, network and weights together: give it as --model FILE.onnx"
    if data[0] == 10 and re.search(rb"Placeholder|Const|VariableV2", data[:TEXT_LOOKED_AT]):
        return f"is a frozen TensorFlow graph: {OTHER}"
    return None


def _text(data: bytes) -> str | None:
    try:
        text = data[:TEXT_LOOKED_AT].decode("utf-8-sig", "strict" if len(data) <= TEXT_LOOKED_AT else "ignore")
    except UnicodeDecodeError:
        return None
    if re.search(r"[\x00-\x08\x0e-\x1f]", text):
        return None
    start = text.lstrip()
    if start.startswith("version https://git-lfs"):
        return (
            f"is a Git LFS pointer ({len(data)} bytes), not the file that it stands for: "
            "run `git lfs pull`, or download the file itself"
        )
    if re.match(r"<!doctype html|<html|<head|<body", start, re.IGNORECASE):
        title = _inside(start, "title")
        named = f", titled {title!r}" if title else ""
        return f"is a web page{named}: its link does not lead to the file itself; download that in a browser"
    if start.startswith("<"):
        answer = ": ".join(part for part in (_inside(start, "Code"), _inside(start, "Message")) if part)
        return f"is XML{f' ({answer})' if answer else ''}, as stores answer what they refuse: {AGAIN}"
    if start.startswith(("{", "[")):
        return f"is JSON, such as a server's answer or a configuration: {OTHER}"
    return f"is a text that begins {' '.join(start.split())[:40]!r}: {OTHER}"


def _inside(text: str, tag: str) -> str | None:
    found = re.search(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.IGNORECASE | re.DOTALL)
    return " ".join(found[1].split())[:100] if found else None
