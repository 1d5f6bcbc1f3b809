"""StagedStore: a disk as the holder of an output changes it; the changes fail once another attempt has taken over.

A process may freeze after it has checked the lease and before it changes a file, and go on a day later.  So the right
to change an output is a folder, ``OUTPUT/_run/holders/<attempt>/``.  Every change is one rename out of it (write), one
link out of it (create) or one rename into it (delete).  The attempt that takes the output over removes the folder;
from then on no rename from it or into it can succeed.  The file system guarantees this: a removed folder takes no new
file, and it can be removed only when it is empty.
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
    """The disk, changed through the folder of one holder.

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
        """Write to another disk, behind a linked folder: a rename to it is impossible, so a check must do."""
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
    """Run ``operation``; if the file's folder is missing, make it and try again."""
    try:
        return operation()
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return operation()
