"""Fixtures that tests of several rooms share."""

import gc
import os
import sys
import warnings

import pytest

# Before anything imports torchvision: else each process waits for the compiler.
import vbp.light_torchvision  # noqa: F401
from tests.servers import (
    ENVIRONMENT,
    any_store,
    azure_server,
    careless_server,
    fault_proxy,
    gcs_server,
    s3_options,
    s3_server,
    sftp_server,
)
from tests.small import network_file, photos
from tests.small_networks import one_thread, pixels_BHWC

__all__ = [
    "any_store",
    "azure_server",
    "careless_server",
    "fault_proxy",
    "gcs_server",
    "network_file",
    "one_thread",
    "photos",
    "pixels_BHWC",
    "s3_options",
    "s3_server",
    "sftp_server",
]

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # before gcsfs is imported: it asks Google about buckets
os.environ["RAY_AUTH_MODE"] = "disabled"  # before Ray is imported: else it writes a token file into the home folder


@pytest.fixture
def finders_as_before():
    """A network of one's own brings a finder of modules, which stays; after the test it is gone."""
    finders = list(sys.meta_path)
    yield
    sys.meta_path[:] = finders


def started_ray(tries_left):
    """Whether Ray has started; it gives up by itself after 30 s, which a busy machine may need."""
    import ray

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "subprocess .* is still running", ResourceWarning)
        try:
            ray.init("local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        except Exception as error:  # Ray has no other class for it
            if not tries_left or "timed out during startup" not in str(error):
                raise
        gc.collect()  # now, and not in a test: Ray does not wait for the processes that it has given up
    return ray.is_initialized()


@pytest.fixture(scope="session")
def ray_session():
    """Four logical CPUs, whatever the machine has; its workers may use the S3 server."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        for tries_left in (2, 1, 0):
            if started_ray(tries_left):
                break
    yield
    ray.shutdown()


@pytest.fixture
def own_ray():
    """Asked for by a test that starts a Ray in a process of its own."""


CLUSTERS = ("tests/jobs/", "tests/cluster/test_rehearsal.py", "tests/pipeline/test_gpu_head.py")
"""Tests that start a Ray of their own; each takes a minute and more."""


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="only short tests without Ray, servers and whole runs")


def pytest_configure(config):
    if config.option.quick:
        config.pluginmanager.register(Quick())  # the hooks of a conftest.py are not asked about fixtures of the session


class Quick:
    """Leaves out tests by their marks and by the fixtures that they use."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config, items):
        left_out = {item for item in items if self._needs_much(item)}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef):
        if self._is_heavy(fixturedef):  # a test may also ask for one while it runs
            fixturedef.func, fixturedef.argnames = self._skip, ()

    @staticmethod
    def _skip():
        pytest.skip("it needs a server, a Ray or a whole run")

    def _needs_much(self, item):
        definitions = item._fixtureinfo.name2fixturedefs.values()
        marked = any(item.get_closest_marker(name) for name in ("slow", "long"))
        return marked or item.nodeid.startswith(CLUSTERS) or any(self._is_heavy(found[-1]) for found in definitions)

    def _is_heavy(self, definition):
        """Whether it brings a Ray, a server, or the weights of a network for whole runs."""
        heavy = ("ray_session", "own_ray", "network_file")
        return definition.func.__module__ == "tests.servers" or definition.argname in heavy


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config, items):
    """Where tests run side by side: all that share a Ray in one process, else a file in one, the longest first."""
    for item in items:
        group = "ray" if "ray_session" in item.fixturenames else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


def _turn(item):
    if item.nodeid.startswith(CLUSTERS):
        return 0
    return 1 if "ray_session" in item.fixturenames else 2
