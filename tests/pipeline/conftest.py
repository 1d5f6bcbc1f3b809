"""One Ray session for all pipeline tests."""

import pytest


@pytest.fixture(scope="session")
def ray_session():
    """Four logical CPUs, whatever the machine has."""
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()
