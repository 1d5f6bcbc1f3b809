"""Tar archives built in memory: equal members give equal bytes, and the offset of each member is known."""

import io
import tarfile

_BLOCK = tarfile.BLOCKSIZE


class TarBuilder:
    """Builds an archive of members in the order of `add`; names may have any length and script (POSIX pax)."""

    def __init__(self) -> None:
        self._sink = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._sink, mode="w", format=tarfile.PAX_FORMAT)
        self.members = 0
        """Number of members so far."""

    def add(self, name: str, data: bytes) -> int:
        """Append a member, without times, users and other facts that change from run to run.

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
        """The archive's bytes; afterwards nothing can be added."""
        self._tar.close()
        return self._sink.getvalue()
