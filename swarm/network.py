"""The network thread of a peer: its event loop, and everything that lives on it, in the order in which it comes up.

    libp2p daemon -> membership (invite or authority) -> DHT -> gRPC server, libp2p streams -> node

The trainer's thread waits for the membership, then talks to the node through the `PeerHandle` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
import socket
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import uvloop

from peers.averaging.context import AveragingRules
from peers.averaging.trust_rules import trust_rules
from peers.ban_file import save_proofs
from peers.bridge import PeerHandle
from peers.clock import SystemClock
from peers.conduct import HONEST, Conduct
from peers.identity import Identity
from peers.libp2p_control import split_address
from peers.libp2p_daemon import Libp2pOptions
from peers.libp2p_node import Libp2pNode
from peers.memory import keep_freed_memory
from peers.node import Node
from peers.node_settings import NodeSettings
from peers.store.hivemind_dht import HivemindStore
from peers.training_peer import PeerStopped
from peers.transport.direct import DirectTransport
from peers.transport.fallback import FallbackTransport
from peers.transport.libp2p_streams import Libp2pStreams
from peers.twin import refuse_twin
from protocols.codecs import codec_named
from protocols.errors import NetworkSetupError, StateDirError, UserError
from protocols.ids import PeerId, SwarmTime
from protocols.link_figures import LinkFigures
from protocols.messages import MAX_BANDWIDTH_BYTES_PER_S
from protocols.record_keeping import RecordReader, record_validator
from protocols.records import Presence
from protocols.runspec import SignedRunSpec, target_samples
from protocols.trust.ledger import Ban
from swarm.config import PeerConfig, split_host_port
from swarm.membership import Membership, remember_addresses

log = logging.getLogger(__name__)

KEEP_IN_TOUCH_S = 10.0
GREETED = 4
"""Members greeted each time, drawn at random."""


class Entrance(Protocol):
    """How this peer becomes a member (`swarm.membership`)."""

    async def enter(self, node: Libp2pNode, identity: Identity) -> Membership:
        """Get the run's spec and our credentials, and serve both to others."""

    def now_online(self, addresses: tuple[str, ...]) -> None:
        """Called once others can reach us, with our libp2p addresses."""


@dataclass(frozen=True, slots=True)
class Online:
    """What the network thread tells once others can reach us.

    Args:
        libp2p_addresses: full multiaddresses.
        data_address: "host:port" of our gRPC server; empty if nobody can dial us.
    """

    libp2p_addresses: tuple[str, ...]
    data_address: str


