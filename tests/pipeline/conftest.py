"""What pipeline tests share: places behind a proxy."""

import pytest

from vbp.storage.files import Folder


@pytest.fixture
def places(s3_server, fault_proxy):
    """INPUT with one image and OUTPUT, both behind the proxy."""
    folder = Folder(s3_server.new_url(), fault_proxy.storage_options)
    folder.write("photos/cat/a.jpg", b"1")
    return folder.uri("photos"), folder.uri("out"), fault_proxy.storage_options
