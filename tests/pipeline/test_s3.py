"""The main job from bucket to bucket, on a real S3 server."""

import io
import json
import subprocess
import sys

import numpy as np
import pyarrow.dataset as pads
import pyarrow.fs
import pytest

from vbp.errors import UsageError
from vbp.pipeline import RunConfig, run
from vbp.storage.files import Folder


@pytest.fixture
def bucket(s3_server, photos):
    """A folder of a bucket with the small image tree in ``photos/``."""
    folder = Folder(s3_server.new_url(), s3_server.storage_options)
    for path in photos.rglob("*.*"):
        folder.write(f"photos/{path.relative_to(photos)}", path.read_bytes())
    return folder


def config(source, output, network_file, options, **changes):
    fields = {"size": 64, "precision": "float32", "batch_size": 4, "runner": "local", "mask_format": "npy"}
    return RunConfig(input=source, output=output, weights=network_file, storage_options=options, **fields | changes)


def masks_of(folder):
    return {path: np.load(io.BytesIO(folder.read(path))) for path in folder.list("masks")}


def test_bucket_to_bucket_equals_disk_to_disk(bucket, s3_server, photos, network_file, tmp_path):
    options = s3_server.storage_options
    summary = run(config(bucket.uri("photos"), bucket.uri("out"), network_file, options))
    assert (summary.ok, summary.error) == (22, 0)
    run(config(str(photos), str(tmp_path / "out"), network_file, {}))
    found, wanted = masks_of(bucket.child("out")), masks_of(Folder(str(tmp_path / "out")))
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[path], wanted[path]) for path in wanted)
    store = pyarrow.fs.S3FileSystem(endpoint_override=s3_server.endpoint)
    rows = pads.dataset(bucket.uri("out/index").removeprefix("s3://"), filesystem=store).to_table().to_pylist()
    assert len(rows) == 22
    for row in rows:
        assert row["uri"] == bucket.uri(f"photos/{row['key']}")
        assert row["mask_uri"] == bucket.uri(f"out/masks/{row['key']}.npy")
    again = run(config(bucket.uri("photos"), bucket.uri("out"), network_file, options))
    assert (again.ok, again.computed) == (22, 0)


@pytest.mark.slow
def test_through_ray_on_the_command_line(bucket, s3_options, network_file):
    done = subprocess.run(
        [
            sys.executable, "-m", "vbp.cli", "explain", bucket.uri("photos"), bucket.uri("out"),
            "--weights", network_file, "--size", "64", "--storage-options", s3_options,
            "--runner", "ray", "--workers", "1", "--json",
        ],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["runner"], summary["ok"], summary["output"]) == ("ray", 22, bucket.uri("out"))
    assert bucket.exists("out/_SUCCESS")


def test_a_missing_bucket_is_a_usage_error(s3_server, network_file, tmp_path):
    with pytest.raises(UsageError, match="INPUT.*no-such-bucket"):
        run(config("s3://no-such-bucket/photos", str(tmp_path / "out"), network_file, s3_server.storage_options))


def test_secrets_are_refused_and_the_way_out_is_named(bucket, network_file, tmp_path):
    with pytest.raises(UsageError, match="AWS_SECRET_ACCESS_KEY"):
        run(config(bucket.uri("photos"), str(tmp_path / "out"), network_file, {"s3://": {"secret": "x"}}))
