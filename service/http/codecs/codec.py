"""A format of request bodies, and the checks that every format shares."""

import math
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from service.log.keys import Field
from service.log.labels import HASH_BYTES, hashes_of
from streams.batch import (
    Batch,
    Features,
    InvalidBatchError,
    TooManyError,
    check,
    check_features,
)

MAX_EXAMPLES = 65_536
"""Most examples in a request: a body of narrow rows unfolds into logits many times its size."""

T = TypeVar("T", bound=Sized)
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Examples:
    """Checked labelled examples, as the log takes them."""

    count: int
    payload: bytes
    """The safetensors file of the batch (see `streams.batch`), or rows (see `streams.rows.entry`).
    """
    field: str = Field.BATCH
    """Field of the entry that holds the payload."""
    changes_schema: bool = False
    """True if rows bring columns, kinds or classes that the schema does not have yet."""

    def __len__(self) -> int:
        """Return the number of examples."""
        return self.count


@dataclass(frozen=True)
class Unlabelled(Generic[T]):
    """Examples without labels."""

    inputs: T
    """[n]."""
    hashes: bytes = b""
    """Hashes of their ids, HASH_BYTES each, if they are questions whose labels come later."""

    def __len__(self) -> int:
        """Return the number of examples, n."""
        return len(self.inputs)


@dataclass(frozen=True)
class Wire(Generic[T]):
    """How a ``T`` comes back from the process that decoded it: a number of examples and bytes."""

    pack: Callable[[T, bytes], tuple[int, bytes]]
    """Takes what the codec decoded, and the options of the request."""
    unpack: Callable[[int, bytearray], T]


EXAMPLES_WIRE = Wire[Examples](
    lambda examples, _: (examples.count, examples.payload),
    lambda count, packed: Examples(count, bytes(packed)),
)


def unlabelled_wire(pack: Callable[[T], bytes], unpack: Callable[[int, bytes], T]) -> Wire[Any]:
    """Return how examples without labels come back.

    Args:
        pack: returns the bytes of examples.
        unpack: returns so many examples of these bytes.
    """

    def packed(found: Unlabelled[T], options: bytes) -> tuple[int, bytes]:
        return len(found), bytes([bool(found.hashes)]) + found.hashes + pack(found.inputs)

    def unpacked(count: int, raw: bytearray) -> Unlabelled[T]:
        start = 1 + raw[0] * HASH_BYTES * count
        return Unlabelled(unpack(count, bytes(memoryview(raw)[start:])), bytes(raw[1:start]))

    return Wire(packed, unpacked)


FEATURES_WIRE: Wire[Unlabelled[Features]] = unlabelled_wire(
    lambda found: found.astype(np.float32, copy=False).tobytes(),
    lambda count, raw: np.frombuffer(raw, np.float32).reshape(count, -1),
)


class Decode(Protocol[T_co]):
    """Decodes and checks a body."""

    def __call__(
        self, body: bytes, features: int, classes: int, expects_bytes: bool = False, /
    ) -> T_co:
        """Return what a body holds.

        Args:
            body: the bytes.
            features, classes: of the model; 0 classes where labels are numbers.
            expects_bytes: whether it has learned uint8 features alone (see
                `streams.batch.refuse_integers`).

        Raises:
            InvalidBatchError: the examples cannot be learned or predicted.
        """
        ...


@dataclass(frozen=True, eq=False)
class Codec(Generic[T]):
    """One format of request bodies that hold a ``T``: `Examples`, or features."""

    media_type: str
    decode: Decode[T]
    content: Mapping[str, Any]
    """OpenAPI's description of the body."""
    max_at_once: int = 4 << 10
    """Bytes of the longest body that is decoded on the event loop."""
    max_in_process: float = math.inf
    """Bytes of the longest body that is decoded in this process."""
    wire: Wire[T] | None = None
    """For longer bodies."""


def checked(batch: Batch, features: int, classes: int, payload: bytes | None = None) -> Examples:
    """Return the examples of a batch.

    Args:
        batch: not checked yet.
        features, classes: of the model.
        payload: the safetensors file of the batch, if there is one already.

    Raises:
        InvalidBatchError: they cannot be learned.
    """
    count = len(batch.labels)
    check_count(count)
    check(batch, features, classes)
    return Examples(count, batch.to_bytes() if payload is None else payload)


def checked_features(found: Features, features: int, ids: object = None) -> Unlabelled[Features]:
    """Return features.

    Args:
        found: not checked yet.
        features: of the model.
        ids: of the questions, as JSON; None without them.

    Raises:
        InvalidBatchError: they cannot be predicted, or have other ids.
    """
    check_count(len(found))
    check_features(found, features)
    return Unlabelled(found, hashes(ids, len(found)))


def hashes(ids: object, count: int) -> bytes:
    """Return the hashes of ids; none if there are no ids.

    Args:
        ids: of JSON; None without them.
        count: of the questions.

    Raises:
        InvalidBatchError: they are no ids, or others than one a question, or one occurs twice.
    """
    if ids is None:
        return b""
    found = hashes_of(ids, count)
    if len(set(found)) < count:
        index = next(k for k, own in enumerate(found) if own in found[:k])
        raise InvalidBatchError("this id occurs twice in one request", "ids", index)
    return b"".join(found)


def check_count(examples: int) -> None:
    """Check that a request has no more than MAX_EXAMPLES.

    Raises:
        TooManyError: it has.
    """
    if examples > MAX_EXAMPLES:
        raise TooManyError(
            f"{examples} examples in one request, at most {MAX_EXAMPLES}; send several requests"
        )
