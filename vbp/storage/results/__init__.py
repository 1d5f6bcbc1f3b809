"""Where a result lies: writing, reading, and what should be there."""

from vbp.storage.results.read import read_result

__all__ = ["read_result"]
