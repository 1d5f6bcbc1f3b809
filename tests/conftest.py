"""Fixtures that tests of several rooms share."""

import os

from tests.servers import fault_proxy, s3_options, s3_server
from tests.small import network_file, photos

__all__ = ["fault_proxy", "network_file", "photos", "s3_options", "s3_server"]

os.environ["RAY_AUTH_MODE"] = "disabled"  # before Ray is imported: else it writes a token file into the home folder
