"""Rows of a table by key: a row is numbered when its key is first seen.

A key is 64 bits, and has a slot among 2^bits. The first key of a slot owns it. Any other key with
this slot shares the owner's row; that is a collision, and each visit of it is counted.
"""

import numpy as np
import numpy.typing as npt

from funnel.pool.tables.pages import paged

Keys = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / φ: multiplying by it spreads keys evenly [Knuth, TAOCP 3, 6.4]."""
FEWEST_BITS, MOST_BITS = 1, 30


class KeyIndex:
    """Numbers of rows by key.

    Args:
        bits: there are 2^bits slots, which take 4 bytes each.

    Raises:
        ValueError: ``bits`` is not from 1 to 30.
    """

    def __init__(self, bits: int) -> None:
        if not FEWEST_BITS <= bits <= MOST_BITS:
            raise ValueError(f"bits must be from {FEWEST_BITS} to {MOST_BITS}, got {bits}")
        self._shift = np.uint64(64 - bits)
        self._rows = np.full(1 << bits, -1, dtype=np.int32)
        """Row of each slot; -1 if no key owns it."""
        self._keys = np.empty(1024, dtype=np.uint64)
        """Owner of each row, in the first ``used`` places."""
        self._visits = np.zeros(1024, dtype=np.int64)
        """Visits of each row, in the same places."""
        self.first = np.empty(0, dtype=np.int64)
        """Places, among the keys that the last `admit` got, of those that own the rows which it
        added: int64 [added], by row."""
        self.used = 0
        """Number of rows."""
        self.visits = 0
        """Keys that have been admitted, each as often as it came."""
        self.collided = 0
        """Visits that shared the row of another key."""

    @property
    def keys(self) -> Keys:
        """The key that owns each row, uint64 [used]; it is not to be changed."""
        return self._keys[: self.used]

    @property
    def row_visits(self) -> Numbers:
        """The visits of each row that were counted, int64 [used]; it is not to be changed."""
        return self._visits[: self.used]

    @property
    def collision_ratio(self) -> float:
        """Share of the visits that were collisions, in [0, 1]."""
        return self.collided / max(self.visits, 1)

    def find(self, keys: Keys) -> Numbers:
        """Return the row of each key, int64 [e]; -1 where it would be a new one.

        Args:
            keys: uint64 [e].
        """
        return self._rows.take(self._slots(keys)).astype(np.int64)

    def admit(self, keys: Keys) -> Numbers:
        """Return the row of each key, int64 [e]; keys without one get the next numbers.

        Among new keys the smaller comes first, so that their order does not matter.

        Args:
            keys: uint64 [e].
        """
        slots, before = self._slots(keys), self.used
        rows = self._rows.take(slots).astype(np.int64)
        new = np.flatnonzero(rows < 0)
        if len(new):
            self._own(keys[new])
            rows[new] = self._rows.take(slots[new])
        is_other = self._keys.take(rows) != keys
        new = new[~is_other[new]]
        self.first = np.empty(self.used - before, dtype=np.int64)
        self.first[rows[new[::-1]] - before] = new[::-1]
        self.visits += len(keys)
        self.collided += int(is_other.sum())
        return rows

    def count(self, rows: Numbers, visits: Numbers) -> None:
        """Count visits of rows.

        Args:
            rows: int64 [U], all different.
            visits: of each row, int64 [U].
        """
        self._visits[rows] += visits

    def restore(self, keys: Keys, row_visits: Numbers, visits: int, collided: int) -> None:
        """Continue from what another index of as many bits held.

        Args:
            keys: its `keys`.
            row_visits: its `row_visits`.
            visits: its count.
            collided: its count.
        """
        self._rows.fill(-1)
        self.used = 0
        self._append(keys)
        self._visits[: self.used] = row_visits
        self.visits, self.collided = visits, collided

    def _own(self, new: Keys) -> None:
        """Give rows to keys that have none; of those with one slot, the smallest owns it."""
        ascending = np.sort(new)
        _, first = np.unique(self._slots(ascending), return_index=True)
        self._append(ascending[np.sort(first)])

    def _append(self, owners: Keys) -> None:
        used = self.used + len(owners)
        if used > len(self._keys):
            room = max(used, 2 * len(self._keys))
            keys, visits = paged((room,), np.uint64), paged((room,), np.int64)
            keys[: self.used], visits[: self.used] = self.keys, self.row_visits
            self._keys, self._visits = keys, visits
        self._keys[self.used : used] = owners
        self._visits[self.used : used] = 0
        self._rows[self._slots(owners)] = np.arange(self.used, used, dtype=np.int32)
        self.used = used

    def _slots(self, keys: Keys) -> Numbers:
        return ((keys * GOLDEN) >> self._shift).view(np.int64)
