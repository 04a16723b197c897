"""A `RecordStore` on hivemind's DHT, run inside our own loop on our own libp2p node.

What hivemind gives: Kademlia routing, replication to the nearest nodes, merging of dictionaries. What is ours: every message passes
`DhtGuard` on its way in, the node keeps its records on a bounded `Shelf`, all of hivemind's caches are off (they serve stale records),
and a node's place in the DHT follows from its peer id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import base58
from hivemind.dht.crypto import DHTRecord, RecordValidatorBase
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError
from hivemind.proto import dht_pb2
from hivemind.utils.timed_storage import MAX_DHT_TIME_DISCREPANCY_SECONDS, ValueWithExpiration

from peers.interfaces import Clock, RecordValidator
from peers.libp2p_control import split_address
from peers.libp2p_daemon import MAX_CONTROL_MESSAGE_BYTES
from peers.libp2p_node import Libp2pNode, fail_pending_calls
from peers.store.dht_guard import BadMessage, DhtGuard
from peers.store.dht_wire import WireRecord, decode_subkey, encode_blob, encode_value, key_id, node_id
from peers.store.gate import RecordGate
from peers.store.shelf import Shelf
from protocols.errors import NetworkSetupError, RemoteError
from protocols.ids import PeerId, SwarmTime

log = logging.getLogger(__name__)

MAX_SKEW_S = float(MAX_DHT_TIME_DISCREPANCY_SECONDS)
"""How far our clock may be from the others'."""

_RPC_TIMEOUT_S = 3.0
_PUT_TIMEOUT_S = 10.0
_GET_TIMEOUT_S = 10.0
_DIAL_TIMEOUT_S = 5.0
_GRACE_S = 0.5  # once one initial peer has answered, the others get this long
_CLOSE_TIMEOUT_S = 2.0
_BEAM = 8
"""Nodes asked in a look-up. A record lies on the five nearest; hivemind would ask twenty, of which fifteen have nothing to say."""

_MAX_HANDLING = 256
_MAX_SKEWS = 64
_MAX_REPLY_BYTES = MAX_CONTROL_MESSAGE_BYTES - 2**16


@dataclass(slots=True)
class _Put:
    """One `put` under way, and whether any node has accepted it: hivemind reports only what the last node said."""

    key: bytes
    value: bytes
    accepted: bool = False


_current_put: ContextVar[_Put | None] = ContextVar("_current_put", default=None)  # hivemind's tasks inherit it from ours


class _Validator(RecordValidatorBase):  # type: ignore[misc]  # hivemind has no types
    """The gate once more, at the place where hivemind itself asks: nothing gets past it on a path that the guard does not see."""

    def __init__(self, gate: RecordGate) -> None:
        self._gate = gate

    def validate(self, record: DHTRecord) -> bool:
        try:
            subkey = decode_subkey(record.subkey)
        except ValueError:
            return False
        return self._gate.admit(record.key, WireRecord(subkey, record.value, record.expiration_time)) is None


class _ShelfStorage:
    """A `Shelf` with the methods of hivemind's storage that its node calls.

    hivemind's own storage is unbounded, and forgets a record early when an older version of it is stored later.
    """

    def __init__(self, shelf: Shelf, clock: Clock) -> None:
        self._shelf = shelf
        self._clock = clock

    def store(self, key: Any, value: bytes, expiration_time: float, subkey: str | None = None) -> bool:
        accepted = isinstance(subkey, str) and self.store_subkey(key, subkey, value, expiration_time)
        if accepted and (put := _current_put.get()):
            put.accepted = True
        return accepted

    def store_subkey(self, key: Any, subkey: str, value: bytes, expiration_time: float) -> bool:
        return self._shelf.put(key.to_bytes(), subkey, value, SwarmTime(expiration_time), self._clock.now())

    def get(self, key: Any) -> Any:
        return self._as_dictionary(key.to_bytes())

    def items(self) -> Iterator[tuple[Any, Any]]:
        for key in self._shelf.key_ids():
            found = self._as_dictionary(key)
            if found is not None:
                yield DHTID.from_bytes(key), found

    def _as_dictionary(self, key: bytes) -> Any:
        kept = self._shelf.get(key, self._clock.now())
        if not kept:
            return None
        copy = DictionaryDHTValue()
        with copy.freeze():
            for subkey, record in kept.items():
                copy.store(subkey, record.value, record.expires_at)
        return ValueWithExpiration(copy, copy.latest_expiration_time)


