"""Tar archives built in memory: the same members give the same bytes, and each member's place is known."""

import io
import tarfile

_BLOCK = tarfile.BLOCKSIZE


class TarBuilder:
    """Members in the order in which they are added; names of any length and script (POSIX pax)."""

    def __init__(self) -> None:
        self._sink = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._sink, mode="w", format=tarfile.PAX_FORMAT)
        self.members = 0
        """How many were added."""

    def add(self, name: str, data: bytes) -> int:
        """Append a member; of everything that changes from run to run, such as times and users, it says nothing.

        Returns:
            The offset of its first byte: `data` stands in the archive as it is.
        """
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))
        self.members += 1
        blocks = -(-len(data) // _BLOCK)
        return self._sink.tell() - blocks * _BLOCK

    def finish(self) -> bytes:
        """The archive; nothing can be added any more."""
        self._tar.close()
        return self._sink.getvalue()
