"""``Content-Encoding: gzip``: bodies that are decoded while they come, in bounded pieces."""

import zlib
from collections.abc import Iterator

from streams.batch import InvalidBatchError

ENCODINGS = ("gzip", "x-gzip")
"""Names of the encoding, which are synonyms in RFC 9110."""
PIECE = 64 << 10
"""Most bytes that are decoded at once, in about 0.2 ms."""
WITH_HEADER = 16 + zlib.MAX_WBITS
"""Tells zlib that the data has gzip's header and checksum."""


class Gunzip:
    """Decodes one member of gzip, as RFC 1952 calls it.

    A body of a few kilobytes may stand for gigabytes: the caller stops when it has enough. A body
    of many members is refused, as each of them would cost a decoder of its own.
    """

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(WITH_HEADER)

    def decode(self, encoded: bytes) -> Iterator[bytes]:
        """Yield what the next bytes of the body stand for, in pieces of up to PIECE bytes.

        Raises:
            InvalidBatchError: the body is not gzip, or goes on after its end.
        """
        while True:
            if self._zlib.eof and encoded:
                raise _goes_on()
            try:
                piece = self._zlib.decompress(encoded, PIECE)
            except zlib.error as error:
                raise InvalidBatchError(f"the body is not gzip: {error}") from error
            if piece:
                yield piece
            if self._zlib.unused_data:
                raise _goes_on()
            encoded = self._zlib.unconsumed_tail
            if len(piece) < PIECE and not encoded:
                return

    def end(self) -> None:
        """Check that the body is complete.

        Raises:
            InvalidBatchError: it is not.
        """
        if not self._zlib.eof:
            raise InvalidBatchError("the body ends before its gzip data does")


def _goes_on() -> InvalidBatchError:
    return InvalidBatchError("the body goes on after the end of its gzip data; send one member")