class _GuardedP2P:
    """What hivemind's DHT takes for its P2P: passes everything on, through the guard."""

    def __init__(self, node: Libp2pNode, guard: DhtGuard, clock: Clock) -> None:
        self._p2p = node.p2p
        self._guard = guard
        self._clock = clock
        self._handling = 0
        self.peer_id = node.p2p.peer_id
        self.skew_s: dict[PeerID, float] = {}

    async def add_protobuf_handler(self, name: str, handler: Any, input_type: Any, **options: Any) -> None:
        async def guarded(request: Any, context: Any) -> Any:
            if self._handling >= _MAX_HANDLING:
                raise BadMessage("too many requests at once")
            self._handling += 1
            try:
                return await self._handle(handler, request, context)
            finally:
                self._handling -= 1

        await self._p2p.add_protobuf_handler(name, guarded, input_type, **options)

    async def remove_protobuf_handler(self, name: str, **options: Any) -> None:
        await self._p2p.remove_protobuf_handler(name, **options)

    async def call_protobuf_handler(self, peer_id: PeerID, name: str, request: Any, output_type: Any) -> Any:
        started = self._clock.now()
        response = await self._p2p.call_protobuf_handler(peer_id, name, request, output_type)
        sender = peer_id.to_bytes()
        self._guard.clean_sender(response.peer, sender)
        if isinstance(response, dht_pb2.FindResponse):
            self._guard.clean_found(response, request.keys, sender)
        elif isinstance(response, dht_pb2.StoreResponse):
            put = _current_put.get()
            if put and any(response.store_ok) and list(request.keys) == [put.key] and list(request.values) == [put.value]:
                put.accepted = True
        elif isinstance(response, dht_pb2.PingResponse) and response.dht_time:
            self._note_skew(peer_id, (started + self._clock.now()) / 2 - response.dht_time)
        return response

    async def _handle(self, handler: Any, request: Any, context: Any) -> Any:
        sender = context.remote_id.to_bytes()
        self._guard.clean_sender(request.peer, sender)
        if isinstance(request, dht_pb2.FindRequest):
            self._guard.check_find(request)
        if not isinstance(request, dht_pb2.StoreRequest):
            response = await handler(request, context)
            if response.ByteSize() > _MAX_REPLY_BYTES:
                raise BadMessage("the answer is too large, ask for fewer keys")
            return response
        clean, origin = self._guard.clean_store(request, sender)
        response = await handler(clean, context)
        stored = [False] * len(request.keys)
        for index, ok in zip(origin, response.store_ok, strict=True):
            stored[index] |= ok
        del response.store_ok[:]
        response.store_ok.extend(stored)
        return response

    def _note_skew(self, peer_id: PeerID, skew_s: float) -> None:
        self.skew_s[peer_id] = skew_s
        if len(self.skew_s) > _MAX_SKEWS:
            del self.skew_s[next(iter(self.skew_s))]


_HIVEMIND_FAILURES = (AssertionError, ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError, P2PDaemonError)
"""What its traversal of answers from strangers has been seen, or can be expected, to raise; losing one record must not end a peer."""


