"""Checkpoints of every form, and the errors of those that cannot be read."""

import hashlib
import json

import pytest
import safetensors.torch
import torch
import torchvision
from torchvision.models import Weights

from vbp.errors import WeightsError
from vbp.saliency.weights import read_checkpoint

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.0, 2.0]), "count": torch.tensor(3)}


def assert_is_tensors(found):
    assert list(found) == list(TENSORS)
    assert all(torch.equal(found[key], value) for key, value in TENSORS.items())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("nest", [None, "model", "state_dict", "net"])
def test_torch_checkpoints(tmp_path, nest, prefix):
    content = {prefix + key: value for key, value in TENSORS.items()}
    file = tmp_path / "some.pth"
    torch.save({nest: content, "epoch": 3} if nest else content, file)
    checkpoint = read_checkpoint(str(file), "vgg16")
    assert_is_tensors(checkpoint.tensors)
    assert checkpoint.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert checkpoint.class_names is None


def test_old_torch_format(tmp_path):
    torch.save(TENSORS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_is_tensors(read_checkpoint(str(tmp_path / "old.pt"), "vgg16").tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_safetensors_of_any_float_type_with_class_names(tmp_path, dtype):
    content = {key: value.to(dtype) if key != "count" else value for key, value in TENSORS.items()}
    safetensors.torch.save_file(content, tmp_path / "x", metadata={"classes": json.dumps(["cat", "dog"])})
    checkpoint = read_checkpoint(f"file://{tmp_path}/x", "vgg16")
    assert {key: value.dtype for key, value in checkpoint.tensors.items()} == {
        "a.weight": torch.float32,
        "a.bias": torch.float32,
        "count": torch.int64,
    }
    assert_is_tensors({key: checkpoint.tensors[key] for key in TENSORS})
    assert checkpoint.class_names == ("cat", "dog")


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def test_pickled_code_is_not_run(tmp_path, capsys):
    torch.save({"model": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"bad.pth is no checkpoint of tensors alone.*state_dict"):
        read_checkpoint(str(tmp_path / "bad.pth"), "vgg16")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "bad is no"),
        (b"hello, I am a text file", "bad is no"),
        (b"PK\x03\x04 a broken zip", "bad is no readable checkpoint"),
        ((2**40).to_bytes(8, "little") + b"{}", "bad is no readable checkpoint"),
        (safetensors.torch.save(TENSORS)[:-5], "bad is no readable checkpoint"),
        (safetensors.torch.save({}), "bad holds no tensors"),
        (safetensors.torch.save(TENSORS, {"classes": "cat, dog"}), "must be a JSON list"),
    ],
)
def test_broken_files_are_named(tmp_path, data, reason):
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(WeightsError, match=reason):
        read_checkpoint(str(tmp_path / "bad"), "vgg16")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"cannot be read: .*none\.pth.*; give imagenet, demo, random"):
        read_checkpoint(str(tmp_path / "none.pth"), "vgg16")


def publish(folder, monkeypatch, *, url=None, honest=True):
    """Stand in for torchvision's server: its weights of every network are a small file in `folder`."""
    torch.save(TENSORS, folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest() if honest else "0123456789abcdef"
    file = (folder / "new.pth").rename(folder / f"net-{digest[:8]}.pth")

    class Fake:
        DEFAULT = Weights(url or file.as_uri(), None, {})

    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: Fake)
    return file


def test_imagenet_weights_are_downloaded_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    file = publish(tmp_path, monkeypatch)
    assert_is_tensors(read_checkpoint("imagenet", "vgg16").tensors)
    file.unlink()
    assert_is_tensors(read_checkpoint("imagenet", "vgg16").tensors)
    assert [path.name for path in (tmp_path / "home/hub/checkpoints").iterdir()] == [file.name]
    assert capsys.readouterr().out == ""


def test_download_with_another_hash_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    publish(tmp_path, monkeypatch, honest=False)
    with pytest.raises(WeightsError, match="cannot be downloaded.*invalid hash value"):
        read_checkpoint("imagenet", "vgg16")
    assert list((tmp_path / "home/hub/checkpoints").iterdir()) == []


def test_offline_error_names_every_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    publish(tmp_path, monkeypatch, url="http://127.0.0.1:9/net-01234567.pth")
    with pytest.raises(WeightsError) as caught:
        read_checkpoint("imagenet", "vgg16")
    for way in ("net-01234567.pth", "hub/checkpoints/", "TORCH_HOME", "--weights FILE_OR_URL", "--weights demo"):
        assert way in str(caught.value)


def test_missing_demo_weights_are_explained(tmp_path, monkeypatch):
    monkeypatch.setattr("vbp.saliency.weights.resources.files", lambda package: tmp_path)
    with pytest.raises(WeightsError, match="demo weights are missing"):
        read_checkpoint("demo", "vgg16")
