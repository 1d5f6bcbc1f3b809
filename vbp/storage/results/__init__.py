"""Where a result lies: writing (`layouts`), reading (`read`), and expected files (`files`, `places`, `tars`)."""

from vbp.storage.results.read import read_result

__all__ = ["read_result"]
