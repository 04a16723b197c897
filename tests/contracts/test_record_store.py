"""One suite over both record stores: in memory, and on hivemind's DHT over real sockets on 127.0.0.1."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any, Protocol

import pytest
import uvloop

from peers.interfaces import RecordStore, RecordValidator
from peers.libp2p_daemon import Libp2pOptions
from peers.libp2p_node import Libp2pNode
from peers.store.dht_wire import encode_blob, encode_value, key_id
from peers.store.hivemind_dht import HivemindStore
from peers.store.memory import MemoryStore, MemorySwarm
from peers.store.rules import MAX_LIFETIME_S, MAX_VALUE_BYTES
from protocols.errors import RemoteProtocolError
from protocols.ids import SwarmTime


class HandClock:
    """The wall clock, moved by hand: hivemind looks at the real one as well."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> SwarmTime:
        return SwarmTime(time.time() + self.ahead_s)

    def after(self, seconds: float) -> SwarmTime:
        return SwarmTime(self.now() + seconds)


def strict(_key: str, subkey: str, value: bytes, _expires_at: SwarmTime, _now: SwarmTime) -> str | None:
    """A toy signature: a record starts with its subkey."""
    if value.startswith(b"boom"):
        raise RemoteProtocolError(None, "cannot be parsed")
    return None if value.startswith(subkey.encode() + b"=") else "its signature is wrong"


def gullible(*_record: object) -> str | None:
    return None


class Swarm(Protocol):
    """One kind of store, and what a test needs around it."""

    clock: HandClock

    async def join(self, validator: RecordValidator = strict) -> RecordStore: ...

    def plant(self, store: RecordStore, key: str, subkey: str, value: bytes, expires_at: SwarmTime) -> None: ...

    async def leave(self, store: RecordStore) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.clock = HandClock()
        self._swarm = MemorySwarm()

    async def join(self, validator: RecordValidator = strict) -> RecordStore:
        return MemoryStore(self.clock, validator, self._swarm)

    def plant(self, store: RecordStore, key: str, subkey: str, value: bytes, expires_at: SwarmTime) -> None:
        assert isinstance(store, MemoryStore)
        assert store.shelf.put(key.encode(), subkey, value, expires_at, self.clock.now())

    async def leave(self, store: RecordStore) -> None:
        await store.close()


class OnHivemind:
    def __init__(self, nodes: list[Libp2pNode]) -> None:
        self.clock = HandClock()
        self._nodes = list(nodes)
        self._stores: list[HivemindStore] = []

    async def join(self, validator: RecordValidator = strict) -> RecordStore:
        node = self._nodes[len(self._stores)]
        initial = self._nodes[0].addresses() if self._stores else []
        store = await HivemindStore.create(node, initial, validator, self.clock)
        self._stores.append(store)
        return store

    def plant(self, store: RecordStore, key: str, subkey: str, value: bytes, expires_at: SwarmTime) -> None:
        assert isinstance(store, HivemindStore)
        assert store.shelf.put(key_id(key), subkey, encode_value(encode_blob(key, value)), expires_at, self.clock.now())

    async def leave(self, store: RecordStore) -> None:
        await store.close()

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


@pytest.fixture(scope="module")
def nodes(runner: asyncio.Runner) -> Iterator[list[Libp2pNode]]:
    stack = AsyncExitStack()
    options = Libp2pOptions(listen=("/ip4/127.0.0.1/tcp/0",))

    async def start() -> list[Libp2pNode]:
        return [await stack.enter_async_context(Libp2pNode.start(os.urandom(32), options)) for _ in range(3)]

    yield runner.run(start())
    runner.run(stack.aclose())


Scenario = Callable[[Swarm], Coroutine[Any, Any, None]]
Play = Callable[[Scenario], None]