class HivemindStore:
    """See `RecordStore`. Made by `create`; close it before its node."""

    def __init__(self, node: Libp2pNode, validator: RecordValidator, clock: Clock) -> None:
        self._node = node
        self._clock = clock
        self._gate = RecordGate(validator, clock)
        self._p2p = _GuardedP2P(node, DhtGuard(node.p2p.peer_id.to_bytes(), self._gate.admit), clock)
        self._dht: Any = None
        self.shelf = Shelf()
        """What this node keeps for the swarm, as it is stored; tests play a bad node by writing here."""

    @classmethod
    async def create(
        cls, node: Libp2pNode, initial_peers: Sequence[str], validator: RecordValidator, clock: Clock, *, client_mode: bool = False
    ) -> HivemindStore:
        """Take part in the DHT.

        Args:
            node: a running node.
            initial_peers: full multiaddresses of members; none starts a DHT of our own. Our own address among them is passed over.
            validator: what this node keeps and believes.
            clock: judges expiry.
            client_mode: keep nothing for others and stay out of their routing tables; for peers that nobody can dial.

        Raises:
            NetworkSetupError: none of `initial_peers` answers, one is not an address, or our clock is off.
        """
        others = [address for address in initial_peers if split_address(address)[0] != node.peer]
        self = cls(node, validator, clock)
        self._dht = await DHTNode.create(
            p2p=self._p2p,
            node_id=DHTID.from_bytes(node_id(node.p2p.peer_id.to_bytes())),
            record_validator=_Validator(self._gate),
            client_mode=client_mode,
            wait_timeout=_RPC_TIMEOUT_S,
            blacklist_time=0.0,  # one slow answer must not hide a member for longer than its records live
            reuse_get_requests=False,
            cache_locally=False,
            cache_nearest=0,
            cache_on_store=False,
            cache_refresh_before_expiry=0,
        )
        self._dht.protocol.storage = _ShelfStorage(self.shelf, clock)
        try:
            if others and not await self.join(others):
                raise NetworkSetupError(
                    f"None of the {len(others)} given addresses answers: check that a member is online and that this machine can reach it."
                )
            self._check_clock()
        except BaseException:
            await self.close()
            raise
        return self

    @property
    def skew_s(self) -> float:
        """How far our clock is ahead of the others' (median of those we pinged), in seconds; 0 when we know nobody."""
        return statistics.median(self._p2p.skew_s.values()) if self._p2p.skew_s else 0.0

    async def join(self, addresses: Sequence[str]) -> int:
        """Make ourselves known to peers, at the start or again after the network was split.

        Returns:
            How many answered; once one has, the others are given half a second.

        Raises:
            NetworkSetupError: one is not an address.
        """
        for address in addresses:
            split_address(address)
        if self._dht is None:
            return 0
        answered: list[PeerId] = []
        first = asyncio.Event()

        async def reach(address: str) -> None:
            try:
                peer = await self._node.connect(address, timeout_s=_DIAL_TIMEOUT_S)
            except RemoteError as error:
                log.info("a given address does not answer address=%s reason=%s", address, error)
                return
            if await self._dht.protocol.call_ping(PeerID(base58.b58decode(str(peer)))) is not None:
                answered.append(peer)
                first.set()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(reach(address)) for address in addresses]
            waiting = group.create_task(first.wait())
            while not first.is_set() and not all(task.done() for task in tasks):
                await asyncio.wait([waiting, *(task for task in tasks if not task.done())], return_when=asyncio.FIRST_COMPLETED)
            if pending := [task for task in tasks if not task.done()]:
                await asyncio.wait(pending, timeout=_GRACE_S)
            for task in (*tasks, waiting):
                task.cancel()
        if answered:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RPC_TIMEOUT_S):
                    await self._dht.find_nearest_nodes([self._dht.node_id])
        return len(answered)

    async def put(self, key: str, subkey: str, value: bytes, expires_at: SwarmTime) -> bool:
        """See `RecordStore.put`."""
        if self._dht is None:
            return False
        blob = encode_blob(key, value)
        reason = self._gate.open(key_id(key), subkey, blob, expires_at)[1]
        if reason:
            log.warning("our own record is refused key=%s subkey=%s reason=%s", key, subkey, reason)
            return False
        put = _Put(key_id(key), encode_value(blob))
        token = _current_put.set(put)
        try:
            async with asyncio.timeout(_PUT_TIMEOUT_S):
                await self._dht.store(key, blob, float(expires_at), subkey=subkey, beam_size=_BEAM)
        except TimeoutError:
            log.warning("storing a record took too long key=%s subkey=%s", key, subkey)
        except _HIVEMIND_FAILURES:
            log.exception("hivemind could not store a record key=%s subkey=%s", key, subkey)
        finally:
            _current_put.reset(token)
        return put.accepted

    async def get(self, key: str) -> Mapping[str, bytes]:
        """See `RecordStore.get`."""
        if self._dht is None:
            return {}
        try:
            async with asyncio.timeout(_GET_TIMEOUT_S):
                found = await self._dht.get(key, latest=True, beam_size=_BEAM)
        except TimeoutError:
            log.warning("reading a key took too long key=%s", key)
            return {}
        except _HIVEMIND_FAILURES:
            log.exception("hivemind could not read a key key=%s", key)
            return {}
        records: dict[str, bytes] = {}
        for subkey, (blob, expires_at) in (found.value if found else {}).items():
            value, reason = self._gate.open(key_id(key), subkey, blob, expires_at)
            if reason is None:
                records[subkey] = value
        return records

    async def close(self) -> None:
        """See `RecordStore.close`. Requests under way end at once."""
        dht, self._dht = self._dht, None
        if dht is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await dht.shutdown()
        fail_pending_calls(self._node.p2p, "the record store is closing")
        await asyncio.sleep(0)

    def _check_clock(self) -> None:
        if abs(self.skew_s) > MAX_SKEW_S:
            direction = "ahead of" if self.skew_s > 0 else "behind"
            raise NetworkSetupError(
                f"This machine's clock is {abs(self.skew_s):.0f} s {direction} the swarm's: set it right and try again."
            )
