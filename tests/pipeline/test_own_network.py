"""The job on a network of one's own: the same masks as the library's, here and on Ray; what cannot be is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import pyarrow.dataset as pads
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from vbp.cli import main
from vbp.errors import UsageError
from vbp.images.encode import decode_mask
from vbp.pipeline import Observer, RunConfig, run
from vbp.pipeline.job import drive
from vbp.pipeline.steps import Explain
from vbp.saliency import Explainer, VisualBackProp

pytestmark = pytest.mark.usefixtures("finders_as_before")

MEAN, STD = (0.5, 0.3, 0.1), (0.5, 0.25, 0.125)
NET = f"""
from parts_of_mine import block
from torch import nn

class Net(nn.Module):
    preprocessing = {{"mean": {MEAN}, "std": {STD}, "size": 48}}
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Sequential(block(3, width), nn.MaxPool2d(2), block(width, 6))
        self.fc = nn.Linear(6, 3)
    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))
"""
PARTS = """
from torch import nn

def block(before, behind):
    return nn.Sequential(nn.Conv2d(before, behind, 3, padding=1), nn.ReLU())
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(NET)
    (tmp_path / "code" / "parts_of_mine.py").write_text(PARTS)
    return tmp_path / "code" / "mine.py"


def config(photos, out, **changes):
    fields = {"precision": "float32", "runner": "local", "batch_size": 4, "limit": 5, "fit": "stretch"}
    return RunConfig(input=str(photos), output=str(out), **fields | changes)


def bytes_of(out, kind="masks"):
    return {path.relative_to(out): path.read_bytes() for path in sorted((out / kind).rglob("*.*"))}


def test_library_and_job_see_the_same(photos, file, tmp_path):
    """The masks, the overlay's picture, the index and the record are of the network's own pixels."""
    out, model = tmp_path / "out", f"{file}:Net"
    changes = {"outputs": ("mask", "input", "overlay"), "overlay_style": "reference", "mask_format": "npy"}
    run(config(photos, out, model=model, **changes))
    explainer = Explainer(model, device="cpu", precision="float32")
    vbp = VisualBackProp(explainer.model.network)
    rows = pads.dataset(out / "index").to_table().to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 5
    for row in rows:
        assert (row["model"], row["weights"], row["predicted_label"]) == ("mine.py:Net", explainer.model.sha256, None)
        pixels_HWC = np.array(Image.open(out / "inputs" / f"{row['key']}.png"))
        assert pixels_HWC.shape == (48, 48, 3)
        mask_HW = decode_mask(Path(row["mask_uri"]).read_bytes())
        image_HWC = (pixels_HWC / 255 - MEAN) / STD
        by_hand = vbp(torch.from_numpy(image_HWC.transpose(2, 0, 1).copy())[None].float())[0, 0]
        np.testing.assert_allclose(mask_HW, by_hand, atol=2e-5)
        batch = explainer(pixels_HWC[None])
        np.testing.assert_allclose(mask_HW, batch.mask_BHW[0], atol=2e-5)
        assert row["prediction"] == int(batch.logits_BK[0].argmax())
        overlay_HWC = np.asarray(Image.open(row["overlay_uri"])) / 255
        wrong_HWC = (pixels_HWC / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        right, wrong = (np.abs(overlay_HWC - drawn(seen, mask_HW)).mean() for seen in (image_HWC, wrong_HWC))
        assert right < 0.02 < 0.04 < wrong  # JPEG
    record = json.loads((out / "_run" / "run.json").read_text())
    assert (record["fingerprint"]["mean"], record["fingerprint"]["size"]) == (list(MEAN), 48)
    file.write_text("raise SystemExit('nobody runs it to look at results')")
    for command in (
        ["status", str(out)],
        ["validate", str(out)],
        ["report", str(out), "--to", str(tmp_path / "page.html")],
    ):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output


def drawn(image_HWC, mask_HW):
    """As the reference project draws: red by ten times the mask, then from the least to the greatest value."""
    drawn_HWC = image_HWC + 10 * mask_HW[..., np.newaxis] * (1, 0, 0)
    return (drawn_HWC - drawn_HWC.min()) / (drawn_HWC.max() - drawn_HWC.min())


class Deletes(Observer):
    """Deletes a folder once all is prepared, before the first image is worked on."""

    def __init__(self, folder):
        self.folder = folder

    def started(self, images, done):
        self.folder.rename(self.folder.parent / "gone")


def exported(folder):
    """A network as an ONNX file, and one as a program of ``torch.export``; the settings of runs on them."""
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])
    scores = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "net", [image], [scores], [weight])), folder / "net.onnx")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 32, 32),)), folder / "net.pt2")
    return [{"model": str(folder / name), "mean": MEAN, "std": STD, "size": 32} for name in ("net.onnx", "net.pt2")]