@pytest.fixture(params=["memory", "hivemind"])
def play(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Play:
    """Runs a scenario on a fresh swarm of one kind."""

    def play(scenario: Scenario) -> None:
        async def run() -> None:
            async with asyncio.timeout(20):
                if request.param == "memory":
                    await scenario(InMemory())
                    return
                swarm = OnHivemind(request.getfixturevalue("nodes"))
                try:
                    await scenario(swarm)
                finally:
                    await swarm.close()

        if request.param == "hivemind":
            request.getfixturevalue("nodes")  # starts in the runner, so not from inside it
        runner.run(run())

    return play


def test_a_record_is_read_back(play: Play) -> None:
    async def scenario(swarm: Swarm) -> None:
        store = await swarm.join()
        assert await store.put("run/peers", "ann", b"ann=1", swarm.clock.after(60))
        assert await store.get("run/peers") == {"ann": b"ann=1"}

    play(scenario)


def test_an_absent_key_is_empty(play: Play) -> None:
    async def scenario(swarm: Swarm) -> None:
        store, other = await swarm.join(), await swarm.join()
        assert await store.put("run/peers", "ann", b"ann=1", swarm.clock.after(60))
        assert await store.get("run/peer") == {}
        assert await other.get("") == {}

    play(scenario)


def test_stores_see_each_others_records_under_one_key(play: Play) -> None:
    async def scenario(swarm: Swarm) -> None:
        stores = [await swarm.join() for _ in range(3)]
        for name, store in zip(("ann", "bob", "eve"), stores, strict=True):
            assert await store.put("run/peers", name, name.encode() + b"=hi", swarm.clock.after(60))
        for store in stores:
            assert await store.get("run/peers") == {"ann": b"ann=hi", "bob": b"bob=hi", "eve": b"eve=hi"}

    play(scenario)


def test_the_record_that_expires_later_wins(play: Play) -> None:
    async def scenario(swarm: Swarm) -> None:
        one, two = await swarm.join(), await swarm.join()
        assert await one.put("k", "ann", b"ann=old", swarm.clock.after(60))
        assert await two.put("k", "ann", b"ann=new", swarm.clock.after(61))
        assert await one.get("k") == await two.get("k") == {"ann": b"ann=new"}

    play(scenario)


def test_an_older_record_is_refused_and_does_not_shorten_the_newer_ones_life(play: Play) -> None:
    async def scenario(swarm: Swarm) -> None:
        one, two = await swarm.join(), await swarm.join()
        newer = swarm.clock.after(90)
        assert await one.put("k", "ann", b"ann=new", newer)
        assert not await two.put("k", "ann", b"ann=old", swarm.clock.after(10))
        assert not await one.put("k", "ann", b"ann=same", newer)
        assert await one.get("k") == await two.get("k") == {"ann": b"ann=new"}
        swarm.clock.ahead_s += 30
        assert await one.get("k") == await two.get("k") == {"ann": b"ann=new"}

    play(scenario)


def test_a_record_is_gone_when_it_has_expired(play: Play) -> None:
    async def scenario(swarm: Swarm) -> None:
        one, two = await swarm.join(), await swarm.join()
        assert await one.put("k", "ann", b"ann=1", swarm.clock.after(60))
        assert await one.put("k", "bob", b"bob=1", swarm.clock.after(600))
        swarm.clock.ahead_s += 120
        assert await one.get("k") == await two.get("k") == {"bob": b"bob=1"}
        assert await two.put("k", "ann", b"ann=2", swarm.clock.after(60))
        assert await one.get("k") == {"bob": b"bob=1", "ann": b"ann=2"}

    play(scenario)


@pytest.mark.parametrize(
    ("value", "lifetime_s"),
    [(b"forged", 60), (b"boom", 60), (b"ann=1", -1), (b"ann=1", MAX_LIFETIME_S + 60), (b"ann=1", float("inf")), (b"ann=1", float("nan"))],
)
def test_what_is_invalid_is_refused_on_store(play: Play, value: bytes, lifetime_s: float) -> None:
    async def scenario(swarm: Swarm) -> None:
        one, two = await swarm.join(), await swarm.join()
        assert not await one.put("k", "ann", value, swarm.clock.after(lifetime_s))
        assert await one.get("k") == await two.get("k") == {}

    play(scenario)


def test_the_largest_record_fits_and_one_byte_more_does_not(play: Play) -> None:
    async def scenario(swarm: Swarm) -> None:
        one, two = await swarm.join(), await swarm.join()
        largest = b"ann=".ljust(MAX_VALUE_BYTES, b"x")
        assert not await one.put("k", "ann", largest + b"x", swarm.clock.after(60))
        assert await two.get("k") == {}
        assert await one.put("k", "ann", largest, swarm.clock.after(60))
        assert await two.get("k") == {"ann": largest}

    play(scenario)


@pytest.mark.parametrize(("key", "subkey"), [("", "ann"), ("k", ""), ("k" * 257, "ann"), ("k", "a" * 129)])
def test_names_are_bounded(play: Play, key: str, subkey: str) -> None:
    async def scenario(swarm: Swarm) -> None:
        store = await swarm.join()
        assert not await store.put(key, subkey, subkey.encode() + b"=1", swarm.clock.after(60))
        assert await store.get(key) == {}

    play(scenario)


def test_good_nodes_neither_keep_nor_believe_what_a_bad_node_stores(play: Play) -> None:
    async def scenario(swarm: Swarm) -> None:
        good, bad, third = await swarm.join(), await swarm.join(gullible), await swarm.join()
        assert await bad.put("k", "ann", b"forged", swarm.clock.after(600))
        assert await good.put("k", "bob", b"bob=1", swarm.clock.after(60))
        assert await bad.get("k") == {"ann": b"forged", "bob": b"bob=1"}
        assert await good.get("k") == await third.get("k") == {"bob": b"bob=1"}
        await swarm.leave(bad)
        assert await good.get("k") == {"bob": b"bob=1"}

    play(scenario)


def test_what_a_bad_node_slipped_in_is_dropped_on_get_and_the_rest_stays(play: Play) -> None:
    async def scenario(swarm: Swarm) -> None:
        good, bad = await swarm.join(), await swarm.join()
        assert await good.put("k", "ann", b"ann=1", swarm.clock.after(60))
        swarm.plant(bad, "k", "ann", b"forged but newer", swarm.clock.after(600))
        swarm.plant(bad, "k", "eve", b"eve=".ljust(MAX_VALUE_BYTES + 1, b"x"), swarm.clock.after(60))
        swarm.plant(bad, "k", "bob", b"boom", swarm.clock.after(60))
        swarm.plant(bad, "k", "joe", b"joe=1", swarm.clock.after(60))
        assert await good.get("k") == {"ann": b"ann=1", "joe": b"joe=1"}

    play(scenario)


def test_records_survive_the_leaving_of_the_node_that_stored_them(play: Play) -> None:
    async def scenario(swarm: Swarm) -> None:
        one, two, three = await swarm.join(), await swarm.join(), await swarm.join()
        assert await two.put("k", "ann", b"ann=1", swarm.clock.after(60))
        await swarm.leave(two)
        assert await one.get("k") == await three.get("k") == {"ann": b"ann=1"}
        assert await three.put("k", "bob", b"bob=1", swarm.clock.after(60))
        assert await one.get("k") == {"ann": b"ann=1", "bob": b"bob=1"}

    play(scenario)


def test_a_newcomer_reads_what_was_there_before(play: Play) -> None:
    async def scenario(swarm: Swarm) -> None:
        first = await swarm.join()
        assert await first.put("k", "ann", b"ann=1", swarm.clock.after(60))
        second = await swarm.join()
        assert await second.get("k") == {"ann": b"ann=1"}

    play(scenario)


def test_a_closed_store_is_silent(play: Play) -> None:
    async def scenario(swarm: Swarm) -> None:
        one, two = await swarm.join(), await swarm.join()
        await one.close()
        await one.close()
        assert not await one.put("k", "ann", b"ann=1", swarm.clock.after(60))
        assert await one.get("k") == {}
        assert await two.get("k") == {}

    play(scenario)