class NetworkThread:
    """Runs the network side of one peer until `handle.stop()`.

    Args:
        config: ours.
        identity: ours.
        entrance: how we get in.
        handle: the trainer's end.
        conduct: how we behave towards others.
    """

    def __init__(self, config: PeerConfig, identity: Identity, entrance: Entrance, handle: PeerHandle, conduct: Conduct = HONEST) -> None:
        self._config = config
        self._identity = identity
        self._entrance = entrance
        self._handle = handle
        self._conduct = conduct
        self.membership: Future[SignedRunSpec] = Future()
        self.online: Future[Online] = Future()
        self.link: Future[LinkFigures] = Future()
        """What was found out about our link, if `PeerConfig.probe`; cancelled when the thread ends before."""
        self.ended: Future[None] = Future()
        self._main: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.RLock()  # re-entrant: a signal handler may ask while its own thread does
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)

    def start(self) -> None:
        """Begin."""
        keep_freed_memory()
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Leave the swarm and end the thread; safe at any moment, from a signal handler too.

        Returns:
            Whether it ended in time.
        """
        self.request_stop()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def leave(self, timeout_s: float) -> None:
        """As `stop`, and say why, if it was the network that failed.

        Raises:
            UserError: what ended the network side.
        """
        if self.stop(timeout_s):
            self.ended.result()

    def request_stop(self) -> None:
        """Begin to leave. Before the node is up that means: cancel."""
        self._handle.stop()
        with self._lock:
            if not self.online.done() and self._loop and self._main:
                self._loop.call_soon_threadsafe(self._main.cancel)

    def _run(self) -> None:
        """Owner of the loop: whatever ends it is handed to whoever waits."""
        error: BaseException = PeerStopped("the peer is stopping")
        try:
            uvloop.run(self._serve())
        except asyncio.CancelledError:
            log.info("stopped while joining")
        except BaseException as failure:  # noqa: BLE001  the thread's last owner
            error = failure
        finally:
            self._handle.stop()
            for waiting in (self.membership, self.online):
                if not waiting.done():
                    waiting.set_exception(error)
            self.link.cancel()
            if isinstance(error, PeerStopped):
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)

    async def _serve(self) -> None:
        with self._lock:
            self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        if self._handle.stopping():
            return
        async with AsyncExitStack() as stack:
            libp2p = await stack.enter_async_context(Libp2pNode.start(self._identity.seed, self._libp2p_options()))
            papers = await self._entrance.enter(libp2p, self._identity)
            self.membership.set_result(papers.signed)
            node, store = await stack.enter_async_context(self._node(libp2p, papers))
            try:
                async with asyncio.TaskGroup() as tasks:
                    watching = tasks.create_task(_watch_daemon(libp2p))
                    remembering = tasks.create_task(self._keep_in_touch(node, store))
                    await node.run(lambda address: self._now_online(libp2p, address))
                    watching.cancel()
                    remembering.cancel()
            except* UserError as errors:
                raise errors.exceptions[0] from errors

    @asynccontextmanager
    async def _node(self, libp2p: Libp2pNode, papers: Membership) -> AsyncIterator[tuple[Node, HivemindStore]]:
        """DHT, data plane and node, from the papers."""
        clock = SystemClock()
        signed, credentials = papers.signed, papers.credentials
        validator = record_validator(signed.run_id, signed.authority_key)
        client = self._config.role == "client"
        store = await HivemindStore.create(libp2p, papers.initial_peers, validator, clock, client_mode=client)
        try:
            host = self._config.announce or own_host(self._config.listen)
            ledger = papers.ledger
            direct = DirectTransport(credentials.tls(clock, ledger.__contains__), self._config.listen, host, self._config.data_port)
            transport = FallbackTransport(direct, Libp2pStreams(libp2p, credentials.proof(clock, ledger.__contains__)))
            reader = RecordReader(signed.run_id, signed.authority_key)
            try:
                await refuse_twin(self._identity.peer, signed.run_id, reader, store, transport, clock)
            except BaseException:
                await transport.close()
                raise
            settings = self._node_settings(libp2p, papers, clock.now())
            on_link = self.link.set_result if self._config.probe else None
            settings = replace(settings, ledger=ledger, conduct=self._conduct, on_link=on_link)
            node = Node(settings, credentials.sealer(self._identity), self._identity, transport, store, self._handle, clock)
            node.on_ban = lambda ban: self._banned(ban, papers)
            yield node, store
        finally:
            await store.close()

    def _banned(self, ban: Ban, papers: Membership) -> None:
        """Close the admission desk too, and keep what proves it for the next start."""
        papers.ban(ban)
        try:
            save_proofs(self._config.state_dir, papers.ledger.bans)
        except StateDirError as error:
            log.warning("bans are not remembered: %s", error)

    def _node_settings(self, libp2p: Libp2pNode, papers: Membership, now: SwarmTime) -> NodeSettings:
        signed, averaging = papers.signed, papers.signed.spec.averaging
        codec, trust = codec_named(averaging.codec), trust_rules(signed.spec.trust, signed.spec.optimizer.target_batch_samples)
        rules = AveragingRules(signed.run_id, averaging.block_elems, codec, averaging.max_group, trust=trust)
        bandwidth = max(1, int(self._config.bandwidth_cap_bytes_per_s or MAX_BANDWIDTH_BYTES_PER_S))
        presence = Presence(
            self._identity.peer,
            "",
            papers.credentials.chain.leaf_pem,
            tuple(libp2p.addresses())[:8],
            self._config.role,
            self._config.device,
            bandwidth,
            now,
            "swarm-peer",
        )
        reduces = 0 if self._config.role == "client" else bandwidth
        targets = partial(target_samples, signed.spec)
        memory_bytes = (self._config.part_memory_mib or 0) * 2**20
        return NodeSettings(signed.run_id, signed.authority_key, rules, targets, presence, reduces, papers.founder, memory_bytes)

    def _libp2p_options(self) -> Libp2pOptions:
        listen, announce = self._config.libp2p_listen, self._config.announce
        port = listen.rpartition("/tcp/")[2]
        public = (f"/{_host_kind(announce)}/{announce}/tcp/{port}",) if announce and port != "0" else ()
        return Libp2pOptions(listen=() if self._config.role == "client" else (listen,), announce=public)

    def _now_online(self, libp2p: Libp2pNode, address: str) -> None:
        online = Online(tuple(libp2p.addresses()), "" if self._config.role == "client" else address)
        self.online.set_result(online)
        self._entrance.now_online(online.libp2p_addresses)

    async def _keep_in_touch(self, node: Node, store: HivemindStore) -> None:
        """Keep members' addresses on disk, so that we find them when the invite's are gone, and greet some in the DHT once in a while.

        The DHT forgets for good whoever was silent once, so a network that was split would not find together again.
        """
        while True:
            await asyncio.sleep(KEEP_IN_TOUCH_S)
            known = {
                peer: tuple(address for address in presence.libp2p_addresses if leads_to(address, peer))
                for peer, presence in node.roster.presences.items()
                if peer != self._identity.peer
            }
            try:
                await asyncio.to_thread(remember_addresses, self._config.state_dir, known)
            except StateDirError as error:
                log.warning("addresses of members are not remembered: %s", error)
            chosen = random.sample(sorted(known), min(GREETED, len(known)))
            await store.join([known[peer][0] for peer in chosen if known[peer]])


def leads_to(address: str, peer: PeerId) -> bool:
    """Whether a member's own word for its libp2p address is one, and names that member; anything else would only waste our dials."""
    try:
        return split_address(address)[0] == peer
    except NetworkSetupError:
        return False


async def _watch_daemon(libp2p: Libp2pNode) -> None:
    await libp2p.wait_for_daemon_exit()
    raise NetworkSetupError("The libp2p daemon of this peer has ended: start the peer again; its state is kept.")


def own_host(listen: str) -> str:
    """The address under which others most likely reach a server that listens there.

    A concrete address is its own answer. For "all interfaces" it is the address that the machine would send from; no packet is sent to
    find that out.
    """
    host, _ = split_host_port(listen)
    if host not in ("0.0.0.0", "::"):
        return host
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # a documentation address (RFC 5737): only the routing table is asked
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def _host_kind(host: str) -> str:
    try:
        return f"ip{ipaddress.ip_address(host).version}"
    except ValueError:
        return "dns4"
