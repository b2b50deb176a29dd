"""A format of request bodies, and the checks that every format shares."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from service.log.keys import Field
from streams.batch import Batch, Features, TooManyError, check, check_features

MAX_EXAMPLES = 65_536
"""Most examples in a request: a body of narrow rows unfolds into logits many times its size."""

T = TypeVar("T")
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
class Wire(Generic[T]):
    """How a ``T`` comes back from the process that decoded it: a number of examples and bytes."""

    pack: Callable[[T, bytes], tuple[int, bytes]]
    """Takes what the codec decoded, and the options of the request."""
    unpack: Callable[[int, bytearray], T]


EXAMPLES_WIRE = Wire[Examples](
    lambda examples, _: (examples.count, examples.payload),
    lambda count, packed: Examples(count, bytes(packed)),
)
FEATURES_WIRE = Wire[Features](
    lambda found, _: (len(found), found.astype(np.float32, copy=False).tobytes()),
    lambda count, packed: np.frombuffer(packed, np.float32).reshape(count, -1),
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
    _check_count(count)
    check(batch, features, classes)
    return Examples(count, batch.to_bytes() if payload is None else payload)


def checked_features(found: Features, features: int) -> Features:
    """Return ``found``, [n, features].

    Raises:
        InvalidBatchError: they cannot be predicted.
    """
    _check_count(len(found))
    check_features(found, features)
    return found


def _check_count(examples: int) -> None:
    if examples > MAX_EXAMPLES:
        raise TooManyError(
            f"{examples} examples in one request, at most {MAX_EXAMPLES}; send several requests"
        )
