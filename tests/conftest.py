"""Fixtures that tests of several rooms share."""

from tests.servers import s3_options, s3_server

__all__ = ["s3_options", "s3_server"]
