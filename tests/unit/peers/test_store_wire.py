"""How records look inside hivemind's DHT: hivemind's own code agrees, and what strangers send is read strictly."""

from __future__ import annotations

import random

import msgpack  # type: ignore[import-untyped]
import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.utils import MSGPackSerializer

from peers.store.dht_wire import (
    MAX_BLOB_BYTES,
    MAX_DICTIONARY_BYTES,
    WireRecord,
    decode_blob,
    decode_dictionary,
    decode_subkey,
    decode_value,
    encode_blob,
    encode_dictionary,
    encode_subkey,
    encode_value,
    key_id,
    node_id,
)

RECORDS = [WireRecord("ann", encode_value(b"one"), 4e9), WireRecord("bob", encode_value(b""), 5e9)]


def test_hivemind_reads_what_we_write_and_the_other_way_round() -> None:
    assert key_id("run/peers") == DHTID.generate(source="run/peers").to_bytes()
    assert encode_subkey("ann") == MSGPackSerializer.dumps("ann")
    assert encode_value(b"x" * 300) == MSGPackSerializer.dumps(b"x" * 300)
    read = MSGPackSerializer.loads(encode_dictionary(RECORDS))
    assert isinstance(read, DictionaryDHTValue)
    assert {name: tuple(item) for name, item in read.items()} == {record.subkey: (record.value, record.expires_at) for record in RECORDS}
    assert read.latest_expiration_time == 5e9
    assert decode_dictionary(MSGPackSerializer.dumps(read)) == RECORDS


def test_round_trips() -> None:
    blob = encode_blob("schlüssel", b"record")
    assert decode_blob(decode_value(encode_value(blob)), key_id("schlüssel")) == ("schlüssel", b"record")
    assert decode_subkey(encode_subkey("ünter")) == "ünter"
    assert decode_dictionary(encode_dictionary([])) == []


def test_a_record_cannot_be_moved_to_another_key() -> None:
    with pytest.raises(ValueError, match="another key"):
        decode_blob(encode_blob("k", b"record"), key_id("other"))


def test_a_node_cannot_choose_its_place() -> None:
    assert node_id(b"a") != node_id(b"b")
    assert len(node_id(b"a")) == 20


@pytest.mark.parametrize(
    "blob", [b"", b"\x00", b"\x00\x05abc", b"\xff\xff" + b"x" * 400, b"\x00\x01\xff", encode_blob("k", b"x" * MAX_BLOB_BYTES)]
)
def test_bad_blobs_are_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_blob(blob, key_id("k"))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        msgpack.packb("text"),
        msgpack.packb([b"x"]),
        msgpack.packb(b"x") + b"y",
        msgpack.packb(msgpack.ExtType(0x50, b"x")),
        msgpack.packb(b"x" * (MAX_BLOB_BYTES + 1)),
        b"\x91" * 5000,
    ],
)
def test_bad_values_are_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_value(raw)


@pytest.mark.parametrize(
    "raw", [b"", msgpack.packb(b"bin"), msgpack.packb(None), msgpack.packb(7), msgpack.packb("x" * 129), b"\xa2\xff\xff"]
)
def test_bad_subkeys_are_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_subkey(raw)


def nested(depth: int) -> bytes:
    raw = b""
    for _ in range(depth):
        raw = msgpack.packb(msgpack.ExtType(0x50, raw))
    return raw


def dictionary(inner: object) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(0x50, msgpack.packb(inner)))
    return packed


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        msgpack.packb({}),
        msgpack.packb(msgpack.ExtType(0x40, msgpack.packb([1]))),
        b"\xd6\xff" + b"x" * 4,  # a timestamp
        nested(3),
        nested(20_000),
        dictionary({}),
        dictionary([1, 2]),
        dictionary([1.0, 2.0, {}]),
        dictionary([1.0, 2.0, [["a", b"x"]]]),
        dictionary([1.0, 2.0, [[b"a", b"x", 1.0]]]),
        dictionary([1.0, 2.0, [["a", "x", 1.0]]]),
        dictionary([1.0, 2.0, [["a", b"x", "soon"]]]),
        dictionary([1.0, 2.0, [["a", b"x" * (MAX_BLOB_BYTES + 100), 1.0]]]),
        dictionary([1.0, 2.0, [[str(i), b"x", 1.0] for i in range(513)]]),
        b"\xc9" + MAX_DICTIONARY_BYTES.to_bytes(4, "big") + b"\x50" + bytes(MAX_DICTIONARY_BYTES),
    ],
)
def test_bad_dictionaries_are_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_dictionary(raw)


def test_damaged_bytes_never_raise_anything_else() -> None:
    rng = random.Random(3)
    good = encode_dictionary(RECORDS)
    for _ in range(3000):
        raw = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        for read in (decode_dictionary, decode_value, decode_subkey):
            try:
                read(bytes(raw[: rng.randint(0, len(raw))]))
            except ValueError:
                continue
