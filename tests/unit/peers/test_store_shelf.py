"""What one node keeps: newest wins, bounded, expiring. Random sequences are compared with a slow obvious model."""

from __future__ import annotations

import random

import pytest

from peers.store.shelf import Shelf, ShelfLimits
from protocols.ids import SwarmTime


def at(seconds: float) -> SwarmTime:
    return SwarmTime(seconds)


def values(shelf: Shelf, key: bytes, now: float) -> dict[str, bytes]:
    return {subkey: kept.value for subkey, kept in shelf.get(key, at(now)).items()}


def test_agrees_with_a_slow_model_on_random_puts() -> None:
    rng = random.Random(5)
    shelf = Shelf()
    log: list[tuple[bytes, str, bytes, float]] = []
    for now in range(1, 400):
        key, subkey = rng.choice([b"a", b"b"]), rng.choice("xyz")
        value, expires_at = rng.randbytes(3), now + rng.randint(-2, 30)
        alive = [entry for entry in log if entry[:2] == (key, subkey) and entry[3] > now]
        expected = expires_at > now and all(entry[3] < expires_at for entry in alive)
        assert shelf.put(key, subkey, value, at(expires_at), at(now)) is expected
        if expected:
            log.append((key, subkey, value, float(expires_at)))
        for name in (b"a", b"b"):
            newest = {entry[1]: entry[2] for entry in sorted(log, key=lambda entry: entry[3]) if entry[0] == name and entry[3] > now}
            assert values(shelf, name, now) == newest


@pytest.mark.parametrize(
    "limits", [ShelfLimits(keys=2), ShelfLimits(subkeys=2), ShelfLimits(key_bytes=20), ShelfLimits(total_bytes=20)], ids=str
)
def test_refuses_what_does_not_fit_until_something_expires(limits: ShelfLimits) -> None:
    shelf = Shelf(limits)

    def put(name: int, expires_at: float, now: float) -> bool:
        key, subkey = (b"%d" % name, "s") if limits.keys == 2 else (b"k", str(name))
        return shelf.put(key, subkey, b"x" * 10, at(expires_at), at(now))

    assert put(0, 10, 0)
    assert put(1, 20, 0)
    assert not put(2, 99, 0)
    assert put(1, 30, 0), "a newer version of a kept record takes its place"
    assert not put(2, 99, 9)
    assert put(2, 99, 10), "record 0 has expired"
    assert not put(3, 99, 10)
    assert shelf.total_bytes == 20


def test_a_larger_version_must_fit_too() -> None:
    shelf = Shelf(ShelfLimits(key_bytes=10))
    assert shelf.put(b"k", "s", b"x" * 10, at(10), at(0))
    assert not shelf.put(b"k", "s", b"x" * 11, at(20), at(0))
    assert values(shelf, b"k", 0) == {"s": b"x" * 10}


def test_bytes_are_given_back_when_records_shrink_or_expire() -> None:
    shelf = Shelf(ShelfLimits(keys=1))
    assert shelf.put(b"k", "s", b"x" * 10, at(10), at(0))
    assert shelf.put(b"k", "s", b"x", at(20), at(0))
    assert shelf.total_bytes == 1
    assert shelf.put(b"other", "s", b"yy", at(40), at(30))
    assert shelf.total_bytes == 2
    assert list(shelf.key_ids()) == [b"other"]
