"""What pipeline tests share: one Ray session, and places behind a proxy."""

import pytest

from tests.servers import ENVIRONMENT
from vbp.storage.files import Folder


@pytest.fixture(scope="session")
def ray_session():
    """Four logical CPUs, whatever the machine has; its workers may use the S3 server."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        for tries_left in (2, 1, 0):
            try:
                ray.init("local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
                break
            except Exception as error:  # Ray has no other class for it
                if not tries_left or "timed out during startup" not in str(error):
                    raise
    yield
    ray.shutdown()


@pytest.fixture
def places(s3_server, fault_proxy):
    """INPUT with one image and OUTPUT, both behind the proxy."""
    folder = Folder(s3_server.new_url(), fault_proxy.storage_options)
    folder.write("photos/cat/a.jpg", b"1")
    return folder.uri("photos"), folder.uri("out"), fault_proxy.storage_options
