"""Nothing secret is written, printed or sent to workers; and no name leads out of OUTPUT."""

import json
import os
import pickle
import subprocess
import sys
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faultproxy import Fault
from vbp.errors import StorageError
from vbp.pipeline import RunConfig
from vbp.storage.files import Folder
from vbp.storage.naming import key_of, key_of_uri

SECRETS = ("testsecret", "verysecrettoken", "hunter2signature")


def test_no_secret_in_anything_written_or_printed(s3_server, fault_proxy, photos, network_file, tmp_path):
    """One image is denied, one is named by a signed URL of a server that is not there."""
    folder = Folder(s3_server.new_url(), fault_proxy.storage_options)
    images = sorted(photos.rglob("*.jpg"))[:6]
    for path in images:
        folder.write(f"photos/{path.name}", path.read_bytes())
    uris = [folder.uri(f"photos/{path.name}") for path in images]
    signed = "http://127.0.0.1:9/a.jpg?X-Amz-Credential=hunter2signature&X-Amz-Signature=hunter2signature"
    manifest = tmp_path / "images.csv"
    manifest.write_text("uri,key\n" + "".join(f"{uri},{number}.jpg\n" for number, uri in enumerate(uris)))
    fault_proxy.faults = [Fault("denied", methods="GET", path=images[0].name)]
    output = folder.child("out")
    done = subprocess.run(
        [
            sys.executable, "-m", "vbp.cli", "explain", str(manifest), output.url, "--weights", network_file,
            "--size", "64", "--storage-options", json.dumps(fault_proxy.storage_options), "--runner", "local",
            "--max-failures", "50%", "--json",
        ],
        env=os.environ | {"AWS_SESSION_TOKEN": "", "VBP_TEST_TOKEN": "verysecrettoken"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["error"] == 1
    everything = [done.stdout.encode(), done.stderr.encode(), *(output.read(path) for path in output.list())]
    assert len(everything) > 8
    assert not [secret for secret in SECRETS for data in everything if secret.encode() in data]
    with pytest.raises((StorageError, OSError)) as caught:
        Folder(signed).read("x")
    assert "hunter2signature" not in str(caught.value)


def test_what_travels_to_workers_holds_no_secret(s3_server):
    folder = Folder(s3_server.new_url(), s3_server.storage_options)
    folder.write("a", b"")
    config = RunConfig(input=folder.url, output=folder.url + "-out", storage_options=s3_server.storage_options)
    for thing in (folder, config):
        assert not [secret for secret in SECRETS if secret.encode() in pickle.dumps(thing)]


HOSTILE = st.one_of(
    st.text(min_size=1, max_size=40),
    st.lists(
        st.sampled_from(["..", ".", "", "a", "C:", "C:\\", "~", "\n", "\x01", "\x7f", "a\\..\\..\\b", "é", "%2e%2e"]),
        min_size=1, max_size=6,
    ).map("/".join),
)  # fmt: skip


@pytest.mark.parametrize("store", ["local", "s3"])
def test_no_key_leads_out_of_the_output(store, request, tmp_path):
    if store == "s3":
        server = request.getfixturevalue("s3_server")
        home = Folder(server.new_url(), server.storage_options)
    else:
        home = Folder(tmp_path)

    @settings(max_examples=60, deadline=None)
    @given(HOSTILE, st.booleans())
    def inside(name, as_uri):
        output = home.child(f"{uuid.uuid4().hex}/out")
        path = f"masks/{(key_of_uri if as_uri else key_of)(name)}.png"
        output.write(path, b"1")
        assert output.list() == [path]
        assert output.read(path) == b"1"
        assert home.list(output.url.split("/")[-2]) == [f"{output.url.split('/')[-2]}/out/{path}"]

    inside()


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "a\0b"])
@pytest.mark.parametrize("url", ["/tmp/vbp-out", "memory://vbp/out"])
def test_a_folder_refuses_paths_that_lead_elsewhere(url, path):
    with pytest.raises(StorageError, match="does not lie within"):
        Folder(url).write(path, b"")
