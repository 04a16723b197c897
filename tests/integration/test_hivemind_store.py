"""The store on hivemind's DHT: joining, and strangers who speak to it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Coroutine
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
import uvloop
from hivemind.proto import dht_pb2

from peers.clock import SystemClock
from peers.libp2p_daemon import Libp2pOptions
from peers.libp2p_node import Libp2pNode
from peers.store.dht_wire import WireRecord, encode_blob, encode_dictionary, encode_subkey, encode_value, key_id, node_id
from peers.store.hivemind_dht import HivemindStore
from protocols.errors import NetworkSetupError
from protocols.ids import SwarmTime

LOOPBACK = Libp2pOptions(listen=("/ip4/127.0.0.1/tcp/0",))
DEAD = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


class OffClock:
    """A wall clock that is wrong by a fixed time."""

    def __init__(self, ahead_s: float) -> None:
        self._ahead_s = ahead_s

    def now(self) -> SwarmTime:
        return SwarmTime(time.time() + self._ahead_s)


def run(work: Coroutine[Any, Any, None]) -> list[dict[str, Any]]:
    """Run to the end; returns what asyncio found fault with."""
    complaints: list[dict[str, Any]] = []

    async def bounded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(30):
            await work

    uvloop.run(bounded())
    return complaints


def node() -> Any:
    return Libp2pNode.start(os.urandom(32), LOOPBACK)


def only_good(_key: str, _subkey: str, value: bytes, _expires_at: SwarmTime, _now: SwarmTime) -> str | None:
    return None if value.startswith(b"good") else "it is bad"


def soon(seconds: float = 60) -> SwarmTime:
    return SwarmTime(time.time() + seconds)


async def store_on(on: Libp2pNode, *addresses: str, **options: Any) -> HivemindStore:
    return await HivemindStore.create(on, addresses, only_good, SystemClock(), **options)


def test_joining_needs_one_answer_of_many() -> None:
    async def main() -> None:
        async with node() as a, node() as b:
            first = await store_on(a)
            second = await store_on(b, DEAD, *a.addresses(), DEAD.replace("tcp/9", "tcp/10"))
            assert await first.put("k", "s", b"good", soon())
            assert await second.get("k") == {"s": b"good"}
            await second.close()
            await first.close()

    assert run(main()) == []


def test_a_newcomer_takes_over_what_the_only_holder_kept() -> None:
    async def main() -> None:
        async with node() as a, node() as b:
            first = await store_on(a)
            assert await first.put("k", "s", b"good", soon())
            second = await store_on(b, *a.addresses())
            for _ in range(500):  # the first hands it over when it has time
                if second.shelf.total_bytes:
                    break
                await asyncio.sleep(0.02)
            await first.close()
            assert await second.get("k") == {"s": b"good"}
            await second.close()

    assert run(main()) == []


def test_our_own_address_among_the_given_ones_is_passed_over() -> None:
    async def main() -> None:
        async with node() as a:
            alone = await store_on(a, *a.addresses())
            assert await alone.put("k", "s", b"good", soon())
            assert await alone.get("k") == {"s": b"good"}
            await alone.close()

    assert run(main()) == []


def test_nobody_answers_is_one_sentence() -> None:
    async def main() -> None:
        async with node() as a, node() as silent:
            for addresses in ([DEAD], [DEAD, *silent.addresses()]):  # the second has no DHT
                with pytest.raises(NetworkSetupError, match=f"None of the {len(addresses)} given addresses answers"):
                    await store_on(a, *addresses)
            with pytest.raises(NetworkSetupError, match="is not an address"):
                await store_on(a, "somewhere")
            again = await store_on(a)
            assert await again.put("k", "s", b"good", soon())
            await again.close()

    assert run(main()) == []


@pytest.mark.parametrize("ahead_s", [10.0, -10.0])
def test_a_clock_that_is_off_is_one_sentence(ahead_s: float) -> None:
    async def main() -> None:
        async with node() as a, node() as b:
            first = await store_on(a)
            with pytest.raises(NetworkSetupError, match=r"clock is 10 s (ahead of|behind) the swarm"):
                await HivemindStore.create(b, a.addresses(), only_good, OffClock(ahead_s))
            near = await HivemindStore.create(b, a.addresses(), only_good, OffClock(ahead_s / 10))
            assert near.skew_s == pytest.approx(ahead_s / 10, abs=0.9)
            await near.close()
            await first.close()

    assert run(main()) == []


def test_two_halves_find_each_other_again() -> None:
    async def main() -> None:
        async with node() as a, node() as b:
            left, right = await store_on(a), await store_on(b)
            assert await left.put("k", "left", b"good1", soon())
            assert await right.put("k", "right", b"good2", soon())
            assert await right.get("k") == {"right": b"good2"}
            assert await right.join(a.addresses()) == 1
            assert await left.get("k") == await right.get("k") == {"left": b"good1", "right": b"good2"}
            assert await right.join([DEAD]) == 0
            with pytest.raises(NetworkSetupError):
                await right.join(["somewhere"])
            await right.close()
            assert await right.join(a.addresses()) == 0
            await left.close()

    assert run(main()) == []


def test_a_client_takes_part_without_being_asked() -> None:
    async def main() -> None:
        async with node() as a, Libp2pNode.start(os.urandom(32), Libp2pOptions(listen=())) as hidden:
            server = await store_on(a)
            client = await store_on(hidden, *a.addresses(), client_mode=True)
            assert await client.put("k", "client", b"good1", soon())
            assert await server.put("k", "server", b"good2", soon())
            assert await server.get("k") == await client.get("k") == {"client": b"good1", "server": b"good2"}
            assert len(server._dht.protocol.routing_table.uid_to_peer_id) == 0
            await client.close()
            await server.close()

    assert run(main()) == []


def bomb(depth: int) -> bytes:
    raw = b""
    for _ in range(depth):
        raw = msgpack.packb(msgpack.ExtType(0x50, msgpack.packb([1.0, 1.0, [[raw, b"", 1.0]]])))
    return raw


def hostile_stores(me: bytes, expires_at: float) -> list[dht_pb2.StoreRequest]:
    """What a stranger may send; nothing of it may be kept."""
    key, subkey = key_id("k"), encode_subkey("s")
    good, bad = encode_value(encode_blob("k", b"good")), encode_value(encode_blob("k", b"bad"))
    entries: list[tuple[bytes, bytes, bytes, float, bool]] = [
        (key, subkey, bad, expires_at, False),
        (key, subkey, good, 1.0, False),
        (key, subkey, good, float("nan"), False),
        (key, subkey, good, 1e300, False),
        (key, subkey, good, expires_at, True),
        (key_id("other"), subkey, good, expires_at, False),
        (b"", subkey, good, expires_at, False),
        (b"x" * 21, subkey, good, expires_at, False),
        (key, b"\xc0", good, expires_at, False),
        (key, b"", b"", expires_at, False),
        (key, b"", bomb(200), expires_at, False),
        (key, b"", encode_dictionary([WireRecord("s", bad, expires_at)]), expires_at, False),
        (key, subkey, encode_value(encode_blob("k", b"good" + bytes(8 * 1024))), expires_at, False),
        (key, subkey, os.urandom(3_000_000), expires_at, False),
        (key, b"", os.urandom(3_000_000), expires_at, False),
    ]
    requests = []
    for entry in entries:
        request = dht_pb2.StoreRequest(peer=dht_pb2.NodeInfo(node_id=me))
        for field, item in zip(("keys", "subkeys", "values", "expiration_time", "in_cache"), entry, strict=True):
            getattr(request, field).append(item)
        requests.append(request)
    requests.append(dht_pb2.StoreRequest(keys=[key]))
    requests.append(dht_pb2.StoreRequest(keys=[key] * 5000, values=[good] * 5000))
    return requests


def test_strangers_change_nothing_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with node() as a, node() as b, node() as eve:
            first, second = await store_on(a), await store_on(b, *a.addresses())
            assert await first.put("k", "mine", b"good", soon())
            await eve.connect(a.addresses()[0], timeout_s=5)
            for me in (b"", b"short", b"x" * 20, b"x" * 30, node_id(b.p2p.peer_id.to_bytes()), node_id(a.p2p.peer_id.to_bytes())):
                stores = hostile_stores(me, soon())
                finds = [dht_pb2.FindRequest(keys=keys, peer=dht_pb2.NodeInfo(node_id=me)) for keys in ([], [b"x"], [key_id("k")] * 500)]
                for name, kind, requests in (("store", dht_pb2.StoreResponse, stores), ("find", dht_pb2.FindResponse, finds)):
                    for request in requests:
                        try:
                            reply = await eve.p2p.call_protobuf_handler(a.p2p.peer_id, f"DHTProtocol.rpc_{name}", request, kind)
                        except Exception:  # noqa: BLE001  # hivemind tells the sender by an error of its own
                            continue
                        assert name == "find" or not any(reply.store_ok)
                ping = dht_pb2.PingRequest(peer=dht_pb2.NodeInfo(node_id=me), validate=True)
                await eve.p2p.call_protobuf_handler(a.p2p.peer_id, "DHTProtocol.rpc_ping", ping, dht_pb2.PingResponse)
            await eve.p2p._client.call_unary_handler(a.p2p.peer_id, "DHTProtocol.rpc_ping", b"")
            table = first._dht.protocol.routing_table
            assert list(table.uid_to_peer_id.values()) == [b.p2p.peer_id], "nobody took another one's place"
            assert await first.get("k") == await second.get("k") == {"mine": b"good"}
            assert first.shelf.total_bytes < 100
            await second.close()
            await first.close()
            assert str(eve.peer) in caplog.text

    with caplog.at_level(logging.DEBUG, logger="peers.store"):
        assert run(main()) == []


def test_a_stranger_that_answers_nonsense_is_no_harm() -> None:
    async def main() -> None:
        async with node() as a, node() as b, node() as eve:
            place = dht_pb2.NodeInfo(node_id=node_id(eve.p2p.peer_id.to_bytes()))

            async def find(request: dht_pb2.FindRequest, _context: object) -> dht_pb2.FindResponse:
                lies = [
                    dht_pb2.FindResult(type=2, value=bomb(100), expiration_time=1e300),
                    dht_pb2.FindResult(type=1, value=b"x", expiration_time=1e300),
                    dht_pb2.FindResult(type=2, value=encode_dictionary([WireRecord("s", encode_value(b"x"), 1e300)])),
                ]
                for lie in lies:
                    lie.nearest_node_ids.extend([b"x" * 20, b"y", b""])
                    lie.nearest_peer_ids.extend([b"nobody", b"", b"z" * 1000])
                return dht_pb2.FindResponse(results=lies, peer=place)

            async def store(_request: dht_pb2.StoreRequest, _context: object) -> dht_pb2.StoreResponse:
                return dht_pb2.StoreResponse(store_ok=[True] * 1000, peer=place)

            async def ping(_request: dht_pb2.PingRequest, _context: object) -> dht_pb2.PingResponse:
                return dht_pb2.PingResponse(peer=place, dht_time=time.time())

            for name, handler, kind in (
                ("find", find, dht_pb2.FindRequest),
                ("store", store, dht_pb2.StoreRequest),
                ("ping", ping, dht_pb2.PingRequest),
            ):
                await eve.p2p.add_protobuf_handler(f"DHTProtocol.rpc_{name}", handler, kind)
            first = await store_on(a, *eve.addresses())
            second = await store_on(b, *a.addresses(), *eve.addresses())
            assert await first.put("k", "s", b"good", soon())
            assert await second.get("k") == {"s": b"good"}
            assert await first.get("nothing") == {}
            await second.close()
            await first.close()

    assert run(main()) == []


def test_closing_ends_what_is_under_way_at_once() -> None:
    async def main() -> None:
        async with node() as a, node() as hanging:
            asked = asyncio.Event()
            place = dht_pb2.NodeInfo(node_id=node_id(hanging.p2p.peer_id.to_bytes()))

            async def ping(_request: dht_pb2.PingRequest, _context: object) -> dht_pb2.PingResponse:
                return dht_pb2.PingResponse(peer=place, dht_time=time.time())

            async def find(request: dht_pb2.FindRequest, _context: object) -> dht_pb2.FindResponse:
                if not started.is_set():
                    return dht_pb2.FindResponse(results=[dht_pb2.FindResult() for _ in request.keys])
                asked.set()
                await asyncio.Event().wait()
                raise AssertionError

            started = asyncio.Event()
            await hanging.p2p.add_protobuf_handler("DHTProtocol.rpc_ping", ping, dht_pb2.PingRequest)
            await hanging.p2p.add_protobuf_handler("DHTProtocol.rpc_find", find, dht_pb2.FindRequest)
            store = await store_on(a, *hanging.addresses())
            started.set()
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(store.get("k"))
                await asked.wait()
                await store.close()
                await asyncio.wait([reading], timeout=1)
                assert reading.done(), "long before the request times out"
            assert reading.result() == {}

    assert run(main()) == []