def test_workers_of_ray_make_networks_of_every_source(ray_session, photos, file, tmp_path):
    """The same masks as in this process; own code needs no file there."""
    own = {"model": f"{file}:Net", "model_args": {"width": 5}}
    networks = [own, {"model": "timm:test_resnet", "weights": "random"}, *exported(tmp_path)]
    ray, local = ([tmp_path / f"{kind}{number}" for number in range(4)] for kind in ("ray", "local"))
    for place, network in zip(local, networks, strict=True):
        run(config(photos, place, **network))
    configs = [
        config(photos, place, **each, runner="ray", workers=1) for place, each in zip(ray, networks, strict=True)
    ]
    ends = drive(dict(zip("abcd", configs, strict=True)), Deletes(file.parent))
    assert [(end.result().ok, end.result().runner) for end in ends.values()] == [(5, "ray")] * 4
    for one, other in zip(ray, local, strict=True):
        assert bytes_of(one) == bytes_of(other)
        assert len(bytes_of(one)) == 5


def test_code_that_fails_on_a_worker_alone_is_refused_before_any_work(ray_session, photos, tmp_path):
    text = "import ray\nif ray.get_runtime_context().get_task_id():\n    raise OSError('no driver here')\n"
    (tmp_path / "mine.py").write_text(text + "from torch import nn\ndef build(): return nn.Conv2d(3, 1, 1)")
    settings = {"mean": MEAN, "std": STD, "size": 32, "runner": "ray"}
    model = f"{tmp_path}/mine.py:build"
    (tmp_path / "mine.py").write_text(text + NET.replace("from parts_of_mine import block\n", PARTS))
    with pytest.raises(UsageError, match=r"^Node [\d.]+ cannot make the network: model .* cannot be imported: OSError"):
        run(config(photos, tmp_path / "out", model=model.replace("build", "Net"), **settings))
    assert not (tmp_path / "out" / "masks").exists()


def test_changed_code_does_not_continue_an_output(photos, file, tmp_path):
    out, model = tmp_path / "out", f"{file}:Net"
    run(config(photos, out, model=model))
    moved = tmp_path / "moved"
    file.parent.rename(moved)
    assert run(config(photos, out, model=f"{moved}/mine.py:Net")).computed == 0  # where it lies does not count
    (moved / "parts_of_mine.py").write_text(PARTS + "\n# another thought\n")
    with pytest.raises(UsageError, match=r"the code of --model \(=.*mine\.py:Net\) has changed since"):
        run(config(photos, out, model=f"{moved}/mine.py:Net"))
    with pytest.raises(UsageError, match=r"model_args was \{\}, now \{'width': 5\}"):
        run(config(photos, out, model=f"{moved}/mine.py:Net", model_args={"width": 5}))


READS = """
import json
from pathlib import Path
from torch import nn

def build():
    print("built")
    said = json.loads((Path(__file__).parent / "said.json").read_text())
    network = nn.Sequential(nn.Conv2d(3, 4, 3), getattr(nn, said["act"])(), nn.Conv2d(4, 4, 3), nn.ReLU())
    network.preprocessing = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "size": 32}
    return network
"""


