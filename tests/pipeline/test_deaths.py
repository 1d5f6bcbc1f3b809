"""Images that kill the process that opens them: found, recorded, and harmless to all others.

The killing is done by a `sitecustomize` on PYTHONPATH, so that workers of every kind have it, and vbp knows nothing.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as pads
import pytest

from vbp.pipeline import RunConfig, run

DEADLY = b"whoever decodes this dies"
KILLER = f"""
import os, signal
from PIL import Image
plain = Image.open
def deadly(stream, *arguments, **keywords):
    if hasattr(stream, "getvalue") and {DEADLY!r} in stream.getvalue():
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(stream, *arguments, **keywords)
Image.open = deadly
"""
RUN = """
import sys
from functools import partial
import vbp.pipeline.on_ray.dataset as plans
from vbp.pipeline import RunConfig, run
source, output, weights, runner, shape = sys.argv[1:]
plans.plan = partial(plans.plan, spread=shape == "spread")
summary = run(RunConfig(input=source, output=output, weights=weights, size=32, precision="float32", batch_size=4,
                        runner=runner, workers=1, shard_size=22, max_failures="2"))
print(summary.ok, summary.error, summary.succeeded)
"""


@pytest.fixture(scope="module")
def undisturbed(photos, network_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    made = {"weights": network_file, "size": 32, "precision": "float32", "batch_size": 4, "runner": "local"}
    run(RunConfig(input=str(photos), output=str(out), **made))
    return {path.relative_to(out): path.read_bytes() for path in out.glob("masks/*/*")}


@pytest.fixture
def command(photos, network_file, tmp_path):
    """Runs the job on 22 good images and one or two that kill; returns the finished process."""
    (tmp_path / "killer").mkdir()
    (tmp_path / "killer" / "sitecustomize.py").write_text(KILLER)
    shutil.copytree(photos, tmp_path / "photos")
    good = (photos / "bird" / "00.jpg").read_bytes()
    (tmp_path / "photos" / "cat" / "deadly.jpg").write_bytes(good + DEADLY)
    paths = os.pathsep.join([str(tmp_path / "killer"), str(Path(__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)

    def start(runner, shape="fused"):
        arguments = [str(tmp_path / "photos"), str(tmp_path / "out"), network_file, runner, shape]
        return subprocess.run(
            [sys.executable, "-c", RUN, *arguments], env=environment, capture_output=True, text=True, timeout=500
        )

    return start


def assert_isolated(out, undisturbed):
    rows = {row["key"]: row for row in pads.dataset(out / "index").to_table().to_pylist()}
    failed = {key: (row["error_stage"], row["error_type"]) for key, row in rows.items() if row["status"] == "error"}
    assert failed == {"cat/deadly.jpg": ("worker", "WorkerDiedError")}
    assert "2 workers died with this image alone in hand" in rows["cat/deadly.jpg"]["error_message"]
    assert (len(rows), rows["cat/deadly.jpg"]["mask_uri"]) == (23, None)
    assert {path.relative_to(out): path.read_bytes() for path in out.glob("masks/*/*")} == undisturbed
    assert not [path for path in out.glob("_run/parts/*/*") if path.suffix != ".parquet"], "no marks are left"


def test_in_this_process_across_restarts_of_the_command(command, undisturbed, tmp_path):
    ends = [command("local")]
    while ends[-1].returncode == -signal.SIGKILL and len(ends) < 8:
        ends.append(command("local"))
    assert ends[-1].stdout.split() == ["22", "1", "True"], ends[-1].stderr
    assert len(ends) <= 5, "once unawares, twice alone, and one more for each commit on the way"
    assert_isolated(tmp_path / "out", undisturbed)


@pytest.mark.parametrize("shape", ["fused", pytest.param("spread", marks=pytest.mark.slow)])
def test_in_workers_of_ray_within_one_run(command, undisturbed, tmp_path, shape):
    done = command("ray", shape)
    assert done.stdout.splitlines()[-1:] == ["22 1 True"], done.stderr
    assert_isolated(tmp_path / "out", undisturbed)
