"""What strangers say in the DHT."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from hivemind.proto import dht_pb2

from peers.libp2p_control import decode_stream_info, encode_stream_info
from peers.store.dht_guard import BadMessage, DhtGuard
from peers.store.dht_wire import (
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
from peers.store.gate import RecordGate
from protocols.ids import SwarmTime
from scripts.fuzzing.formats import PROTOBUF
from scripts.fuzzing.target import SENDER, Target
from scripts.fuzzing.world import NOW

_KEY, _ME, _THEM = "run/presence", b"peer-me", b"peer-them"
_KEY_ID = key_id(_KEY)


class _Clock:
    def now(self) -> SwarmTime:
        return NOW


@lru_cache(maxsize=1)
def _guard() -> DhtGuard:
    return DhtGuard(_ME, RecordGate(lambda *record: None, _Clock()).admit)


def _records() -> list[WireRecord]:
    value = encode_value(encode_blob(_KEY, b"a record"))
    return [WireRecord("ann", value, NOW + 60.0), WireRecord("bob", value, NOW + 90.0)]


def _same(records: list[WireRecord]) -> list[tuple[str, bytes, str]]:
    return [(record.subkey, record.value, repr(record.expires_at)) for record in records]  # an expiry may be NaN until it is judged


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except Exception as error:  # hivemind parses: what it refuses never reaches us
        raise BadMessage(str(error)) from error


def _store(data: bytes) -> tuple[bytes, list[int]]:
    clean, origin = _guard().clean_store(_parsed(dht_pb2.StoreRequest, data), _THEM)
    return clean.SerializeToString(), origin


def _find(data: bytes) -> bytes:
    request = _parsed(dht_pb2.FindRequest, data)
    _guard().clean_sender(request.peer, _THEM)
    _guard().check_find(request)
    return bytes(request.SerializeToString())


def _found(data: bytes) -> bytes:
    response = _parsed(dht_pb2.FindResponse, data)
    _guard().clean_found(response, [_KEY_ID, bytes(20)], _THEM)
    return bytes(response.SerializeToString())


def _store_seeds() -> list[bytes]:
    request = dht_pb2.StoreRequest(peer=dht_pb2.NodeInfo(node_id=node_id(_THEM)))
    record = _records()[0]
    for tag, value, expires_at in ((encode_subkey("ann"), record.value, NOW + 60.0), (b"", encode_dictionary(_records()), NOW + 90.0)):
        request.keys.append(_KEY_ID)
        request.subkeys.append(tag)
        request.values.append(value)
        request.expiration_time.append(expires_at)
        request.in_cache.append(False)
    return [request.SerializeToString()]


def _found_seeds() -> list[bytes]:
    result = dht_pb2.FindResult(type=2, value=encode_dictionary(_records()), expiration_time=NOW + 90.0)
    result.nearest_node_ids.append(node_id(b"other"))
    result.nearest_peer_ids.append(b"other")
    return [dht_pb2.FindResponse(results=[result, dht_pb2.FindResult(type=0)]).SerializeToString()]


STORE: tuple[Target, ...] = (
    Target(
        "dht-blob",
        lambda data: decode_blob(data, _KEY_ID),
        lambda: [encode_blob(_KEY, b"a record")],
        (ValueError,),
        lambda value: encode_blob(*value),
        canonical=True,
    ),
    Target("dht-value", decode_value, lambda: [encode_value(b"x" * 40)], (ValueError,), encode_value),
    Target("dht-subkey", decode_subkey, lambda: [encode_subkey("ann"), encode_subkey("x" * 100)], (ValueError,), encode_subkey),
    Target("dht-dictionary", lambda data: _same(decode_dictionary(data)), lambda: [encode_dictionary(_records())], (ValueError,)),
    Target("dht-store", _store, _store_seeds, (BadMessage,), form=PROTOBUF),
    Target("dht-find", _find, lambda: [dht_pb2.FindRequest(keys=[_KEY_ID]).SerializeToString()], (BadMessage,), form=PROTOBUF),
    Target("dht-found", _found, _found_seeds, (BadMessage,), form=PROTOBUF),
    Target(
        "stream-info",
        decode_stream_info,
        lambda: [encode_stream_info(SENDER, "peer")],
        (ValueError,),
        lambda value: encode_stream_info(*value),
        form=PROTOBUF,
        input_bytes=16 * 1024,
    ),
)
