"""Fixtures that tests of several rooms share."""

import os

from tests.servers import (
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

__all__ = [
    "any_store",
    "azure_server",
    "careless_server",
    "fault_proxy",
    "gcs_server",
    "network_file",
    "photos",
    "s3_options",
    "s3_server",
    "sftp_server",
]

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # before gcsfs is imported: it asks Google about buckets
os.environ["RAY_AUTH_MODE"] = "disabled"  # before Ray is imported: else it writes a token file into the home folder
