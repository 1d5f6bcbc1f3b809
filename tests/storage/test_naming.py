import itertools
import os
import re
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vbp.storage.naming import key_of, key_of_uri, label_of, sample_name

# Machines that run many things at once are slow; a failure prints what reproduces it.
calmly = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
SUFFIXES = (".png", ".jpg", ".npy")
PARTS = st.one_of(
    st.sampled_from(
        ["", ".", "..", "a", "a.jpg", "a.png", "a.jpg.png", "~" + "0" * 32 + "~a", "\0", "\udcff", "\ud800"]
    ),
    st.text(st.characters(), max_size=6),
    st.integers(245, 260).map(lambda n: "n" * n),
    st.integers(80, 90).map(lambda n: "日" * n + ".jpg"),
)
PATHS = st.lists(PARTS, min_size=1, max_size=8).map("/".join)


@pytest.mark.parametrize(
    "path",
    [
        "a.jpg",
        "class/deep/er/a b.JPG",
        "日本/é.png",
        "e\u0301.jpg",
        "a::b.jpg",
        "a[1]?*#%.jpg",
        "~home/x.jpg",
        "..a/b../...jpg",
        "a.jpg.d/x.jpg",
        "n" * 251,
        "d" * 255 + "/a.jpg",
        "/".join(["d" * 99] * 8),
    ],
)
def test_unchanged_wherever_possible(path):
    assert key_of(path) == path


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("caf\udce9.jpg", "~{}~caf_.jpg"),
        ("\udcff/a.jpg", "~{}~_/a.jpg"),
        ("a.jpg.png/b.jpg", "~{}~a_jpg_png/b.jpg"),
        ("../b.jpg", "~{}~__/b.jpg"),
        ("x/./b.jpg", "x/~{}~_/b.jpg"),
        ("x//b.jpg", "x/~{}~/b.jpg"),
        ("/b.jpg", "~{}~/b.jpg"),
        ("a\0b.jpg", "~{}~a_b.jpg"),
        ("new\nline.jpg", "~{}~new_line.jpg"),
        ("a\\..\\b.jpg", "~{}~a_.._b.jpg"),
        ("~" + "0" * 32 + "~b.jpg", "~{}~" + "_" + "0" * 32 + "_b.jpg"),
        ("n" * 250 + ".jpg", "~{}~" + "n" * 36 + ".jpg"),
        ("class/" + "d" * 250 + "/" + "e" * 250 + "/" + "f" * 250 + "/" + "g" * 45, "class/~{}~" + "g" * 40),
    ],
)
def test_escaped_where_not(path, key):
    before, after = key.split("{}")
    got = key_of(path)
    assert got.startswith(before)
    assert got.endswith(after)
    assert len(got) == len(before) + 32 + len(after)
    assert set(got[len(before) : len(before) + 32]) <= set("0123456789abcdef")


@calmly
@given(PATHS)
@example("")
@example("a" * 252)
def test_every_key_can_be_stored(path):
    key = key_of(path)
    parts = key.split("/")
    assert len(key.encode("utf-8")) <= 800
    assert "\0" not in key
    assert not set(parts) & {"", ".", ".."}
    assert all(len(part.encode()) <= 255 for part in parts)
    assert len(parts[-1].encode()) + 4 <= 255
    assert not any(folder.endswith(SUFFIXES) for folder in parts[:-1])
    assert os.path.normpath(f"/out/{key}") == f"/out/{key}"


@calmly
@given(st.lists(PATHS, min_size=2, max_size=12, unique=True))
def test_different_inputs_have_different_results(paths):
    keys = [key_of(path) for path in paths]
    assert len(set(keys)) == len(keys)
    files = {key + suffix for key in keys for suffix in SUFFIXES}
    folders = {"/".join(key.split("/")[:depth]) for key in keys for depth in range(1, key.count("/") + 1)}
    assert not files & folders


