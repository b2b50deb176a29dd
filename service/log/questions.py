"""Questions: predictions that were asked with ids, and wait for their labels.

An entry of the stream of questions holds the examples of one request as ``batch`` (safetensors
with the one tensor ``features``) or ``arrow`` (rows without labels, see `streams.rows.entry`), the
hashes of their ids as ``ids``, the answers as ``given`` (safetensors: ``labels`` [n], classes as
int64 or numbers as float32, and ``answers`` float16 [n, A]), the ``version`` of the model that gave
them, and ``crc32`` of all of these.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt
import orjson
from safetensors import SafetensorError
from safetensors.numpy import load, save

from service.log.entries import ARROW, BATCH, CRC32, Fields, Shape
from service.log.keys import Field
from service.log.labels import HASH_BYTES
from service.log.position import EntryId
from streams.batch import InvalidBatchError, check_features, decode_features
from streams.examples import AnyInputs, part_of
from streams.rows.entry import from_bytes, to_bytes
from streams.rows.rows import Rows

IDS, GIVEN, VERSION = Field.IDS.encode(), Field.GIVEN.encode(), Field.VERSION.encode()
MAX_HEADER = 1_024
"""Bytes of the header of a file of plain tensors."""
U8, F16, F32, I64 = map(np.dtype, ("u1", "<f2", "<f4", "<i8"))
PLAIN: dict[str, dict[str, np.dtype[Any]]] = {
    "features": {"U8": U8, "F16": F16, "F32": F32},
    "labels": {"I64": I64, "F32": F32},
    "answers": {"F16": F16},
}
"""Types of plain tensors, by name."""
Layout = tuple[np.dtype[Any], int, int, tuple[int, ...]]
"""Type, number of elements, first byte and shape of a tensor."""
SIGNED = (BATCH, ARROW, IDS, GIVEN, VERSION)
"""Fields of which the CRC-32 is that of one after another."""


class Asked(NamedTuple):
    """An entry of the stream, without its examples."""

    id: EntryId
    hashes: bytes
    """HASH_BYTES a question."""
    size: int
    """Bytes of the entry."""


@dataclass(frozen=True, eq=False)
class Questions:
    """The questions of one request."""

    inputs: AnyInputs
    """[n]."""
    hashes: bytes
    """Hashes of their ids, HASH_BYTES each."""
    labels: npt.NDArray[Any]
    """The labels that were answered, [n]: classes, int64, or numbers, float32."""
    answers: npt.NDArray[Any]
    """Probabilities, or numbers and their deviations or quantiles, float16 [n, A]."""
    version: int
    """Version of the model that answered."""

    def to_fields(self) -> dict[str, bytes | int]:
        """Return the fields of the entry that holds them."""
        inputs = self.inputs
        if isinstance(inputs, Rows):
            payload, field = to_bytes(inputs), Field.ARROW
        else:
            payload, field = save({"features": np.ascontiguousarray(inputs)}), Field.BATCH
        with np.errstate(over="ignore"):
            answers = self.answers.astype(np.float16)
        given = save({"labels": np.ascontiguousarray(self.labels), "answers": answers})
        fields = {
            field: payload,
            Field.IDS: self.hashes,
            Field.GIVEN: given,
            Field.VERSION: b"%d" % self.version,
        }
        checksum = _checksum({name.encode(): value for name, value in fields.items()})
        return {**fields, Field.CRC32: checksum}

    @cached_property
    def answered(self) -> list[int | float]:
        """The labels that were answered, as numbers of Python, [n]."""
        found: list[int | float] = self.labels.tolist()
        return found

    def hash_of(self, row: int) -> bytes:
        """Return the hash of the id of one of them."""
        return self.hashes[HASH_BYTES * row : HASH_BYTES * (row + 1)]

    def part(self, row: int) -> AnyInputs:
        """Return the example of one of them, [1]."""
        return part_of(self.inputs, row, row + 1)


def read_questions(fields: Fields, shape: Shape | None) -> Questions:
    """Return the questions of an entry.

    Args:
        fields: of the entry.
        shape: of the model's examples; None if they are rows with named columns.

    Raises:
        InvalidBatchError: they are damaged, or of another kind of model; the message says how.
    """
    try:
        if int(fields[CRC32]) != _checksum(fields):
            raise InvalidBatchError("the CRC-32 of the question does not match")
        if shape is None:
            inputs: AnyInputs = from_bytes(fields[ARROW])
        else:
            plain = _plain(fields[BATCH])
            inputs = decode_features(fields[BATCH]) if plain is None else plain["features"]
            check_features(inputs, shape[0])
        given, version = _plain(fields[GIVEN]) or load(fields[GIVEN]), int(fields[VERSION])
        found = Questions(inputs, fields[IDS], given["labels"], given["answers"], version)
    except (KeyError, ValueError, SafetensorError, OverflowError) as error:
        if isinstance(error, InvalidBatchError):
            raise
        raise InvalidBatchError(f"the question cannot be read: {error!r}"[:200]) from error
    n = len(inputs)
    if not (len(found.hashes) == HASH_BYTES * n and len(found.labels) == len(found.answers) == n):
        raise InvalidBatchError("the question has other numbers of examples, ids and answers")
    return found


def _plain(raw: bytes) -> dict[str, npt.NDArray[Any]] | None:
    """Return the tensors of a safetensors file as this module writes it; None of any other.

    Questions that are asked one at a time have files of some hundred bytes, and their header is
    that of the one before.
    """
    length = int.from_bytes(raw[:8], "little")
    if length > MAX_HEADER or (layout := _layout(raw[8 : 8 + length])) is None:
        return None
    size, tensors = layout
    if len(raw) != 8 + length + size:
        return None
    writable = bytearray(raw)  # as torch wants them
    return {
        name: np.frombuffer(writable, kind, count, 8 + length + start).reshape(shape)
        for name, (kind, count, start, shape) in tensors.items()
    }


@lru_cache(256)
def _layout(header: bytes) -> tuple[int, dict[str, Layout]] | None:
    """Return the bytes after a header and where its tensors lie; None if it is not plain."""
    try:
        found = orjson.loads(header)
        tensors: dict[str, Layout] = {}
        last = 0
        for name, one in sorted(found.items(), key=lambda item: item[1]["data_offsets"]):
            kind, shape = PLAIN[name][one["dtype"]], tuple(map(int, one["shape"]))
            start, stop = one["data_offsets"]
            count = prod(shape)
            if start != last or stop - start != count * kind.itemsize or not count:
                return None
            tensors[name], last = (kind, count, start, shape), stop
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return (last, tensors) if tensors.keys() in ({"features"}, {"labels", "answers"}) else None


def _checksum(fields: Fields) -> int:
    found = 0
    for name in SIGNED:
        found = crc32(fields.get(name, b""), found)
    return found
