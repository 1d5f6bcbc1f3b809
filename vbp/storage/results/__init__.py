"""Where a result lies: writing (`layouts`), reading (`read`), and what should be there (`files`, `places`, `tars`)."""

from vbp.storage.results.read import read_result

__all__ = ["read_result"]
