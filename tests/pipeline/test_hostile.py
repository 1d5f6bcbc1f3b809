"""Odd names and broken files: each gets its own row, and none harms another image."""

import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow.dataset as pads
import pytest
from PIL import Image

from vbp.pipeline import RunConfig, run
from vbp.storage.manifest import stretches

NAMES = [
    "two words.png", "a#b.png", "a?b.png", "100%.png", "%41.png", "a[1].png", "b*.png", "x::y.png", "quote'\"s.png",
    "new\nline.png", "grüße-日本-🐕.png", "a.b.c.png", "cat.jpg", "cat.png", "CAT.PNG", " lead.png", "trail .png",
    "-dash.png", "~tilde.png", "$HOME.png", "back\\slash.png", "tab\tbed.png", "1/2/3/4/5/6/7/8/9/10/deep.png",
    "n" * 250 + ".png", "ü" * 125 + ".png", "a.png/inner.png", "a.png.png/inner.png", "b.png",
    "_underscore/_name.png", "e\u0301.png", "\u00e9.png",
]  # fmt: skip
HIDDEN = [".hidden.png", "nested/.hidden/x.png"]


def config(root, out, network_file, **changes):
    fields = {"input": str(root), "output": str(out), "weights": network_file, "size": 32, "precision": "float32"}
    return RunConfig(**fields | {"runner": "local", "batch_size": 8} | changes)


def rows_of(out):
    return pads.dataset(Path(out) / "index").to_table().to_pylist()


@pytest.fixture
def odd_tree(tmp_path):
    """Images of all sizes from 1 x 1 up, under every odd name."""
    root = tmp_path / "tree"
    for number, name in enumerate([*NAMES, *HIDDEN]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1 + number * 5, 1 + number * 3), (number * 7, 99, 200)).save(path, "PNG")
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "elsewhere" / "linked.png")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    raw = os.fsencode(root) + b"/latin-\xfc.png"
    Path(os.fsdecode(raw)).write_bytes((root / "cat.png").read_bytes())
    return root


def test_every_name_gets_its_row_and_its_own_files(odd_tree, network_file, tmp_path):
    summary = run(config(odd_tree, tmp_path / "out", network_file, outputs=("mask", "overlay", "input")))
    rows = rows_of(tmp_path / "out")
    assert (summary.images, summary.error) == (len(NAMES) + 2, 0)
    assert sum(summary.left_out.values()) == len(HIDDEN)
    assert len({row["key"] for row in rows}) == len(NAMES) + 2
    for column in ("mask_uri", "overlay_uri"):
        uris = [row[column] for row in rows]
        assert len(set(uris)) == len(uris)
        assert all(Path(uri).is_file() for uri in uris)
    keys = {row["key"] for row in rows}
    for name in ("two words.png", "x::y.png", "1/2/3/4/5/6/7/8/9/10/deep.png", "link/linked.png"):
        assert name in keys
    assert len([key for key in keys if re.fullmatch("~[0-9a-f]{32}~new_line.png", key)]) == 1
    labels = {row["key"]: row["label"] for row in rows}
    assert (labels["cat.png"], labels["link/linked.png"]) == (None, "link")
    sizes = {(row["width"], row["height"]) for row in rows}
    assert (1, 1) in sizes


def test_the_same_tree_through_ray(odd_tree, network_file, tmp_path, ray_session, monkeypatch):
    """Also listed by workers, after its first images."""
    made, make = [], stretches.Rest.files

    def watched(*arguments):
        made.extend(names := list(make(*arguments)))
        return names

    monkeypatch.setattr(stretches.Rest, "files", watched)
    monkeypatch.setattr(stretches, "ALONE", 1)
    run(config(odd_tree, tmp_path / "local", network_file))
    assert not made
    run(config(odd_tree, tmp_path / "ray", network_file, runner="ray", workers=1, shard_size=2))
    assert made
    files = [
        {str(p.relative_to(tmp_path / o)): p.read_bytes() for p in (tmp_path / o / "masks").rglob("*") if p.is_file()}
        for o in ("local", "ray")
    ]
    assert files[0] == files[1]


def png_header(width, height):
    """A PNG of a few bytes that claims to be of any size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_bad_files_are_rows_with_stage_type_and_message(photos, network_file, tmp_path):
    root = tmp_path / "tree"
    root.mkdir()
    good = (photos / "bird" / "00.jpg").read_bytes()
    bad = {
        "truncated.jpg": (good[: len(good) // 2], "decode", "CorruptImageError"),
        "truncated.png": ((photos / "cat" / "01.png").read_bytes()[:-200], "decode", "CorruptImageError"),
        "empty.jpg": (b"", "decode", "EmptyFileError"),
        "text.jpg": (b"this is no image", "decode", "NotAnImageError"),
        "page.png": (b"<!DOCTYPE html><html><body>404</body></html>", "decode", "NotAnImageError"),
        "zeros.png": (bytes(5000), "decode", "NotAnImageError"),
        "bomb.png": (png_header(20_000, 20_000), "decode", "ImageTooLargeError"),
    }
    for name, (data, _, _) in bad.items():
        (root / name).write_bytes(data)
    for number in range(5):
        (root / f"good{number}.jpg").write_bytes(good)
    summary = run(config(root, tmp_path / "out", network_file))
    assert (summary.ok, summary.error) == (5, len(bad))
    rows = {row["key"]: row for row in rows_of(tmp_path / "out")}
    for name, (_, stage, kind) in bad.items():
        row = rows[name]
        assert (row["status"], row["error_stage"], row["error_type"]) == ("error", stage, kind), row["error_message"]
        assert len(row["error_message"]) > 10
        assert row["mask_uri"] is None
    assert all(rows[f"good{number}.jpg"]["status"] == "ok" for number in range(5))


@pytest.mark.skipif(os.getuid() != 0, reason="another user is needed to be without permission")
def test_a_file_without_permission(photos, network_file, tmp_path):
    """Run as another user, since root may read everything."""
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(3):
        (root / f"{number}.jpg").write_bytes((photos / "bird" / "00.jpg").read_bytes())
    (root / "1.jpg").chmod(0)
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    Path(network_file).chmod(0o644)
    for folder in {*tmp_path.parents, *Path(network_file).parents, tmp_path}:
        if "pytest" in str(folder) or folder == tmp_path:
            folder.chmod(0o755)
    # the first run loads every module while they can still be read
    code = (
        "import os; from vbp.pipeline import RunConfig, run\n"
        f"made = dict(input={str(root)!r}, weights={network_file!r}, size=32, runner='local')\n"
        f"run(RunConfig(output={str(tmp_path / 'warm')!r}, **made))\n"
        f"os.setuid(65534); run(RunConfig(output={str(out)!r}, **made))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    rows = {row["key"]: row for row in rows_of(out)}
    assert [rows[f"{n}.jpg"]["status"] for n in range(3)] == ["ok", "error", "ok"]
    assert (rows["1.jpg"]["error_stage"], rows["1.jpg"]["error_type"]) == ("fetch", "PermissionError")
