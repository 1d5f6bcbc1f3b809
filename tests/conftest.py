"""Fixtures that tests of several rooms share."""

import os

import pytest

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


CLUSTERS = ("tests/jobs/", "tests/cluster/test_rehearsal.py", "tests/pipeline/test_gpu_head.py")
"""Tests that start a Ray of their own; each takes a minute and more."""


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="leave out what needs Ray, a server or a network's weights")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config, items):
    """Where tests run side by side: all that share a Ray in one process, else a file in one, the longest first."""
    if config.option.quick:
        left_out = list(filter(needs_much, items))
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    for item in items:
        group = "ray" if "ray_session" in item.fixturenames else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


def needs_much(item):
    """Whether the fixtures of a test bring a Ray, a server, or the weights of a network for whole runs."""
    homes = {definitions[-1].func.__module__ for definitions in item._fixtureinfo.name2fixturedefs.values()}
    return (
        item.nodeid.startswith(CLUSTERS)
        or "tests.servers" in homes
        or bool({"ray_session", "network_file"} & set(item.fixturenames))
    )


def _turn(item):
    if item.nodeid.startswith(CLUSTERS):
        return 0
    return 1 if "ray_session" in item.fixturenames else 2
