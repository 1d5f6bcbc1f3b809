"""Files named .pth that hold no weights: each kind is recognised by its bytes, and the message says what to do."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from vbp.networks.foreign import describe


def zipped(*names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return stream.getvalue()


def tarred(*names):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


def saved(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 553433881\n"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty: copy or download it again"),
        (LFS, "is a Git LFS pointer (134 bytes), not the file that it stands for: run `git lfs pull`"),
        (b"<!DOCTYPE html><html><head><title>Google\nDrive</title>", "is a web page, titled 'Google Drive': its link"),
        (b"\xef\xbb\xbf\n <HTML><body>404</body></HTML>", "is a web page: its link does not lead to the file itself"),
        (DENIED, "is XML (AccessDenied: Request has expired), as stores answer what they refuse"),
        (b'{"message": "Not Found"}', "is JSON"),
        ("Schlüssel fehlt".encode(), "is a text that begins 'Schlüssel fehlt'"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "is an HDF5 file, as Keras writes"),
        (b"\x08\x0a\x12\x07pytorch" + bytes(200), "is an ONNX graph"),
        (b"\x08\x01\x12\xa4\x03" + bytes(200), "is a TensorFlow SavedModel"),
        (b"\n\x1e\n\x05input\x12\x0bPlaceholder" + bytes(200), "is a frozen TensorFlow graph"),
        (b"\x1c\0\0\0TFL3" + bytes(200), "is a TensorFlow Lite model"),
        (b"GGUF\x03\0\0\0" + bytes(200), "is a GGUF file"),
        (b"\x93NUMPY\x01\0" + bytes(200), "is a NumPy array"),
        (saved(weight=np.ones(3)), "is a NumPy archive (.npz)"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "is an image (PNG)"),
        (b"\xff\xd8\xff\xe0" + bytes(200), "is an image (JPEG)"),
        (b"RIFF\x10\0\0\0WEBPVP8 " + bytes(200), "is an image (WebP)"),
        (gzip.compress(b"weights", mtime=0), "is a gzip archive: unpack it"),
        (bz2.compress(b"weights"), "is a bzip2 archive: unpack it"),
        (lzma.compress(b"weights"), "is an xz archive: unpack it"),
        (tarred("run/best.pth", "run/log.txt"), "is a tar archive of files ('run/best.pth', 'run/log.txt'): unpack it"),
        (tarred("a", "b", "c", "d"), "is a tar archive of files ('a', 'b', 'c', ...)"),
        (zipped("best.pth"), "is a zip archive of files ('best.pth'): unpack it"),
        (zipped(), "is a zip archive of nothing"),
        (zipped("config.json", "model.weights.h5"), "is a Keras model"),
        (zipped("m/saved_model.pb", "m/variables/variables.index"), "is a TensorFlow model in a zip archive"),
        (zipped("m/data.pkl", "m/constants.pkl", "m/code/x.py"), "is TorchScript: save its weights with torch"),
        (zipped("m/archive_format", "m/models/model.json"), "is an exported program (.pt2)"),
    ],
)  # fmt: skip
def test_each_is_told_by_its_bytes(data, sentence):
    found = describe(data)
    assert found is not None
    assert found.startswith(sentence)


def test_real_files_of_torch(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 8, 8),)), tmp_path / "program.pt2")
    assert describe((tmp_path / "program.pt2").read_bytes()).startswith("is an exported program (.pt2)")
    for name, new in (("new", True), ("old", False)):
        torch.save(network.state_dict(), tmp_path / name, _use_new_zipfile_serialization=new)
        assert describe((tmp_path / name).read_bytes()) is None
    whole = (tmp_path / "new").read_bytes()
    assert describe(whole[: len(whole) // 2]).startswith(f"is cut short or damaged ({len(whole) // 2} bytes)")


def test_data_that_is_nothing_known_may_be_a_checkpoint():
    assert describe(bytes(range(255, 0, -1))) is None
