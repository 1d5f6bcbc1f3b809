"""An output as its holder sees it: what another run has made since cannot be changed any more.

A process may freeze between a look at the lease and the change that it looked for, and go on much later, when others
have taken the output over.  So a change itself has to fail then:

- On a disk it is a rename out of the holder's own folder, which whoever takes over removes (``staged``).
- In an object store, a file is created where there is none, or replaced in the version that was there before a look at
  the lease: whatever a successor has written has another version.  There are no such deletions; each follows a look.
- Other stores can neither: each change follows a look.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any

from vbp.errors import LeaseLostError, StorageError
from vbp.storage.files import Folder
from vbp.storage.ledger.holder import LEASE, check, holder, lost, read
from vbp.storage.ledger.staged import StagedStore
from vbp.storage.stores.local import LocalStore, display, temporary_name
from vbp.storage.stores.objects import ObjectStore
from vbp.storage.stores.store import Store

HOLDERS = "_run/holders"
_TRIES = 10


class HeldFolder(Folder):
    """OUTPUT, to be changed by one attempt; folders below it (`child`) are for reading alone.

    Raises:
        LeaseLostError: of every change: another attempt has the output.
    """

    def __init__(
        self, url: str | os.PathLike[str], options: Mapping[str, Any] | None, attempt: str, *, looks: bool = True
    ):
        """Nothing is read yet; whether the attempt has the output shows when it changes something.

        Args:
            url: OUTPUT.
            options: as for ``Folder``.
            attempt: the name of a lease's attempt.
            looks: at the lease before each change, where the store cannot fence it; else whoever writes many files
                looks once for them (`look`). Deletions are looked for in any case.
        """
        super().__init__(url, options)
        self.attempt, self._looks = attempt, looks

    @classmethod
    def of(cls, folder: Folder, attempt: str) -> "HeldFolder":
        """The same folder, held."""
        return cls(folder.url, folder.options, attempt)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(HeldFolder, looks=self._looks), (self.url, self.options, self.attempt)

    def look(self) -> None:
        """Raise LeaseLostError where another attempt has the output."""
        check(self, self.attempt)

    def write(self, path: str, data: bytes) -> None:
        """As of ``Folder``."""
        with self._told():
            super().write(path, data)

    def create(self, path: str, data: bytes) -> bool:
        """As of ``Folder``."""
        with self._told():
            return super().create(path, data)

    def delete(self, path: str) -> None:
        """As of ``Folder``."""
        with self._told():
            super().delete(path)

    def enter(self) -> None:
        """Before the lease is taken: on a disk, the attempt's own folder is made."""
        if not self.is_local:
            return
        try:
            os.makedirs(self._staging, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {display(self._staging)}: {error.strerror}") from error

    def take(self, expected: bytes, lease: bytes) -> bool | None:
        """Put `lease` into the place of the `expected` one; of several attempts exactly one succeeds.

        Returns:
            Whether it did; None where the store cannot do it in one step.
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
        """Put `lease` into the place of our `expected` one; what has been given back is never made again."""
        if isinstance(self._plain, ObjectStore):
            self.take(expected, lease)  # where that fails, the next look tells why
        else:
            self.write(LEASE, lease)

    def _take_on_disk(self, expected: bytes, lease: bytes) -> bool:
        """Whoever renames the old lease away may make the new one."""
        taken = temporary_name(self._staging)
        try:
            os.rename(self._at(LEASE), taken)
            with open(taken, "rb") as file:
                found = file.read()
            if found != expected:  # it was renewed, or another's already: back with it
                with contextlib.suppress(FileExistsError):
                    os.link(taken, self._at(LEASE))
        except FileNotFoundError:
            return False
        finally:
            with contextlib.suppress(OSError):
                os.unlink(taken)
        return found == expected and self.create(LEASE, lease)

    def evict(self) -> None:
        """After the lease is taken: on a disk, the folders of all others are removed, and they change nothing more."""
        if not self.is_local:
            return
        for name in os.listdir(self._at(HOLDERS)):
            if name != self.attempt:
                self._remove_holder(name)

    def _remove_holder(self, name: str) -> None:
        """By way of our own folder: who has lost that removes nobody else's."""
        here = f"{self._staging}/{name}"
        try:
            os.rename(self._at(f"{HOLDERS}/{name}"), here)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"cannot remove {self.uri(f'{HOLDERS}/{name}')}: {error.strerror}") from error
        for _ in range(_TRIES):  # a late write may put a file into it until it is gone
            shutil.rmtree(here, ignore_errors=True)
            if not os.path.isdir(here):
                return
        raise StorageError(f"cannot remove {display(here)}; remove it, and run the same command again")

    def leave(self) -> None:
        """After the lease is given back."""
        if self.is_local:
            shutil.rmtree(self._staging, ignore_errors=True)

    @property
    def is_fenced_out(self) -> bool:
        """Whether another has removed this attempt's folder."""
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
    def _told(self) -> Iterator[None]:
        try:
            yield
        except LeaseLostError:
            raise lost(self, self.attempt, holder(self)) from None


class Looking:
    """A store that is changed after a look: a process that freezes in between still makes the one change."""

    def __init__(self, store: Store, look: Callable[[], None], looks: bool):
        self._store, self._look, self._looks = store, look, looks
        self.walk, self.first, self.size, self.read = store.walk, store.first, store.size, store.read

    def write(self, path: str, data: bytes) -> None:
        """Replace the file."""
        if self._looks:
            self._look()
        self._store.write(path, data)

    def create(self, path: str, data: bytes) -> bool:
        """Write the file unless there is one: this harms nobody, however late."""
        return self._store.create(path, data)

    def delete(self, path: str) -> None:
        """Remove the file."""
        self._look()
        self._store.delete(path)


class Conditional(Looking):
    """An object store: an object is made where there is none, or replaced in the version that it had before a look."""

    _store: ObjectStore

    def write(self, path: str, data: bytes) -> None:
        """One request where there is no such object, three more where there is one; and the look before."""
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
