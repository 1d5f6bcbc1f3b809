"""HeldFolder: an output as the holder of its lease sees it; once another run has the lease, its changes fail.

A process may freeze after it has checked the lease and before it changes a file, and go on much later, when another
attempt has taken the output over.  Then the change itself must fail (fencing):

- On a disk a change is a rename out of the holder's own folder, and the next holder removes that folder (``staged``).
- In an object store a write is conditional: it creates a new object, or replaces the version that existed before the
  lease was checked.  A successor's object has another version.  A deletion cannot be conditional; it follows a check.
- Other stores have neither, so each change follows a check.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any

from vbp.errors import LeaseLostError, StorageError
from vbp.storage.files import Folder
from vbp.storage.ledger.holder import LEASE, RELEASED, check, holder, lost, read
from vbp.storage.ledger.staged import StagedStore
from vbp.storage.stores.local import LocalStore, display, temporary_name
from vbp.storage.stores.objects import ObjectStore
from vbp.storage.stores.store import Store

HOLDERS = "_run/holders"
_TRIES = 10


class HeldFolder(Folder):
    """OUTPUT, changed by one attempt; folders below it (`child`) must only be read.

    Raises:
        LeaseLostError: raised by every change once another attempt has the output.
    """

    def __init__(
        self, url: str | os.PathLike[str], options: Mapping[str, Any] | None, attempt: str, *, looks: bool = True
    ):
        """Nothing is read yet; the first change shows whether the attempt has the output.

        Args:
            url: OUTPUT.
            options: as for ``Folder``.
            attempt: name of the attempt that takes the lease.
            looks: whether each write checks the lease first, on stores without fencing; otherwise the caller
                checks once before many writes (`look`). Deletions always check.
        """
        super().__init__(url, options)
        self.attempt, self._looks = attempt, looks

    @classmethod
    def of(cls, folder: Folder, attempt: str) -> "HeldFolder":
        """`folder` as a held folder."""
        return cls(folder.url, folder.options, attempt)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(HeldFolder, looks=self._looks), (self.url, self.options, self.attempt)

    def look(self) -> None:
        """Check the lease: raise LeaseLostError if another attempt has the output."""
        check(self, self.attempt)

    def write(self, path: str, data: bytes) -> None:
        """As of ``Folder``."""
        with self._naming_holder():
            super().write(path, data)

    def create(self, path: str, data: bytes) -> bool:
        """As of ``Folder``."""
        with self._naming_holder():
            return super().create(path, data)

    def delete(self, path: str) -> None:
        """As of ``Folder``."""
        with self._naming_holder():
            super().delete(path)

    def enter(self) -> None:
        """Make the attempt's own folder on a disk; comes before the lease is taken."""
        if not self.is_local:
            return
        try:
            os.makedirs(self._staging, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {display(self._staging)}: {error.strerror}") from error

    def take(self, expected: bytes, lease: bytes) -> bool | None:
        """Replace the `expected` lease by `lease`; of several attempts exactly one succeeds.

        Returns:
            Whether it succeeded; None if the store cannot do it in one step.
        """
        if self.is_local:
            return self._take_on_disk(expected, lease)
        if isinstance(self._plain, ObjectStore):
            version = self._plain.version(self._at(LEASE))
            return (
                version is not None and read(self) == expected and self._plain.put_if(self._at(LEASE), lease, version)
            )
        return None

    def renew(self, expected: bytes, lease: bytes) -> None:
        """Replace our `expected` lease by `lease`; a lease that was released is not created again."""
        if isinstance(self._plain, ObjectStore):
            self.take(expected, lease)  # if that fails, the next check says why
        else:
            self.write(LEASE, lease)

    def give_back(self, lease: bytes) -> None:
        """End our `lease` if it still is the lease: in an object store by a write, as a deletion may come late."""
        if isinstance(self._plain, ObjectStore):
            self.take(lease, RELEASED)
        else:
            self.delete(LEASE)

    def _take_on_disk(self, expected: bytes, lease: bytes) -> bool:
        """Rename the old lease into our folder, which only one attempt can do, and then make the new lease."""
        taken = temporary_name(self._staging)
        try:
            os.rename(self._at(LEASE), taken)
            with open(taken, "rb") as file:
                found = file.read()
            if found != expected:  # it was renewed, or belongs to another attempt: put it back
                with contextlib.suppress(FileExistsError):
                    os.link(taken, self._at(LEASE))
        except FileNotFoundError:
            return False
        finally:
            with contextlib.suppress(OSError):
                os.unlink(taken)
        return found == expected and self.create(LEASE, lease)

    def evict(self) -> None:
        """Remove all other attempts' folders on a disk, so that their changes fail; comes after taking the lease."""
        if not self.is_local:
            return
        for name in os.listdir(self._at(HOLDERS)):
            if name != self.attempt:
                self._remove_holder(name)

    def _remove_holder(self, name: str) -> None:
        """Remove another attempt's folder by a rename into ours; this fails if we have lost our own folder."""
        here = f"{self._staging}/{name}"
        try:
            os.rename(self._at(f"{HOLDERS}/{name}"), here)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"cannot remove {self.uri(f'{HOLDERS}/{name}')}: {error.strerror}") from error
        for _ in range(_TRIES):  # a late write may put a file into the folder while it is being removed
            shutil.rmtree(here, ignore_errors=True)
            if not os.path.isdir(here):
                return
        raise StorageError(f"cannot remove {display(here)}; remove it, and run the same command again")

    def leave(self) -> None:
        """Remove the attempt's own folder; comes after the lease is released."""
        if self.is_local:
            shutil.rmtree(self._staging, ignore_errors=True)

    @property
    def is_fenced_out(self) -> bool:
        """Whether another attempt has removed this attempt's folder."""
        return self.is_local and not os.path.isdir(self._staging)

    @cached_property
    def _staging(self) -> str:
        return self._at(f"{HOLDERS}/{self.attempt}")

    @property
    def _plain(self) -> Store:
        return super()._store

    @property
    def _store(self) -> Store:
        plain = self._plain
        if isinstance(plain, LocalStore):
            return StagedStore(self._staging)
        return (Conditional if isinstance(plain, ObjectStore) else Looking)(plain, self.look, self._looks)

    @contextlib.contextmanager
    def _naming_holder(self) -> Iterator[None]:
        try:
            yield
        except LeaseLostError:
            raise lost(self, self.attempt, holder(self)) from None


class Looking:
    """A store whose changes follow a check of the lease; a process that freezes in between still makes one change."""

    def __init__(self, store: Store, look: Callable[[], None], looks: bool):
        self._store, self._look, self._looks = store, look, looks
        self.walk, self.first, self.size, self.read = store.walk, store.first, store.size, store.read

    def write(self, path: str, data: bytes) -> None:
        """Replace the file."""
        if self._looks:
            self._look()
        self._store.write(path, data)

    def create(self, path: str, data: bytes) -> bool:
        """Create the file unless it exists; this does no harm, however late."""
        return self._store.create(path, data)

    def delete(self, path: str) -> None:
        """Remove the file."""
        self._look()
        self._store.delete(path)


class Conditional(Looking):
    """An object store: a write creates an object, or replaces the version that existed before the lease was checked."""

    _store: ObjectStore

    def write(self, path: str, data: bytes) -> None:
        """Write the object: one request if it is new, else three more, besides the check of the lease."""
        if self._looks:
            self._look()
        if self._store.put_if(path, data, None):
            return
        for _ in range(_TRIES):
            version = self._store.version(path)
            self._look()
            if self._store.put_if(path, data, version):
                return
        raise StorageError(f"cannot write {path}: others change it all the time; look for who else writes there")
