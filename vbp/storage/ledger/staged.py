"""A disk as the holder of an output may change it: until another takes its place, and not one rename longer.

A process may freeze between a look at the lease and the change that it looked for, and go on a day later.  So the
right to change an output is a folder, ``OUTPUT/_run/holders/<attempt>/``, and every change is one rename out of it
(write), one link out of it (create) or one rename into it (delete).  Who takes the output over removes the folder, and
no rename from it or into it succeeds from then on, whatever was looked at before.  It is removed when the disk says so:
a removed folder takes no new file, and what was in it was removed before it.
"""

import contextlib
import errno
import os
from collections.abc import Callable
from typing import TypeVar

from vbp.errors import LeaseLostError, StorageError
from vbp.storage.stores.local import LocalStore, display, removed, temporary_name, write_temporary

T = TypeVar("T")


class StagedStore(LocalStore):
    """The disk as one holder sees it.

    Args:
        staging: the holder's own folder, an absolute path on the disk of the output.
    """

    def __init__(self, staging: str):
        self._staging = staging

    def _attempt_change(self, operation: Callable[[], T], path: str) -> T:
        try:
            return super()._attempt_change(operation, path)
        except StorageError as error:
            if self._is_gone():
                lost = f"{display(path)} was not changed: another run has taken over and removed {self._staging}"
                raise LeaseLostError(lost) from None
            raise error

    def _is_gone(self) -> bool:
        return not os.path.isdir(self._staging) and os.path.isdir(os.path.dirname(self._staging))

    def _write_temporary(self, path: str, data: bytes) -> str:
        return write_temporary(self._staging, data)

    def _replace(self, temporary: str, path: str) -> None:
        try:
            _in_folder(lambda: os.replace(temporary, path), path)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._replace_elsewhere(temporary, path)

    def _replace_elsewhere(self, temporary: str, path: str) -> None:
        """On another disk, which a linked folder leads to, nothing can be renamed to: there only the look is left."""
        with open(temporary, "rb") as file:
            copy = write_temporary(os.path.dirname(path), file.read())
        with removed(copy):
            self._look()
            os.replace(copy, path)
        os.unlink(temporary)

    def _link(self, temporary: str, path: str, data: bytes) -> bool:
        return _in_folder(lambda: super(StagedStore, self)._link(temporary, path, data), path)

    def _remove(self, path: str) -> None:
        gone = temporary_name(self._staging)
        try:
            os.rename(path, gone)
        except FileNotFoundError:
            self._look()
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._look()
            os.unlink(path)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(gone)

    def _look(self) -> None:
        if self._is_gone():
            raise OSError(errno.EPERM, "another run has taken over")


def _in_folder(operation: Callable[[], T], path: str) -> T:
    """Try again with the file's folder made, where it was missing."""
    try:
        return operation()
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return operation()
