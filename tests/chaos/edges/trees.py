"""A fuzz of all inputs except images and weights: names, trees, bucket keys, manifests and class files.

Each case ends in a right result, in rows, or in one UsageError; no file is lost: it is a row, or counted. Cases are
made with what they must come to. ``python -m tests.chaos.edges.trees SECONDS SEED...`` tries seeds; `case` makes one
again.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from tests.storage.flat import FlatStore
from vbp.errors import UsageError
from vbp.networks.classfile import parse_class_file
from vbp.pipeline.breaker import Breaker
from vbp.pipeline.classes import map_classes
from vbp.pipeline.config import BY_ORDER, RunConfig
from vbp.pipeline.prepare import list_input
from vbp.pipeline.steps import Fetch, objects
from vbp.storage.collections.manifestfile import read_manifest_input
from vbp.storage.collections.tree import ManifestRow, list_tree
from vbp.storage.files import Folder
from vbp.storage.leftout import LeftOut
from vbp.storage.manifest.manifest import Manifest, write_manifest

SECONDS = 20.0
"""That one case may take on a machine that does other things as well."""
READ = ("jpg", "JPG", "jpeg", "jpe", "jfif", "png", "webp", "avif", "tif", "bmp", "dib", "jp2", "gif", "pnm")
OTHER = ("txt", "json", "heicx", "jpg_", "jp", "mp4", "xmp", "jpg~", "jpgjpg")
SYSTEM = ("._", ".DS_Store", "Thumbs.db", "__MACOSX", "desktop.ini", ".ipynb_checkpoints", "@eaDir", "..a", ".jpg")
WORDS = (
    "cat",
    "Dog",
    "tiger cat",
    "n02123159",
    "0",
    "007",
    "caf\u00e9",
    "e\u0301",
    "\u65e5\u672c",
    "a,b",
    "x;y",
    "#1",
    "it's",
    '"q"',
    "%41",
)
ODD = (
    *("a\nb", "a\tb", "back\\slash", "~", "~" + "0" * 32 + "~x", "a?b", "a[1]", "a*", "x::y", "CON", "a.", " a", "a "),
    *("-", "\u202e", "\ufeff", "y" * 240, "\u65e5" * 80, "s3:", "a.jpg.png"),
)
RAW = (b"caf\xe9", b"\xff\xfe", b"\x80.", b"a\xc3")


@dataclass
class Outcome:
    """What came of one seed."""

    seed: int
    cases: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in sorted(self.ends.items()))
        return f"seed {self.seed}: {self.cases} cases, {ends}; {len(self.faults)} faults\n" + "\n".join(self.faults)


def a_word(rng: random.Random) -> str:
    return rng.choice(rng.choice([WORDS, WORDS, ODD, ("".join(rng.choices("ab \u00e9._-", k=5)).strip(".") or "z",)]))


def a_file(rng: random.Random) -> tuple[str, str]:
    """A name, and what it is by its end: image or other."""
    if rng.random() < 0.15:
        name = rng.choice(SYSTEM) + rng.choice(["", ".jpg"])
        return name, "image" if name.endswith(".jpg") else "other"
    word = a_word(rng)
    kind = rng.choice(["image", "image", "other"])
    suffix = rng.choice(READ if kind == "image" else OTHER)
    return f"{word}.{suffix}", kind


def is_hidden(name: str) -> bool:
    return name not in (".", "..") and (
        name.startswith(".") or name in ("Thumbs.db", "__MACOSX", "desktop.ini", "@eaDir")
    )


def expected(paths: dict[str, str]) -> tuple[set[str], int, int]:
    """Of paths and their kinds: the images, the system files, the others."""
    system = {path for path in paths if any(map(is_hidden, path.split("/")))}
    images = {path for path, kind in paths.items() if kind == "image"} - system
    return images, len(system), len(paths) - len(system) - len(images)


def check_rows(rows: list[ManifestRow], read: Callable[[str], bytes], contents: dict[str, bytes]) -> None:
    """Keys are names that any store holds, no two alike; each path reads its own file."""
    keys = [row.key for row in rows]
    assert len(set(keys)) == len(keys), "two images have one key"
    for row in rows:
        parts = row.key.split("/")
        assert all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts), (
            f"unsafe key {row.key!r}"
        )
        assert len(f"{parts[-1]}.png".encode()) <= 255, f"long key {row.key!r}"
        assert not any(ord(c) < 32 or c == "\\" for c in row.key), f"control character in {row.key!r}"
        row.uri.encode()
        path = os.fsdecode(row.path or b"")
        assert read(path) == contents[path], f"another file at {path!r}"


def check_manifest(rows: list[ManifestRow], left_out: LeftOut, rng: random.Random) -> None:
    """The manifest gives them back, in order."""
    with tempfile.TemporaryDirectory() as place:
        folder = Folder(place)
        write_manifest(folder, iter(rows), rng.choice([1, 2, 7, 100]), left_out=left_out, input="in")
        manifest = Manifest.load(folder)
        assert manifest is not None
        assert sorted(manifest.rows()) == sorted(rows), "the manifest has other rows"
        assert dict(manifest.left_out) == left_out.counts, "the manifest has other counts"


def check_listed(rows: list[ManifestRow], left_out: LeftOut, paths: dict[str, str]) -> None:
    images, system, others = expected(paths)
    found = {os.fsdecode(row.path or b"") for row in rows}
    assert found == images, f"rows {sorted(found ^ images)[:3]!r}"
    assert left_out.counts.get("system", 0) == system, f"{left_out.counts} beside {system} system files"
    assert sum(left_out.counts.values()) == system + others, f"{left_out.counts} beside {others} others"


def tree(rng: random.Random, place: Path) -> str:
    """A folder on a disk."""
    root = os.path.join(os.fsencode(place), rng.choice([b"in", b"photos.jpg", b"caf\xe9", b"a b", b".hidden"]))
    os.makedirs(root)
    folders, paths, contents = [b""], dict[str, str](), dict[str, bytes]()
    for _ in range(rng.randrange(4)):
        name = rng.choice([os.fsencode(a_word(rng)), rng.choice(RAW), os.fsencode(rng.choice(SYSTEM))])
        folder = os.path.join(rng.choice(folders), name)
        try:
            os.mkdir(os.path.join(root, folder))
        except OSError:  # there already, or too long
            continue
        folders.append(folder)
    for number in range(rng.randrange(1, 14)):
        name, kind = a_file(rng)
        raw = os.fsencode(name)
        if rng.random() < 0.1:
            raw, kind = rng.choice(RAW) + os.fsencode(f"x{number}.jpg"), "image"
        path = os.path.join(rng.choice(folders), raw)
        full = os.path.join(root, path)
        try:
            with open(full, "xb") as file:
                file.write(data := f"{number}".encode())
        except OSError:
            continue
        paths[os.fsdecode(path)], contents[os.fsdecode(path)] = kind, data
    if rng.random() < 0.3:
        os.symlink(root, os.path.join(root, b"loop"))
    if rng.random() < 0.3:
        os.mkfifo(os.path.join(root, b"pipe.jpg"))  # no file
    folder, left_out = Folder(os.fsdecode(root)), LeftOut()
    rows = list(list_tree(folder, left_out=left_out))
    check_listed(rows, left_out, paths)
    check_rows(rows, folder.read, contents)
    if not rows:
        return refused(lambda: list(list_input(config(os.fsdecode(root), place))))
    check_manifest(rows, left_out, rng)
    assert sorted(list_input(config(os.fsdecode(root), place))) == sorted(rows)
    if rng.random() < 0.5:
        check_one(rng.choice(rows), os.fsdecode(root), place, contents)
    return "tree"


def check_one(row: ManifestRow, root: str, place: Path, contents: dict[str, bytes]) -> None:
    """One image of a tree as INPUT."""
    path = os.fsdecode(row.path or b"")
    made = config(f"{root}/{path}", place)
    (single,) = list_input(made)
    assert (single.path, single.label) == (b"", None)
    assert Folder(made.input).read("") == contents[path]


def bucket(rng: random.Random, place: Path) -> str:
    """Keys of a bucket."""
    names, paths, contents = ["", ".", "..", "cat", "Cat", "a" * 300], dict[str, str](), dict[str, bytes]()
    for number in range(rng.randrange(1, 30)):
        name, kind = a_file(rng)
        folders = [rng.choice([*names, a_word(rng), rng.choice(SYSTEM)]) for _ in range(rng.randrange(4))]
        path = "/".join([*folders, name])
        paths[path], contents[path] = kind, f"{number}".encode()
    root = rng.choice(["b", "b/photos", "b/x::y"])
    data = {f"{root}/{path}": content for path, content in contents.items()}
    data |= {f"{root.partition('/')[0]}/elsewhere.jpg": b""} if root != "b" else {}
    with mock.patch("vbp.storage.files._open", lambda base, *_: (FlatStore(data), "b") if base else REAL(base, *_)):
        folder, left_out = Folder(f"s3://{root}"), LeftOut()
        rows = list(list_tree(folder, left_out=left_out))
        check_listed(rows, left_out, paths)
        check_rows(rows, folder.read, contents)
    if rows:
        check_manifest(rows, left_out, rng)
    return "bucket"


def manifest(rng: random.Random, place: Path) -> str:
    """A manifest file in some dialect, whole or damaged."""
    files = {}
    for number in range(rng.randrange(1, 9)):
        files[f"{rng.choice(['', 'cat/', './', '../lists/'])}{a_word(rng)}{number}.jpg"] = f"{number}".encode()
    home = place / "lists"
    (home / "cat").mkdir(parents=True)
    truth = []
    for path, data in files.items():
        try:
            (home / path).write_bytes(data)
        except OSError:
            continue
        uri = rng.choice([path, f"{home}/{path}", f"file://{home}/{path}"])
        truth.append([uri, rng.choice(["", a_word(rng).strip()]), data])
    if not truth:
        return "nothing"
    column = rng.choice(["uri", "URL", " Path ", "file_name", "Image", "\ufeffuri", "file-path"])
    suffix = rng.choice([".csv", ".csv", ".txt", ".parquet"])
    source = place / "lists" / f"m{suffix}"
    whole, lossless = write_list(rng, source, suffix, column, truth)
    if rng.random() < 0.3:
        source.write_bytes(damaged(rng, source.read_bytes()))
        whole = False
    try:
        rows = list(read_manifest_input(str(source)))
    except UsageError as error:
        return one_sentence(error, None if not whole else "a whole manifest is refused")
    if whole:
        labels = [row.label or "" for row in rows]
        assert labels == [label for _, label, _ in truth], f"labels {labels}"
    rows = rows[:9]
    fetched = fetch(rows, str(place))
    if whole and lossless:
        assert fetched == [data for _, _, data in truth], "another file is read"
    try:
        list_of = list(list_input(config(str(source), place)))
        check_keys = write_manifest(Folder(place / "out"), iter(list_of), 3, left_out=LeftOut())
        assert check_keys.images >= 1
    except UsageError as error:
        return one_sentence(error)
    return "manifest"


def write_list(rng: random.Random, source: Path, suffix: str, column: str, truth: list[list]) -> tuple[bool, bool]:
    """Whether it must be read, and whether labels and places with blanks at their ends survive."""
    safe = all(uri == uri.strip() and "\n" not in uri for uri, _, _ in truth)
    safe = safe and not truth[0][0].startswith("\ufeff")  # at the start it is a mark
    if suffix == ".txt":
        source.write_text("".join(uri + rng.choice(["\n", "\r\n"]) for uri, _, _ in truth), "utf-8", newline="")
        for row in truth:
            row[1] = ""
        return safe, safe
    uris, labels = [uri for uri, _, _ in truth], [label for _, label, _ in truth]
    if suffix == ".parquet":
        kind = rng.choice([pa.string(), pa.large_string(), pa.binary()])
        values = [uri.encode() if kind == pa.binary() else uri for uri in uris]
        pq.write_table(pa.table({column: pa.array(values, kind), "label": pa.array(labels)}), source)
        return True, True
    text = io.StringIO()
    writer = csv.writer(text, delimiter=rng.choice(",;\t|"), quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
                        lineterminator=rng.choice(["\n", "\r\n"]))  # fmt: skip
    order = rng.sample(range(3), 3)
    for row in [[column, "Label", "x"], *([uri, label, "1"] for uri, label in zip(uris, labels, strict=True))]:
        writer.writerow([row[place] for place in order])
    encoding = rng.choice(["utf-8", "utf-8-sig", "utf-16"])
    source.write_text(text.getvalue(), encoding, newline="")
    return True, safe


def fetch(rows: list[ManifestRow], root: str) -> list[bytes | None]:
    """What the first step makes of the rows: bytes, or error rows."""
    step = Fetch(root, breaker=Breaker(least=1000, missing=1000, sleep=lambda seconds: None))
    columns = {name: objects([getattr(row, name) for row in rows]) for name in ManifestRow._fields}
    batch = step(columns)
    for row in range(len(rows)):
        assert (batch["data"][row] is None) == (batch["error_stage"][row] == "fetch"), "neither bytes nor an error"
        assert batch["data"][row] is not None or batch["error_message"][row], "an error without a message"
    return list(batch["data"])


def classes(rng: random.Random, place: Path) -> str:
    """A class file in some dialect, whole or damaged, and folders that match it or do not."""
    words = [
        word for word in {a_word(rng).strip().strip("#'\"-[{, ") for _ in range(rng.randrange(2, 9))} if usable(word)
    ]
    if len(words) < 2:
        return "nothing"
    rng.shuffle(words)
    lines = [rng.choice(["{n} {w}", "{n}: {w}", "{n}\t{w}"]).format(n=n, w=w) for n, w in enumerate(words)]
    text = rng.choice(
        [
            lambda: "\n".join(words),
            lambda: "\n".join(lines),
            lambda: "\r\n".join(rng.sample(lines, len(lines))),
            lambda: json.dumps(words),
            lambda: json.dumps({str(n): w for n, w in enumerate(words)}),
            lambda: json.dumps(dict(zip(words, range(len(words)), strict=True))),
            lambda: json.dumps([[f"n{n:08d}", w] for n, w in enumerate(words)], ensure_ascii=False),
            lambda: repr(dict(enumerate(words))),
        ]
    )()
    data = text.encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"]))
    whole = rng.random() < 0.7
    try:
        declared = parse_class_file(data if whole else damaged(rng, data))
    except ValueError as error:
        return one_sentence(UsageError(f"the class file: {error}"), "a whole class file is refused" if whole else None)
    if whole:
        assert declared.names == tuple(words), f"{declared.names} of {text!r}"
    folders = rng.sample(words, rng.randrange(1, len(words) + 1))
    if strange := rng.random() < 0.4:
        folders.append("stranger " + a_word(rng))
    try:
        found = map_classes(folders, len(declared), None, [], rng.choice([declared, declared, declared, BY_ORDER]))
    except UsageError as error:
        return one_sentence(error)
    if "by-order" in found.rule:
        assert [found.index[folder] for folder in sorted(folders)] == list(range(len(folders)))
        assert len(folders) == len(declared)
        return "by order"
    assert not (strange and whole), "a stranger is a class"
    if whole:
        assert dict(found.index) == {folder: words.index(folder) for folder in folders}, f"{found.index} of {words}"
    return "classes"


def usable(word: str) -> bool:
    """Whether a line or a list of such words can mean nothing else."""
    return bool(word) and word.isprintable() and word == word.strip() and not word[0].isdigit() and "," not in word


def damaged(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return rng.choice(
        [
            lambda: data[:at],
            lambda: data[at:],
            lambda: data[:at] + rng.randbytes(rng.choice([1, 2, 9])) + data[at + 1 :],
            lambda: data[:at] + data[at // 2 :],
            lambda: data.replace(b"\n", b"\0", 1),
            lambda: data[:at] + b'"' + data[at:],
        ]
    )()


def refused(work: Callable[[], object]) -> str:
    try:
        work()
    except UsageError as error:
        return one_sentence(error)
    raise AssertionError("it is not refused")


def one_sentence(error: UsageError, fault: str | None = None) -> str:
    if fault:
        raise AssertionError(f"{fault}: {error}")
    assert 20 < len(str(error)) < 2000, f"a message of {len(str(error))} characters"
    return "refused"


def config(source: str, place: Path) -> RunConfig:
    return RunConfig(input=source, output=str(place / "results"))


REAL = __import__("vbp.storage.files", fromlist=["_open"])._open
KINDS = (tree, tree, bucket, manifest, manifest, classes, classes)


def case(seed: int, index: int) -> str:
    """What becomes of one case; raises what is wrong."""
    rng = random.Random(f"{seed} {index}")
    kind = KINDS[index % len(KINDS)]
    with tempfile.TemporaryDirectory(prefix="vbp-edges-") as place:
        return kind(rng, Path(place))


def fuzz(seed: int, count: int) -> Outcome:
    """Try so many cases."""
    outcome = Outcome(seed)
    for index in range(count):
        began = time.monotonic()
        try:
            outcome.ends[case(seed, index)] += 1
        except Exception as error:
            name = KINDS[index % len(KINDS)].__name__
            outcome.faults.append(f"case({seed}, {index}) {name}: {type(error).__name__}: {str(error)[:300]}")
        if time.monotonic() - began > SECONDS:
            outcome.faults.append(f"case({seed}, {index}) took {time.monotonic() - began:.1f} s")
        outcome.cases += 1
    return outcome


if __name__ == "__main__":
    until = time.monotonic() + float(sys.argv[1])
    for seed in map(int, sys.argv[2:]):
        while True:
            print(fuzz(seed, 700), flush=True)  # noqa: T201
            if time.monotonic() > until:
                sys.exit()
            break
