"""Checkpoints of every form, and the errors of those that cannot be read."""

import hashlib
import json

import pytest
import safetensors.torch
import torch
import torchvision
from torchvision.models import Weights

from vbp.errors import WeightsError
from vbp.networks.weights import read_checkpoint

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.0, 2.0]), "count": torch.tensor(3)}


def assert_is_tensors(found, place=""):
    assert list(found) == [place + key for key in TENSORS]
    assert all(torch.equal(found[place + key], value) for key, value in TENSORS.items())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("nest", [None, "model", "state_dict", "net"])
def test_torch_checkpoints(tmp_path, nest, prefix):
    content = {prefix + key: value for key, value in TENSORS.items()}
    file = tmp_path / "some.pth"
    torch.save({nest: content, "epoch": 3} if nest else content, file)
    checkpoint = read_checkpoint(str(file), "vgg16")
    assert_is_tensors(checkpoint.tensors, f"{nest}." if nest else "")
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
        "a.weight": dtype,
        "a.bias": dtype,
        "count": torch.int64,
    }
    assert_is_tensors({key: checkpoint.tensors[key].to(TENSORS[key].dtype) for key in TENSORS})
    assert checkpoint.class_names == ("cat", "dog")


def in_parts(folder, save=safetensors.torch.save_file, suffix="safetensors"):
    """`TENSORS` in two files and their index, as Hugging Face keeps large networks."""
    names = {
        f"net-0000{number}-of-00002.{suffix}": keys for number, keys in ((1, ["a.weight"]), (2, ["a.bias", "count"]))
    }
    for name, keys in names.items():
        save({key: TENSORS[key] for key in keys}, folder / name)
    weight_map = {key: name for name, keys in names.items() for key in keys}
    index = folder / f"net.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 40}, "weight_map": weight_map}))
    return index, [folder / name for name in names]


@pytest.mark.parametrize(("save", "suffix"), [(safetensors.torch.save_file, "safetensors"), (torch.save, "bin")])
def test_a_checkpoint_in_parts_is_read_by_its_index(tmp_path, save, suffix, monkeypatch):
    index, parts = in_parts(tmp_path, save, suffix)
    monkeypatch.chdir(tmp_path)
    for uri in (str(index), index.name, f"file://{index}"):
        checkpoint = read_checkpoint(uri, "vgg16")
        assert {key: value.tolist() for key, value in checkpoint.tensors.items()} == {
            key: value.tolist() for key, value in TENSORS.items()
        }
    data = index.read_bytes() + b"".join(part.read_bytes() for part in parts)
    assert checkpoint.sha256 == hashlib.sha256(data).hexdigest()


def test_parts_on_a_store(tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    index, parts = in_parts(tmp_path)
    for file in (index, *parts):
        store.pipe(f"/parts/{file.name}", file.read_bytes())
    assert set(read_checkpoint(f"memory://parts/{index.name}", "vgg16").tensors) == set(TENSORS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"weight_map": {"a": "gone.bin"}}', "gone.bin, which .* names, cannot be read.*put all parts beside it"),
        ('{"weight_map": {"a": "../secret.bin"}}', "names the part '../secret.bin', which does not lie beside it"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "names the part '/etc/passwd', which does not lie beside it"),
        ('{"weight_map": {}}', "names none"),
        ('{"weight_map": 3}', "is a damaged index"),
        ('{"weight_map": {"a', "is a damaged index"),
        ('{"weight_map": {"a": "page.html"}}', r"\(its part page\.html\) is a web page"),
    ],
)
def test_a_damaged_index_is_named(tmp_path, text, said):
    (tmp_path / "page.html").write_text("<html>")
    (tmp_path / "net.index.json").write_text(text)
    with pytest.raises(WeightsError, match=said):
        read_checkpoint(str(tmp_path / "net.index.json"), "vgg16")


def test_a_folder_names_what_is_in_it(tmp_path):
    with pytest.raises(WeightsError, match="are a folder that is empty; give the file"):
        read_checkpoint(str(tmp_path), "vgg16")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(WeightsError, match=r"are a folder that holds pytorch_model\.bin; give the file"):
        read_checkpoint(str(tmp_path), "vgg16")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "bad is empty"),
        (b"hello, I am a text file", "bad is a text that begins 'hello, I am a text file'"),
        (b"PK\x03\x04 a broken zip", "bad is cut short or damaged"),
        ((2**40).to_bytes(8, "little") + b"{}", r"bad is cut short: it has 10 of \d+ bytes"),
        (safetensors.torch.save(TENSORS)[:-5], r"bad is cut short: it has \d+ of \d+ bytes"),
        (safetensors.torch.save(TENSORS)[:20], "bad is a damaged or cut safetensors file"),
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


@pytest.mark.parametrize(("near", "name"), [("demoo", "demo"), ("imagnet", "imagenet"), ("Random", "random")])
def test_a_near_name_is_suggested(tmp_path, monkeypatch, near, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=rf"did you mean {name}\? Otherwise give imagenet") as caught:
        read_checkpoint(near, "vgg16")
    assert str(caught.value).count("read") == 1


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
    monkeypatch.setattr("vbp.networks.weights.resources.files", lambda package: tmp_path)
    with pytest.raises(WeightsError, match="demo weights are missing"):
        read_checkpoint("demo", "vgg16")
