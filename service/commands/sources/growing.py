"""A file that grows: NDJSON with a message a line, or CSV with a row a line.

Each file is a partition, and the offset of a line is the byte at which it ends. A file is known by
its inode and the hash of its first line, not by its path: it stays the same when it is renamed.
"""

import asyncio
import io
import os
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from service.commands.sources.content import MAX_CONTENT
from service.commands.sources.reader import AwayError, Bounds, Message, Reader

LOOK_SECONDS = 0.1
"""From one look at the end of the file to the next."""
ROTATED_SECONDS = 5.0
"""A file whose path has become another file's is read until it has not grown for so long."""
BLOCK = 1 << 16
AT_ONCE = 8 << 20
"""Bytes of lines that are read at a time; the last may exceed them."""
TEXT = (".csv", ".tsv")


class GrowingFile(Reader):
    """Reads the whole lines of a file, and of the file that takes its place.

    Args:
        path: of the file; one that ends in ``.csv`` or ``.tsv`` begins with the names of the
            columns.
        name: of the source, as the log keeps it.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.title = path.name
        self._path, self._name = path, name
        self._has_header = bool(set(map(str.lower, path.suffixes[-1:])) & set(TEXT))
        self._file: io.BufferedReader | None = None
        self._partition, self._first, self._header = "", b"", b""
        self._offset = 0
        self._grown_at = time.monotonic()

    async def bounds(self) -> dict[str, Bounds]:
        try:
            return await asyncio.to_thread(self._open)
        except OSError as error:
            raise AwayError(f"{self._path} cannot be read: {error.strerror}") from error

    def _open(self) -> dict[str, Bounds]:
        """Open the file at the path.

        Raises:
            AwayError: it does not have one whole line.
        """
        self._shut()
        self._file = file = self._path.open("rb")
        lines = [file.readline(MAX_CONTENT)]
        self._header = lines[0] if self._has_header else b""
        if self._has_header:  # many files have the same header
            lines.append(file.readline(MAX_CONTENT))
        if not all(line.endswith(b"\n") for line in lines):
            raise AwayError(f"{self._path} has no whole line yet")
        self._first, begin = b"".join(lines), len(self._header)
        digest = blake2b(self._first, digest_size=8).hexdigest()
        self._partition = f"{self._name}/{os.fstat(file.fileno()).st_ino}-{digest}"
        return {self._partition: Bounds(begin, max(begin, _last_end(file)))}

    async def seek(self, after: Mapping[str, int]) -> None:
        assert self._file is not None
        self._offset = after[self._partition]
        self._file.seek(self._offset)
        self._grown_at = time.monotonic()

    async def read(self, most: int, seconds: float) -> Sequence[Message] | None:
        try:
            found = await asyncio.to_thread(self._lines, most)
            if found == []:
                await asyncio.sleep(min(seconds, LOOK_SECONDS))
            return found
        except OSError as error:
            raise AwayError(f"{self._path} cannot be read: {error.strerror}") from error

    def _lines(self, most: int) -> list[Message] | None:
        """Return the next lines; None if the file is another one now, or has become shorter."""
        file, begin = self._file, self._offset
        if file is None or os.pread(file.fileno(), len(self._first), 0) != self._first:
            return None
        found: list[Message] = []
        while len(found) < most and self._offset - begin < AT_ONCE and (line := self._line(file)):
            if line.strip():
                found.append(Message(self._partition, self._offset, line, self._header))
        if self._offset > begin:
            self._grown_at = time.monotonic()
        elif os.fstat(file.fileno()).st_size < begin or self._is_over(file):
            return None
        return found

    def _line(self, file: io.BufferedReader) -> bytes:
        """Return the next whole line, of a very long one the beginning; nothing if it is not whole.

        The rest of a very long line is skipped, as `content_of` refuses it anyway.
        """
        file.seek(self._offset)
        line = part = file.readline(MAX_CONTENT + 2)
        while part and not part.endswith(b"\n"):
            part = file.readline(BLOCK)
        if not part:
            return b""
        self._offset = file.tell()
        return line

    def _is_over(self, file: io.BufferedReader) -> bool:
        """Return whether the path leads to another file, and this one has stopped growing."""
        if time.monotonic() - self._grown_at < ROTATED_SECONDS:
            return False
        own = os.fstat(file.fileno())
        try:
            other = self._path.stat()
        except FileNotFoundError:  # the next file is not there yet
            return False
        return (own.st_dev, own.st_ino) != (other.st_dev, other.st_ino) and other.st_size > 0

    def lag(self) -> int | None:
        return None

    async def close(self) -> None:
        self._shut()

    def _shut(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _last_end(file: io.BufferedReader) -> int:
    """Return where the last whole line of a file ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - BLOCK)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
