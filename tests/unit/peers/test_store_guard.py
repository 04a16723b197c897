"""What the guard lets through to hivemind."""

from __future__ import annotations

import logging

import base58
import pytest
from hivemind.proto import dht_pb2

from peers.store.dht_guard import MAX_FIND_KEYS, MAX_NEIGHBOURS, BadMessage, DhtGuard
from peers.store.dht_wire import WireRecord, decode_dictionary, encode_dictionary, encode_subkey, encode_value, key_id, node_id

ME, ANN, EVE = b"peer-me", b"peer-ann", b"peer-eve"
KEY = key_id("k")


def good(name: str, expires_at: float = 9e9) -> WireRecord:
    return WireRecord(name, encode_value(b"good"), expires_at)


def bad(name: str) -> WireRecord:
    return WireRecord(name, encode_value(b"bad"), 9e9)


def admit(key: bytes, record: WireRecord) -> str | None:
    return None if key == KEY and record.value == encode_value(b"good") else "it is bad"


@pytest.fixture
def guard() -> DhtGuard:
    return DhtGuard(ME, admit)


def store_request(*entries: tuple[bytes, bytes, bytes, float, bool]) -> dht_pb2.StoreRequest:
    request = dht_pb2.StoreRequest(peer=dht_pb2.NodeInfo(node_id=node_id(ANN)))
    for key, tag, value, expires_at, in_cache in entries:
        request.keys.append(key)
        request.subkeys.append(tag)
        request.values.append(value)
        request.expiration_time.append(expires_at)
        request.in_cache.append(in_cache)
    return request


def single(record: WireRecord, key: bytes = KEY, in_cache: bool = False) -> tuple[bytes, bytes, bytes, float, bool]:
    return key, encode_subkey(record.subkey), record.value, record.expires_at, in_cache


def whole(*records: WireRecord) -> tuple[bytes, bytes, bytes, float, bool]:
    return KEY, b"", encode_dictionary(records), 9e9, False


def test_good_records_pass_and_bad_ones_are_named_with_their_sender(guard: DhtGuard, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="peers.store.dht_guard"):
        clean, origin = guard.clean_store(store_request(single(good("a")), single(bad("b")), whole(bad("c"), good("d"), good("e"))), ANN)
    assert list(clean.subkeys) == [encode_subkey(name) for name in "ade"]
    assert set(clean.values) == {encode_value(b"good")}
    assert list(clean.expiration_time) == [9e9] * 3
    assert origin == [0, 2, 2]
    assert clean.peer.node_id == node_id(ANN)
    assert caplog.text.count(base58.b58encode(ANN).decode()) == 2
    assert "it is bad" in caplog.text


@pytest.mark.parametrize(
    "entry",
    [
        single(good("a"), in_cache=True),
        single(good("a"), key=b"short"),
        single(good("a"), key=key_id("other")),
        (KEY, b"\xc0", encode_value(b"good"), 9e9, False),  # a regular value, without a subkey
        (KEY, b"\xff\xff", encode_value(b"good"), 9e9, False),
        (KEY, b"", b"garbage", 9e9, False),
    ],
)
def test_nothing_else_is_stored(guard: DhtGuard, entry: tuple[bytes, bytes, bytes, float, bool]) -> None:
    clean, origin = guard.clean_store(store_request(entry), ANN)
    assert not clean.keys
    assert origin == []


def test_lists_of_a_store_request_must_match(guard: DhtGuard) -> None:
    for name in ("subkeys", "values", "expiration_time", "in_cache"):
        request = store_request(single(good("a")))
        del getattr(request, name)[:]
        with pytest.raises(BadMessage):
            guard.clean_store(request, ANN)


def test_a_store_request_is_bounded(guard: DhtGuard) -> None:
    with pytest.raises(BadMessage):
        guard.clean_store(store_request(*[single(good("a"))] * 4097), ANN)


def test_questions_are_bounded(guard: DhtGuard) -> None:
    guard.check_find(dht_pb2.FindRequest(keys=[KEY] * MAX_FIND_KEYS))
    for keys in ([KEY] * (MAX_FIND_KEYS + 1), [b"short"], [KEY + b"x"]):
        with pytest.raises(BadMessage):
            guard.check_find(dht_pb2.FindRequest(keys=keys))


@pytest.mark.parametrize(
    ("claimed", "sender", "kept"),
    [
        (node_id(ANN), ANN, node_id(ANN)),
        (b"", ANN, b""),
        (node_id(EVE), ANN, b""),
        (b"x" * 20, ANN, b""),
        (b"x" * 3, ANN, b""),
        (node_id(ME), ANN, b""),
        (node_id(ME), ME, b""),
    ],
)
def test_a_sender_keeps_only_its_own_place(guard: DhtGuard, claimed: bytes, sender: bytes, kept: bytes) -> None:
    node = dht_pb2.NodeInfo(node_id=claimed)
    guard.clean_sender(node, sender)
    assert node.node_id == kept


def found(*records: WireRecord) -> dht_pb2.FindResult:
    return dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, value=encode_dictionary(records), expiration_time=1e300)


def test_an_answer_keeps_its_good_records(guard: DhtGuard) -> None:
    response = dht_pb2.FindResponse(results=[found(bad("a"), good("b", 5e9), good("c", 6e9)), found(bad("a"))])
    guard.clean_found(response, [KEY, KEY], ANN)
    first, second = response.results
    assert first.type == dht_pb2.FOUND_DICTIONARY
    assert decode_dictionary(first.value) == [good("b", 5e9), good("c", 6e9)]
    assert first.expiration_time == 6e9
    assert (second.type, second.value) == (dht_pb2.NOT_FOUND, b"")


@pytest.mark.parametrize(
    "result",
    [
        dht_pb2.FindResult(type=dht_pb2.FOUND_REGULAR, value=encode_value(b"good"), expiration_time=9e9),
        dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, value=b"garbage", expiration_time=9e9),
        dht_pb2.FindResult(type=dht_pb2.NOT_FOUND, value=encode_dictionary([good("a")]), expiration_time=9e9),
        dht_pb2.FindResult(type=7, value=b"x"),
    ],
)
def test_other_answers_count_as_not_found(guard: DhtGuard, result: dht_pb2.FindResult) -> None:
    response = dht_pb2.FindResponse(results=[result])
    guard.clean_found(response, [KEY], ANN)
    assert (response.results[0].type, response.results[0].value) == (dht_pb2.NOT_FOUND, b"")


def test_an_answer_has_no_more_results_than_questions(guard: DhtGuard) -> None:
    response = dht_pb2.FindResponse(results=[found(good("a"))] * 3)
    guard.clean_found(response, [KEY], ANN)
    assert len(response.results) == 1


def test_neighbours_must_stand_where_they_belong_and_are_bounded(guard: DhtGuard) -> None:
    honest = [b"peer-%d" % i for i in range(MAX_NEIGHBOURS + 5)]
    result = dht_pb2.FindResult(nearest_node_ids=[node_id(EVE), b"x"], nearest_peer_ids=[ANN, b""])
    result.nearest_node_ids.extend(map(node_id, honest))
    result.nearest_peer_ids.extend(honest)
    response = dht_pb2.FindResponse(results=[result])
    guard.clean_found(response, [KEY], ANN)
    assert list(response.results[0].nearest_peer_ids) == honest[:MAX_NEIGHBOURS]
    assert list(response.results[0].nearest_node_ids) == [node_id(peer) for peer in honest[:MAX_NEIGHBOURS]]
