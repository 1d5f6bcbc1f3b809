"""Which source of networks a name means, and what the record keeps of it."""

import os
from pathlib import Path

import pytest

from vbp.networks.names import absolute, recorded, source_of, weights_in_words, weights_of


@pytest.mark.parametrize(
    ("model", "source"),
    [
        ("vgg16", "torchvision"), ("", "torchvision"), ("my.nets", "torchvision"), ("timm:resnet18.a1_in1k", "timm"),
        ("my.nets:build", "code"), ("mine:Net", "code"), ("nets/mine.py:build", "code"), ("/a b/mine.py:Net", "code"),
        ("net.onnx", "onnx"), ("s3://b/a:b/net.onnx", "onnx"), ("/a/net.pt2", "exported"),
        ("NET.ONNX", "onnx"), ("Net.Pt2", "exported"), ("Mine.PY:f", "code"), ("MINE.PY", "code"),
        ("mine.py", "code"), ("https://host/mine.py:build", "code"), (":", "code"), ("mine.py:", "code"),
    ],
)  # fmt: skip
def test_the_form_of_a_name_tells_its_source(model, source):
    assert source_of(model) == source


def test_default_weights_are_what_the_source_brings():
    assert weights_of("vgg16", None) == weights_of("timm:resnet18", None) == "imagenet"
    assert weights_of("mine.py:build", None) == weights_of("net.onnx", None) == "own"
    assert weights_of("mine.py:build", "mine.pth") == "mine.pth"


def test_weights_that_were_asked_for_are_never_others():
    assert weights_of("mine.py:build", "imagenet") == "imagenet"  # and its source refuses them


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("vgg16", "imagenet, demo, random, a file or a URL"), ("resnet50", "imagenet, random, a file or a URL"),
        ("timm:vgg16", "imagenet, random, a file or a URL"), ("mine.py:build", "own, a file or a URL"),
    ],
)  # fmt: skip
def test_the_weights_that_a_network_may_have(model, named):
    assert weights_in_words(model) == named


def test_a_file_is_known_by_its_content_not_by_its_folder():
    assert recorded("/home/me/nets/mine.py:build") == recorded("mine.py:build") == "mine.py:build"
    assert recorded("my.nets:build") == "my.nets:build"
    assert recorded("s3://bucket/net.onnx") == recorded("/home/me/net.onnx") == "net.onnx"


def test_a_file_of_this_machine_gets_its_whole_path():
    assert absolute("nets/mine.py:build") == f"{Path.cwd()}/nets/mine.py:build"
    assert absolute("~/mine.py:build") == f"{os.path.expanduser('~')}/mine.py:build"
    assert absolute("mine.py") == "mine.py"  # the missing function is told in the user's own words
    assert absolute("my.nets:build") == "my.nets:build"
    assert (absolute("net.onnx"), absolute("s3://b/net.pt2")) == (f"{Path.cwd()}/net.onnx", "s3://b/net.pt2")
    assert (absolute("NET.ONNX"), absolute("Mine.PY:f")) == (f"{Path.cwd()}/NET.ONNX", f"{Path.cwd()}/Mine.PY:f")
    assert absolute("s3://b/mine.py:build") == "s3://b/mine.py:build"  # its error names it as the user did
    assert absolute("vgg16") == "vgg16"
