"""Segments of the log: the cuts from one to another, with all that replay needs to repeat them.

A segment is an Arrow file with the columns ``stream`` (``cuts``, ``log`` or ``asked``), ``id`` and
``fields``, compressed by zstd, so that any reader of Arrow can look into it. The metadata of its
schema, ``funnel``, is JSON: the ``format``, where the segment begins and ends, and the name of the
segment ``before``. Entries lie in it as they lay in the log. Nothing is pickled.

A segment has every entry that its cuts need: one that a batch has ended within is in two of them.
So are questions that labels of both have met.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from service.log.entries import Fields, RawEntry
from service.log.position import EntryId, Position, Progress
from streams.errors import FunnelError

FORMAT = 1
NAME = re.compile(r"segment-(\d{14})-(\d{14})-(\d{11})-(\d{12})-([0-9a-f]{64})\.arrow")
CUTS, LOG, ASKED = "cuts", "log", "asked"
"""The streams."""
ROW_BYTES = 8 << 20
"""Bytes after which a record batch of the file ends."""
SCHEMA = pa.schema(
    [
        ("stream", pa.utf8()),
        ("id", pa.utf8()),
        ("fields", pa.map_(pa.binary(), pa.large_binary())),
    ]
)
Row = tuple[str, str, Fields]


class DamagedSegmentError(FunnelError, ValueError):
    """A segment that cannot be trusted; the message says what is wrong with it."""


class Name(NamedTuple):
    """The name of a segment."""

    first: int
    last: int
    """Numbers of its first and last cut."""
    written: int
    """When it was written, in Unix seconds; later segments never have less."""
    size: int
    """Bytes of the file."""
    sha256: str
    """Digest of the file."""

    @classmethod
    def parse(cls, text: str) -> "Name | None":
        """Return the name in a file's name; None if that is no segment."""
        if (found := NAME.fullmatch(text)) is None:
            return None
        first, last, written, size = map(int, found.groups()[:4])
        return cls(first, last, written, size, found[5])

    def __str__(self) -> str:
        return (
            f"segment-{self.first:014d}-{self.last:014d}-{self.written:011d}-{self.size:012d}-"
            f"{self.sha256}.arrow"
        )


@dataclass(frozen=True)
class Segment:
    """Cuts that follow one another, and what they need."""

    begin: Progress
    """Where the cut before the first one ended; its counts, except for entries, are not known."""
    end: Progress
    """Where the last cut ended; the same holds for it."""
    cuts: Mapping[int, str]
    """Texts of the cuts, by number."""
    entries: Sequence[RawEntry]
    questions: Mapping[EntryId, Fields]
    """Entries of questions that labels have met."""
    before: str = ""
    """Name of the segment before it; empty if there is none."""

    def to_bytes(self) -> bytes:
        """Return the bytes of the file."""
        header = {
            "format": FORMAT,
            "begin": _place(self.begin),
            "end": _place(self.end),
            "before": self.before,
        }
        schema = SCHEMA.with_metadata({"funnel": orjson.dumps(header)})
        sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(sink, schema, options=options) as file:
            for rows in _parts(self._rows()):
                streams, ids, fields = zip(*rows, strict=True)
                columns = [streams, ids, [list(own.items()) for own in fields]]
                arrays = [
                    pa.array(own, kind) for own, kind in zip(columns, SCHEMA.types, strict=True)
                ]
                file.write_batch(pa.record_batch(arrays, schema=schema))
        raw: bytes = sink.getvalue().to_pybytes()
        return raw

    def _rows(self) -> Iterator[Row]:
        for number, text in self.cuts.items():
            yield CUTS, f"{number}-0", {b"cut": text.encode()}
        for entry, fields in self.entries:
            yield LOG, str(entry), fields
        for entry, fields in self.questions.items():
            yield ASKED, str(entry), fields

    def name(self, raw: bytes, written: int) -> Name:
        """Return the name of the file.

        Args:
            raw: its bytes.
            written: Unix time in seconds.
        """
        digest = hashlib.sha256(raw).hexdigest()
        return Name(self.begin.cut + 1, self.end.cut, written, len(raw), digest)

    @classmethod
    def of(cls, name: str, raw: bytes) -> "Segment":
        """Return what is in a file.

        Raises:
            DamagedSegmentError: it is not what its name says, or of a later version.
        """
        own = Name.parse(name)
        if own is None or hashlib.sha256(raw).hexdigest() != own.sha256:
            raise DamagedSegmentError(f"the SHA-256 of {name} does not match")
        try:
            with pa.ipc.open_file(pa.BufferReader(raw)) as file:
                header = orjson.loads(file.schema.metadata[b"funnel"])
                if header["format"] > FORMAT:
                    raise DamagedSegmentError(
                        f"{name} is of format {header['format']}, and this version reads formats "
                        f"up to {FORMAT}: upgrade it"
                    )
                rows = [
                    (row["stream"], row["id"], dict(row["fields"]))
                    for k in range(file.num_record_batches)
                    for row in file.get_batch(k).to_pylist()
                ]
            return cls(
                _placed(header["begin"]),
                _placed(header["end"]),
                {
                    EntryId.parse(i).milliseconds: f[b"cut"].decode()
                    for s, i, f in rows
                    if s == CUTS
                },
                [(EntryId.parse(i), fields) for stream, i, fields in rows if stream == LOG],
                {EntryId.parse(i): fields for stream, i, fields in rows if stream == ASKED},
                header["before"],
            )
        except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
            if isinstance(error, DamagedSegmentError):
                raise
            raise DamagedSegmentError(f"{name} cannot be read ({error})") from error


def _parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield rows that follow one another, with about ROW_BYTES."""
    part, size = list[Row](), 0
    for row in rows:
        part.append(row)
        size += sum(map(len, row[2].values()))
        if size >= ROW_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _place(at: Progress) -> dict[str, Any]:
    return {
        "log": at.log,
        "cut": at.cut,
        "position": str(at.position),
        "entries": at.entries,
        "asked": str(at.asked),
    }


def _placed(found: Mapping[str, Any]) -> Progress:
    return Progress(
        log=found["log"],
        cut=int(found["cut"]),
        position=Position.parse(found["position"]),
        entries=int(found["entries"]),
        asked=EntryId.parse(found["asked"]),
    )
