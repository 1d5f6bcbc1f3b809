"""Class files of every shape say the same."""

import codecs
import json

import pytest

from vbp.networks.classfile import ClassNames, parse_class_file

NAMES = ("zebra", "tiger cat", "dog, hound")
IDS = ("n02391049", "n02123159", "n02084071")
ROWS = list(zip(range(3), IDS, NAMES, strict=True))

PLAIN = "zebra\ntiger cat\ndog, hound\n"
NUMBERED = {
    "blank": "0 zebra\n1 tiger cat\n2 dog, hound",
    "colon": "0: zebra\n1:tiger cat\n2 : dog, hound",
    "tab": "0\tzebra\n1\ttiger cat\n2\tdog, hound\n",
    "from one": "1. zebra\n2. tiger cat\n3. dog, hound\n",
    "another order": "2 dog, hound\n0 zebra\n1 tiger cat\n",
    "behind": "zebra 0\ntiger cat\t1\ndog, hound,2\n",
    "header": "index,name\n0,zebra\n1,tiger cat\n2,dog, hound\n",
    "with parentheses": "0) zebra\n1) tiger cat\n2) dog, hound\n",
    "padded": "000 zebra\n001 tiger cat\n002 dog, hound\n",
}
VALUES = {
    "list": list(NAMES),
    "by number": {str(n): name for n, _, name in ROWS},
    "by number, in another order": {str(n): name for n, _, name in reversed(ROWS)},
    "numbers by name": {name: n for n, _, name in ROWS},
    "nested": {"classes": list(NAMES)},
    "nested by number": {"id2label": {str(n): name for n, _, name in ROWS}},
    "objects": [{"id": n, "name": name} for n, _, name in ROWS],
}


@pytest.mark.parametrize(
    "text",
    [PLAIN, "\n# mine\n" + PLAIN.replace("\n", "\r\n\r\n"), PLAIN.rstrip(), '"zebra",\n"tiger cat",\n"dog, hound"\n']
    + list(NUMBERED.values())
    + [json.dumps(value) for value in VALUES.values()]
    + ["{0: 'zebra',\n 1: 'tiger cat',\n 2: 'dog, hound'}"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_every_shape_and_encoding_says_the_same(text, encoding):
    assert parse_class_file(text.encode(encoding)) == ClassNames(NAMES)


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{wnid} {name}\n" for _, wnid, name in ROWS),
        "".join(f"{n} {wnid} {name}\n" for n, wnid, name in ROWS),
        json.dumps({str(n): [wnid, name] for n, wnid, name in ROWS}),
        json.dumps([[wnid, name] for _, wnid, name in ROWS]),
    ],
)
def test_ids_beside_names(text):
    assert parse_class_file(text.encode()) == ClassNames(NAMES, IDS)


def test_ids_of_another_kind():
    assert parse_class_file(b'{"0": ["a1", "zebra"], "1": ["b2", "cat"]}') == ClassNames(("zebra", "cat"), ("a1", "b2"))


def test_ids_alone_are_names_as_well():
    assert parse_class_file("\n".join(IDS).encode()) == ClassNames(IDS, IDS)


def test_one_line_with_commas():
    assert parse_class_file(b"zebra, cat,dog").names == ("zebra", "cat", "dog")


@pytest.mark.parametrize("lines", [["3 people", "5 people"], ["0 cat", "2 dog"], ["0 cat", "dog"], ["[none]", "cat"]])
def test_numbers_that_do_not_count_are_parts_of_names(lines):
    assert parse_class_file("\n".join(lines).encode()).names == tuple(lines)


def test_a_name_may_begin_with_a_point():
    assert parse_class_file(b"0\t.net\n1 .com\n").names == (".net", ".com")


def test_a_mark_without_a_name():
    assert parse_class_file(codecs.BOM_UTF8 + "caf\u00e9\n".encode()).names == ("caf\u00e9",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no name"),
        (b"\n# nothing\n", "holds no name"),
        (b"[]", "holds no name"),
        (b"caf\xe9\n", "no text in UTF-8: .* at byte 3"),
        (codecs.BOM_UTF16_LE + b"a", "no text in UTF-16"),
        (b'{"0": "cat", "2": "dog"}', "its 2 entries are not numbered 0 to 1"),
        (b'{"cat": "dog", "a": "b"}', "its 2 entries are not numbered"),
        (b'[["a", 1]]', "is no name"),
        (b'[["n01440764", ""]]', "entry 0 is empty"),
        (b'{"a": 1.5, "b": true}', "are not numbered"),
    ],
)
def test_what_is_no_class_file(data, message):
    with pytest.raises(ValueError, match=message):
        parse_class_file(data)


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 100_000, "[" + "-" * 200_000])
def test_deep_nesting_is_no_crash(text):
    assert parse_class_file(text.encode()).names == (text,)
