"""Every test of a `folder` runs on the local disk and on a real S3 server."""

import pytest

from vbp.storage.files import Folder


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    if request.param == "local":
        return Folder(tmp_path / "folder")
    server = request.getfixturevalue("s3_server")
    return Folder(server.new_url(), server.storage_options)
