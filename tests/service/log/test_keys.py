"""The names of keys: one cluster slot, and no name by accident."""

import pytest

from service.log.keys import Keys

NAMES = ("log", "asked", "cuts", "dead", "aside", "uuid", "epoch", "lease")


def test_keys_share_one_cluster_slot_by_their_braces() -> None:
    keys = Keys("iris")
    assert [getattr(keys, name) for name in NAMES] == [f"funnel:{{iris}}:{n}" for n in NAMES]
    assert keys.idempotency("abc") == "funnel:{iris}:key:abc"


def test_a_misspelt_key_is_an_error() -> None:
    with pytest.raises(AttributeError):
        getattr(Keys("iris"), "lgo")  # noqa: B009
