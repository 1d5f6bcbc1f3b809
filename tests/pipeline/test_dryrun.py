"""What `vbp plan` predicts, compared with what the run then does; and the plan writes nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from vbp.cli import main
from vbp.errors import UsageError
from vbp.pipeline import RunConfig, run
from vbp.pipeline.dryrun import Known, plan
from vbp.storage.files import Folder
from vbp.tables import print_plan


@pytest.fixture(autouse=True)
def torch_threads():
    """Two, on which 4 images are computed side by side, whatever machine this is."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def config(photos, network_file, tmp_path):
    def config(**changes):
        fields = {"input": str(photos), "output": str(tmp_path / "out"), "weights": network_file, "size": 32}
        return RunConfig(**fields | {"precision": "float32", "runner": "local"} | changes)

    return config


def everything_below(folder):
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in Path(folder).rglob("*")
    }


def test_a_first_run(config, photos, tmp_path):
    before = everything_below(photos)
    planned = plan(config())
    assert not (tmp_path / "out").exists()
    assert everything_below(photos) == before
    assert (planned.images, planned.done, planned.left) == (22, 0, 22)
    assert planned.bytes == sum(path.stat().st_size for path in photos.rglob("*.*"))
    assert (planned.shards, planned.shard_size) == (2, 16)
    assert (planned.runner, planned.workers, planned.device, planned.precision) == ("local", 1, "cpu", "float32")
    assert (planned.sampled, dict(planned.failures)) == (4, {})
    assert set(planned.sample_seconds) == {"fetch", "decode", "explain", "encode"}
    assert planned.images_per_second > 0
    assert planned.seconds == pytest.approx(22 / planned.images_per_second)
    assert planned.cost is None

    assert run(config()).ok == 22
    results = [path for kind in ("masks", "overlays") for path in (tmp_path / "out" / kind).rglob("*.*")]
    assert planned.output_bytes == pytest.approx(sum(path.stat().st_size for path in results), rel=0.3)


def test_the_sample_gives_every_core_its_share(config, torch_threads):
    torch_threads(5)
    assert plan(config()).sampled == 10
    assert plan(config(batch_size=3)).sampled == 3


def test_no_more_than_an_eighth_is_explained_for_a_plan(config, photos, tmp_path):
    tree = tmp_path / "photos"
    for copy in range(4):
        shutil.copytree(photos, tree / str(copy))
    assert plan(config(input=str(tree))).sampled == 8  # of 88, by fours
    run(config(input=str(tree), limit=80))
    assert plan(config(input=str(tree))).sampled == 4


def test_what_runs_of_one_kind_share(config):
    known = Known()
    first = plan(config(), known=known)
    other = plan(config(output=f"{config().output}2", seed=7, retry_failed=True), known=known)
    assert other.images_per_second == first.images_per_second
    assert other.rate_of == "of this machine, measured on 4 images, for a run of the same kind"
    assert plan(config(size=48), known=known).rate_of == "of this machine, measured on 4 images"
    assert len(known.measured) == 2


@pytest.mark.parametrize("done", [0, 5, 22])
def test_what_is_done_is_not_done_again(config, tmp_path, done):
    if done:
        run(config(limit=done))
    before = everything_below(tmp_path)
    planned = plan(config())
    assert (planned.images, planned.done, planned.left) == (22, done, 22 - done)
    assert (planned.seconds == 0) == (done == 22)
    assert everything_below(tmp_path) == before
    limited = plan(config(limit=10))
    assert (limited.images, limited.left) == (10, max(0, 10 - done))


def test_the_rate_of_an_earlier_run_here(config):
    run(config(batch_size=2, limit=20))
    planned = plan(config())
    assert planned.rate_of == "of the newest run in OUTPUT"
    assert plan(config(resume_mode="overwrite")).rate_of == "of this machine, measured on 4 images"
    assert plan(config(resume_mode="overwrite")).left == 22


def test_cost_and_time_at_a_given_rate(config):
    planned = plan(config(), price_per_hour=36.0, images_per_second=0.5)
    assert (planned.seconds, planned.cost, planned.rate_of) == (44.0, pytest.approx(0.44), "given")