@pytest.fixture
def reads(tmp_path):
    """A network that reads its settings from a file."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "reads.py").write_text(READS)
    (tmp_path / "code" / "said.json").write_text('{"act": "ReLU"}')
    return f"{tmp_path}/code/reads.py:build"


def test_a_network_that_has_become_another_does_not_continue_an_output(photos, reads, tmp_path):
    """Its code is the same, and so are its weights, but it has read other settings."""
    out, said, record = tmp_path / "out", tmp_path / "code" / "said.json", tmp_path / "out" / "_run" / "run.json"
    run(config(photos, out, model=reads, limit=2))
    assert run(config(photos, out, model=reads, limit=2)).computed == 0
    said.write_text('{"act": "Sigmoid"}')
    with pytest.raises(UsageError, match=r"another configuration: --model \(=.*build\) makes another network now, of"):
        run(config(photos, out, model=reads, limit=2))
    facts = json.loads(record.read_text())
    del facts["fingerprint"]["structure_sha256"]
    record.write_text(json.dumps(facts))
    assert run(config(photos, out, model=reads, limit=3)).computed == 1  # begun by an older vbp, which did not know


def test_a_worker_that_makes_another_network_is_refused(photos, reads, tmp_path):
    model = Explainer(reads, device="cpu", precision="float32").model
    settings = {"engine": {"model": reads, "code": model.code}, "weights_sha256": model.sha256}
    Explain(**settings, structure_sha256=model.structure_sha256)
    (tmp_path / "code" / "said.json").write_text('{"act": "Sigmoid"}')
    with pytest.raises(UsageError, match=r"--model \(=.*reads\.py:build\) makes another network on this worker"):
        Explain(**settings, structure_sha256=model.structure_sha256)


@pytest.mark.parametrize("command", ["explain", "plan", "sweep", "sweep --plan"])
def test_what_own_code_prints_is_no_part_of_the_json(command, photos, reads, tmp_path, capfd):
    loud = READS.replace("network.pre", "network.register_forward_hook(lambda *_: print('seen'))\n    network.pre")
    (tmp_path / "code" / "reads.py").write_text(loud)
    arguments = [str(photos), str(tmp_path / "out"), f"--model={reads}", "--limit=1", "--runner=local"]
    if "sweep" in command:
        common = {"model": reads, "limit": 1, "runner": "local"}
        runs = {"output": str(tmp_path / "out"), "inputs": str(photos), "common": common, "grid": {"smooth": [0, 1]}}
        (tmp_path / "sweep.yaml").write_text(json.dumps(runs))
        arguments = [str(tmp_path / "sweep.yaml")]
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), *arguments, "--json"])
    assert not caught.value.code
    printed = capfd.readouterr()
    assert json.loads(printed.out)
    assert "built" in printed.err
    assert "seen" in printed.err


@pytest.mark.parametrize("weights", ["imagenet", "demo", "random"])
@pytest.mark.parametrize("model", ["reads.py:build", "net.onnx", "net.pt2"])
def test_weights_that_were_asked_for_are_never_others(weights, model, photos, reads, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "code")
    with pytest.raises(UsageError, match=f"there are no {weights} weights|leave out --weights \\(={weights}\\)"):
        run(config(photos, tmp_path / "out", model=model, weights=weights))


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        ("nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU())", [], "--mean and --std are needed: net.py:build does not say"),
        ("nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU())", ["--mean=0,0,0", "--std=1,1,1"], "--size is needed"),
        ("nn.Sequential(nn.Linear(3, 1), nn.ReLU())", None, "has no 2-d convolution"),
        ("nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())", None, "--channels (=rgb) make an input of 3, but the network"),
        ("nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.ReLU())", None, "--size (=32) does not"),
        ("nn.Sequential(nn.Conv2d(3, 2, 40), nn.ReLU())", None, "--size (=32) does not suit --model"),
        ("1/0", None, "raises: ZeroDivisionError: division by zero (line 2 of net.py)"),
        ("None", None, "gives nothing (None), not a torch.nn.Module"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_any_work(photos, tmp_path, capsys, build, options, words):
    (tmp_path / "net.py").write_text(f"from torch import nn\ndef build(): return {build}")
    options = ["--mean=0,0,0", "--std=1,1,1", "--size=32"] if options is None else options
    arguments = ["explain", str(photos), str(tmp_path / "out"), f"--model={tmp_path}/net.py:build", *options]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()
