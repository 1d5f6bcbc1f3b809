"""Numbered Parquet files, built row group by row group, each written atomically."""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from shlex import quote
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vbp.errors import UsageError
from vbp.storage.files import Folder


class Written(NamedTuple):
    """Size and SHA-256 of a file that was written."""

    bytes: int
    sha256: str


def written(data: bytes | pa.Buffer) -> Written:
    """What is to be recorded of a file with these bytes."""
    return Written(len(data), hashlib.sha256(data).hexdigest())


def numbered(series: str, number: int) -> str:
    """The path of the file with this number of a series, such as ``index/part-00000.parquet`` of ``index/part``."""
    return f"{series}-{number:05d}.parquet"


@contextlib.contextmanager
def open_parquet(folder: Folder, path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file of the manifest, opened with random access; the checksums of its pages are verified.

    Raises:
        UsageError: the file is damaged.
        FileNotFoundError: it is gone.
    """
    mend = (
        f"restore it, or have INPUT listed again, which keeps all results: vbp validate {quote(folder.url)} "
        "--repair, then the run's command again."
    )
    try:
        with folder.open(path) as file:
            yield pq.ParquetFile(file, page_checksum_verification=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder.uri(path)} is gone; {mend}") from error
    except (pa.ArrowException, OSError) as error:
        # An error of Arrow is a bare OSError without errno; an error of the store has a subclass or an errno.
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno):
            raise
        reason = str(error).splitlines()[0]
        raise UsageError(f"{folder.uri(path)} is damaged ({reason}); {mend}") from error


class Building:
    """A Parquet file that is built in memory, row group by row group.

    Its metadata name the attempt, so that no two attempts write the same bytes: S3 names a version by the hash of the
    content, and a late write must never find the version that it saw.
    """

    def __init__(self, schema: pa.Schema, attempt: str):
        """Begin a file of an attempt; an empty name is left out."""
        self._schema, self._attempt = schema, attempt
        self.groups = 0
        """Row groups so far."""
        self._sink = pa.BufferOutputStream()
        self._writer: pq.ParquetWriter | None = None

    @property
    def size(self) -> int:
        """Bytes so far."""
        return int(self._sink.tell())

    def add(self, table: pa.Table) -> None:
        """Append the table as one row group."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd", write_page_checksum=True)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.groups += 1

    def finished(self) -> pa.Buffer | None:
        """The file; None if nothing was added.  Nothing can be added afterwards."""
        if self._writer is None:
            return None
        if self._attempt:
            self._writer.add_key_value_metadata({"vbp.attempt": self._attempt})
        self._writer.close()
        return self._sink.getvalue()


class RollingParquet:
    """Writes row groups to the numbered files of a series; the caller decides where a file ends (`roll`)."""

    def __init__(self, folder: Folder, series: str, schema: pa.Schema, number: int = 0):
        """Begin at file ``number`` of ``series`` in ``folder``."""
        self._folder, self._series, self._schema = folder, series, schema
        self.number = number
        """Number of the file that gets the next row group."""
        self.files: dict[str, Written] = {}
        """The files that ``roll`` has written, by path."""
        self._building = Building(schema, folder.attempt)

    @property
    def groups(self) -> int:
        """Row groups in the current file so far."""
        return self._building.groups

    @property
    def bytes(self) -> int:
        """Size of the current file so far."""
        return self._building.size

    def add(self, table: pa.Table) -> None:
        """Append the table as one row group."""
        self._building.add(table)

    def roll(self) -> None:
        """Write the file, if anything was added to it, and go on to the next."""
        data = self._building.finished()
        if data is None:
            return
        path = numbered(self._series, self.number)
        self._folder.write(path, data.to_pybytes())
        self.files[path] = written(data)
        self._building = Building(self._schema, self._folder.attempt)
        self.number += 1

    def remove_later_files(self) -> None:
        """Delete files with higher numbers, left by an earlier, longer series."""
        name = re.compile(re.escape(self._series) + r"-(\d+)\.parquet")
        for path in self._folder.list(self._series.rpartition("/")[0]):
            match = name.fullmatch(path)
            if match and int(match[1]) >= self.number:
                self._folder.delete(path)