def test_failures_to_come_are_seen_in_the_sample(config, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    for path in [*(tmp_path / "photos").rglob("*.png"), *(tmp_path / "photos").rglob("*.bmp")]:
        path.write_bytes(b"no image")
    planned = plan(config(input=str(tmp_path / "photos")))
    assert planned.failures == {"decode: NotAnImageError": planned.failures["decode: NotAnImageError"]}
    assert planned.images_per_second > 0
    for path in (tmp_path / "photos").rglob("*.*"):
        path.write_bytes(b"no image")
    hopeless = plan(config(input=str(tmp_path / "photos")))
    assert hopeless.failures == {"decode: NotAnImageError": 4}
    assert (hopeless.images_per_second, hopeless.seconds, hopeless.output_bytes) == (None, None, None)


def test_new_images_with_refresh(config, photos, tmp_path):
    tree = tmp_path / "photos"
    shutil.copytree(photos, tree)
    run(config(input=str(tree)))
    shutil.copy(tree / "cat" / "01.png", tree / "bird" / "new.png")
    assert plan(config(input=str(tree))).left == 0
    refreshed = plan(config(input=str(tree), refresh=True))
    assert (refreshed.images, refreshed.left) == (23, 1)


def test_failed_images_count_where_they_are_tried_again(config, photos, tmp_path):
    tree = tmp_path / "photos"
    shutil.copytree(photos, tree)
    (tree / "cat" / "01.png").write_bytes(b"no image")
    run(config(input=str(tree)))
    assert plan(config(input=str(tree))).left == 0
    assert plan(config(input=str(tree), retry_failed=True)).left == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": "/nowhere"}, "does not exist"),
        ({"overlay_style": "red"}, "overlay_style was 'heat', now 'red'"),
        ({"resume_mode": "fail"}, "--resume-mode"),
        ({"weights": "random"}, "weights was"),
        ({"model": "vgg99", "weights": "imagenet"}, "vgg99"),
        ({"decode": "gpu"}, "--decode gpu needs an NVIDIA GPU"),
    ],
)
def test_what_a_run_would_refuse_is_refused(config, tmp_path, changes, words):
    run(config(limit=1))
    before = everything_below(tmp_path)
    with pytest.raises(UsageError, match=words):
        plan(config(**changes))
    assert everything_below(tmp_path) == before


def test_weights_that_are_not_here_are_not_downloaded(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    planned = plan(config(weights="imagenet", model="squeezenet1_1", size=64, limit=2))
    assert "not here yet" in planned.notes[0]
    assert planned.images_per_second > 0
    assert not list(tmp_path.iterdir())


def test_what_a_listing_leaves_out(config, photos, tmp_path, capsys):
    root = shutil.copytree(photos, tmp_path / "photos")
    for name in ("cat/._00.jpg", "cat/notes.txt", "__MACOSX/a.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    planned = plan(config(input=str(root)), images_per_second=1)
    assert (planned.images, planned.left_out) == (22, {"system": 2, ".txt": 1})
    print_plan(planned)
    assert "2 are hidden or system files, 1 ends in .txt" in capsys.readouterr().out


def test_classes_that_a_run_would_refuse(config, tmp_path):
    (tmp_path / "names.txt").write_text("bird\ncat\ndogs\n")
    with pytest.raises(UsageError, match="folder 'dog' is none of the 3 class names in the file .* closest are 'dogs'"):
        plan(config(classes=str(tmp_path / "names.txt")), images_per_second=1)


def test_on_a_real_store(config, s3_server, photos):
    options = s3_server.storage_options
    folder = Folder(s3_server.new_url(), options)
    for path in sorted(photos.rglob("*.*"))[:3]:
        folder.write(f"photos/{path.name}", path.read_bytes())
    before = folder.list()
    planned = plan(config(input=folder.uri("photos"), output=folder.uri("out"), storage_options=options, runner="auto"))
    assert (planned.images, planned.left, planned.runner, planned.sampled) == (3, 3, "local", 3)
    assert folder.list() == before


def test_the_command(photos, network_file, tmp_path):
    arguments = [str(photos), str(tmp_path / "out"), "--weights", network_file, "--size", "32", "--price-per-hour", "9"]
    result = CliRunner().invoke(main, ["plan", *arguments])
    assert result.exit_code == 0, result.output
    for text in ("22", "in 2 shards of up to 16", "local runner", "images a second", "at 9 an hour", "to be written"):
        assert text in result.stdout
    assert list(tmp_path.iterdir()) == []
    told = json.loads(CliRunner().invoke(main, ["plan", *arguments, "--images-per-second", "2", "--json"]).stdout)
    assert (told["left"], told["seconds"], told["cost"]) == (22, 11.0, pytest.approx(0.0275))
    missing = CliRunner().invoke(main, ["plan"])
    assert (missing.exit_code, missing.stderr) == (2, "vbp: Both INPUT and OUTPUT are needed: vbp plan INPUT OUTPUT.\n")


def test_no_ray_is_loaded(photos, network_file, tmp_path):
    code = (
        "import sys; from click.testing import CliRunner; from vbp.cli import main; "
        f"result = CliRunner().invoke(main, ['plan', {str(photos)!r}, {str(tmp_path / 'out')!r}, '--weights', "
        f"{network_file!r}, '--size', '32', '--limit', '2', '--runner', 'ray']); "
        "print(result.exit_code, 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 False\n"
