"""Files of torch.save: harmless objects beside the weights are skipped, and no code is ever run."""

import argparse
import collections
import datetime
import io
import pathlib
import pickle
import sys
import types
import warnings

import numpy as np
import pytest
import torch

from vbp.errors import WeightsError
from vbp.networks.pickled import load

WEIGHT = torch.arange(6.0)


def file_of(content, **options):
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "company",
    [
        argparse.Namespace(model="vgg16", lr=0.1, nested=argparse.Namespace(a=[1])),
        types.SimpleNamespace(epoch=3),
        np.float64(0.93),
        np.int64(7),
        np.bool_(True),
        np.arange(4.0),
        np.array(["a", "b"]),
        {"losses": [np.float32(1), np.float32(2)]},
        pathlib.PurePosixPath("/data/x"),
        pathlib.PureWindowsPath("c:/data"),
        pathlib.Path("/data"),
        collections.deque([1.0, 2.0], maxlen=20),
        collections.defaultdict(list, {"train": [1]}),
        datetime.datetime(2026, 11, 29, 12, 0, 0),
        datetime.timedelta(seconds=3),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_company(company, zipped):
    content = load(file_of({"model": WEIGHT, "beside": company}, _use_new_zipfile_serialization=zipped), "x.pth")
    assert torch.equal(content["model"], WEIGHT)


def foreign(monkeypatch, module, name, *, base=object):
    """A class of a package that is not installed here, as a file names it."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(parts[end - 1]))
    kind = type(name, (base,), {"__module__": module})
    setattr(sys.modules[module], name, kind)
    return kind


def test_settings_of_packages_that_are_not_here(monkeypatch):
    config = foreign(monkeypatch, "omegaconf.dictconfig", "DictConfig")()
    config.__dict__["_content"] = {"lr": 0.1}
    attributes = foreign(monkeypatch, "lightning.fabric.utilities.data", "AttributeDict", base=dict)(lr=0.1)
    data = file_of({"state_dict": WEIGHT, "cfg": config, "hyper_parameters": attributes})
    for module in ("omegaconf.dictconfig", "lightning.fabric.utilities.data"):
        monkeypatch.delitem(sys.modules, module)
    content = load(data, "x.ckpt")
    assert torch.equal(content["state_dict"], WEIGHT)
    assert content["hyper_parameters"] == {"lr": 0.1}


class Harmful:
    def __reduce__(self):
        return (eval, ("print('code ran')",))  # not print itself, which Ray replaces in its processes


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run_and_its_type_is_named(capsys, zipped):
    with pytest.raises(WeightsError) as caught:
        load(file_of({"model": WEIGHT, "x": Harmful()}, _use_new_zipfile_serialization=zipped), "bad.pth")
    assert str(caught.value).startswith("bad.pth holds an object of the type eval, and nothing but tensors is read")
    assert "torch.save(model.state_dict(), FILE)" in str(caught.value)
    assert "code ran" not in capsys.readouterr().out


def test_a_whole_network_is_named():
    with pytest.raises(WeightsError, match=r"holds a whole network of the type torch\.nn\.modules\.linear\.Linear"):
        load(file_of(torch.nn.Linear(2, 2)), "whole.pth")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (pickle.dumps({"model": [1.0]}), "is a pickle that torch.save did not write"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.torch", "is no checkpoint, or is damaged or cut short"),
        (bytes(range(255, 0, -1)), "is no checkpoint, or is damaged or cut short"),
        (file_of({"a": WEIGHT}, _use_new_zipfile_serialization=False)[:-9], "is no checkpoint, or is damaged"),
        (file_of({"a": WEIGHT, "b": object()}, pickle_protocol=4), "pickled by another protocol"),
    ],
)
def test_what_cannot_be_read_is_said_in_our_words(data, said):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with pytest.raises(WeightsError) as caught:
            load(data, "bad.pth")
    assert said in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert heard == []


def test_nothing_stays_allowed():
    before = torch.serialization.get_safe_globals()
    load(file_of({"model": WEIGHT}), "x.pth")
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_a_changed_byte_is_found_where_there_are_check_sums():
    data = file_of({"model": WEIGHT})
    at = data.index(WEIGHT.numpy().tobytes()) + 9
    changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    with pytest.raises(WeightsError, match=r"^x\.pth is damaged: its archive/data/0 is not what was saved"):
        load(changed, "x.pth")


def test_files_without_check_sums_are_read():
    torch.serialization.set_crc32_options(False)
    try:
        data = file_of({"model": WEIGHT})
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load(data, "x.pth")["model"], WEIGHT)
