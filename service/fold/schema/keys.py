"""Keys: 64-bit hashes that stand for categories, words and crosses.

The key of a value is the xxh3-64 (seed 0, https://github.com/Cyan4973/xxHash) of UTF-8 bytes:

| feature | bytes |
|---|---|
| category, bool | ``column \\0 category \\0 text``, ``column \\0 bool \\0 true`` |
| part of a time | ``column \\0 hour \\0 13``, ``column \\0 weekday \\0 0`` |
| word, pair of words | ``column \\0 word \\0 late``, ``column \\0 pair \\0 late fee`` |
| missing value | ``column \\0 missing``; of a part of a time ``column \\0 hour \\0 missing`` |

The key of a cross of two keys is ``scramble(scramble(first) + second)``. These
definitions may not change: states hold keys.
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import xxhash

Keys = npt.NDArray[np.uint64]

MOST_PREFIXES = 4_096
"""Prefixes that are remembered: those of the columns of a batch are needed again in the next."""
GAMMA = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@lru_cache(MOST_PREFIXES)
def prefix_of(column: str, *tags: str) -> bytes:
    """Return the bytes before the text of a value: names, each with a zero byte after it."""
    return "".join(f"{name}\0" for name in (column, *tags)).encode()


def keys_of(prefix: bytes, values: Iterable[bytes]) -> Keys:
    """Return the keys of k texts after a prefix: uint64 [k]."""
    return np.array([*map(xxhash.xxh3_64_intdigest, map(prefix.__add__, values))], np.uint64)


def key_of(prefix: bytes, value: bytes) -> int:
    """Return the key of one text after a prefix."""
    return xxhash.xxh3_64_intdigest(prefix + value)


@lru_cache(MOST_PREFIXES)
def missing_key(column: str, *tags: str) -> np.uint64:
    """Return the key of a missing value."""
    return np.uint64(key_of(prefix_of(column, *tags), b"missing"))


def scramble(keys: Keys) -> Keys:
    """Return a bijection of 64-bit integers, the output function of SplitMix64.

    G. Steele, D. Lea and C. Flood, 'Fast splittable pseudorandom number generators', 2014.
    """
    z = keys + GAMMA
    z = (z ^ (z >> np.uint64(30))) * FIRST
    z = (z ^ (z >> np.uint64(27))) * SECOND
    return z ^ (z >> np.uint64(31))