def test_all_small_paths_differ():
    parts = ["a", "a.png", "", ".", "..", "\udc80", "~" + "1" * 32 + "~a"]
    paths = ["/".join(p) for n in (1, 2, 3) for p in itertools.product(parts, repeat=n)]
    paths += [key_of(path) for path in paths if key_of(path) not in paths]
    assert len({key_of(path) for path in paths}) == len(paths)


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("s3://bucket/a/b c.jpg", "bucket/a/b c.jpg"),
        ("https://host:8080/a.jpg?x=1&y=2#top", "host%3A8080/a.jpg"),
        ("https://me:word@host/a%3Fb.jpg?sig=1", "host/a%253Fb.jpg"),
        ("http://h/a%20b.jpg", "h/a%2520b.jpg"),
        ("/data/a.jpg", "data/a.jpg"),
        ("file:///data/a.jpg", "data/a.jpg"),
        ("photos/é.jpg", "photos/é.jpg"),
        ("C:\\photos\\a.jpg", "C%3A%5Cphotos%5Ca.jpg"),
        ("s3://b/new\nline.jpg", "b/new%0Aline.jpg"),
    ],
)
def test_keys_of_uris(uri, key):
    assert key_of_uri(uri) == key


@calmly
@given(st.one_of(PATHS, PATHS.map("s3://b/{}".format), PATHS.map("zip://{0}::s3://b/a.zip".format)))
def test_no_uri_leaves_the_output(uri):
    key = key_of_uri(uri)
    assert os.path.normpath(f"/out/{key}") == f"/out/{key}"
    assert len(key.encode()) <= 800


@calmly
@given(st.lists(PATHS, min_size=2, max_size=6, unique=True))
def test_uris_of_one_scheme_have_different_keys(paths):
    assert len({key_of_uri(f"s3://b/{path}") for path in paths}) == len(paths)


@pytest.mark.parametrize(("key", "label"), [("a.jpg", None), ("cat/a.jpg", "cat"), ("cat/x/a.jpg", "cat")])
def test_label_is_the_first_folder(key, label):
    assert label_of(key) == label


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("dog/n02085620_Chihuahua.JPEG", "dog/n02085620_Chihuahua%2EJPEG"),
        ("cat", "cat"),
        ("a.b.c.jpg", "a%2Eb%2Ec%2Ejpg"),
        ("v1.2/.hidden.png", "v1%2E2/%2Ehidden%2Epng"),
        ("100%.png", "100%25%2Epng"),
        ("%2E.png", "%252E%2Epng"),
        ("new\nline.png", "new%0Aline%2Epng"),
        ("back\\slash.png", "back%5Cslash%2Epng"),
        ("__MACOSX__/__x__.png", "%5F_MACOSX__/__x__%2Epng"),
        ("_one/__two__/x.png", "_one/__two__/x%2Epng"),
        ("grüße 日本/🐕.png", "grüße 日本/🐕%2Epng"),
    ],
)
def test_names_of_samples(key, name):
    assert sample_name(key) == name
    assert unquote(name) == key


def test_names_of_samples_fit_on_disks():
    for key in ("n" * 251, "." + "n" * 240, "日" * 83, "." * 100 + "d" * 150 + "/a.jpg", "a/" + "%" * 249 + ".j"):
        parts = sample_name(key).split("/")
        assert len(f"{parts[-1]}.overlay.jpg".encode()) <= 255
        assert all(len(part.encode()) <= 255 for part in parts)
        assert len(parts) == key.count("/") + 1
        assert "." not in sample_name(key)
    assert sample_name("n" * 248 + ".aa") != sample_name("n" * 248 + ".ab")


@calmly
@given(st.lists(PATHS, min_size=2, max_size=30))
@example(["a.jpg", "a%2Ejpg", "a%252Ejpg", "a_jpg"])
@example(["__a.jpg", "%5F_a.jpg", "_a.jpg"])
@example(["a\\b.jpg", "a/b.jpg", "a%5Cb.jpg"])
def test_samples_of_different_keys_never_meet(paths):
    keys = {key_of(path) for path in paths}
    names = {sample_name(key) for key in keys}
    assert len(names) == len(keys)
    # and each is one sample to the pattern by which the webdataset package cuts names
    for name in names:
        match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", f"{name}.mask.png")
        assert match
        assert (match[1], match[2]) == (name, "mask.png")
        assert not re.match(r"__[^/]*__($|/)", f"{name}.mask.png")
