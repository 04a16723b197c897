"""A peer's connection to its run, for whoever trains: our own trainer or a user's loop.

::

    with connect(invite, PeerConfig(state_dir=...)) as peer:
        optimizer = CollaborativeOptimizer(
            model, torch_optimizer, peer=peer.handle, target_batch_samples=partial(target_samples, peer.spec)
        )
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from peers.bridge import PeerHandle
from peers.clock import SystemClock
from peers.conduct import HONEST, Conduct
from peers.identity import Identity, state_dir_lock
from peers.training_peer import PeerStopped
from protocols.ids import PeerId
from protocols.issuing import Issuer
from protocols.runspec import RunSpec, SignedRunSpec
from swarm.config import PeerConfig
from swarm.environment import prepare_libraries
from swarm.membership import AuthorityEntrance, VolunteerEntrance
from swarm.network import Entrance, NetworkThread, Online

LEAVE_WITHIN_S = 4.5
"""How long leaving the swarm may take."""

T = TypeVar("T")

MakeConduct = Callable[[PeerId], Conduct]
"""How a member with that identity behaves."""


def _honest(_me: PeerId) -> Conduct:
    return HONEST


@dataclass(frozen=True)
class Connection:
    """One peer, connected or about to be.

    Args:
        config: its own settings.
        identity: who it is.
        handle: what a trainer (`CollaborativeOptimizer`) needs; use it in one thread.
        network: the other thread.
    """

    config: PeerConfig
    identity: Identity
    handle: PeerHandle
    network: NetworkThread

    @property
    def peer(self) -> PeerId:
        """Who we are."""
        return self.identity.peer

    @property
    def signed_spec(self) -> SignedRunSpec:
        """The run; waits until we are let in.

        Raises:
            UserError: we are not let in, or nobody can be reached.
            PeerStopped: the peer is stopping.
        """
        return self._wait_for(self.network.membership)

    @property
    def spec(self) -> RunSpec:
        """What all members share; waits as `signed_spec`."""
        return self.signed_spec.spec

    @property
    def online(self) -> Online:
        """Our addresses; waits until others can reach us, raises as `signed_spec`."""
        return self._wait_for(self.network.online)

    def check(self) -> None:
        """Notice early that the network side has failed, before doing something that takes long; instant.

        Raises:
            PeerStopped: the peer is stopping; the context then says why.
        """
        if self.handle.stopping():
            raise PeerStopped("the peer is stopping")

    def _wait_for(self, future: Future[T]) -> T:
        """Wait in small steps, because a signal handler only runs between them."""
        while True:
            try:
                return future.result(timeout=0.2)
            except TimeoutError:
                if not future.done():
                    self.check()


@contextmanager
def open_connection(config: PeerConfig, make_entrance: Callable[[], Entrance], make_conduct: MakeConduct = _honest) -> Iterator[Connection]:
    """Lock the state directory, load or make the identity, and start the network thread; leave the swarm at the end.

    Args:
        config: ours.
        make_entrance: how we become a member; called once we hold the lock.
        make_conduct: how we behave towards others; called with who we are.

    Raises:
        UserError: whatever the person at this machine can mend, also from the network thread while it ran.
    """
    with state_dir_lock(config.state_dir):
        identity = Identity.load_or_create(config.state_dir)
        handle = PeerHandle()
        network = NetworkThread(config, identity, make_entrance(), handle, make_conduct(identity.peer))
        try:
            network.start()
            yield Connection(config, identity, handle, network)
        except PeerStopped:
            network.leave(LEAVE_WITHIN_S)
            raise
        except BaseException:
            network.stop(LEAVE_WITHIN_S)
            raise
        network.leave(LEAVE_WITHIN_S)


@contextmanager
def connect(invite: str, config: PeerConfig, make_conduct: MakeConduct = _honest) -> Iterator[Connection]:
    """Join a run by an invite and stay connected while the context is open; see the module's example.

    Args:
        invite: the link.
        config: ours.
        make_conduct: how we behave towards others: honestly, but in demonstrations and tests.

    Raises:
        UserError: whatever the person at this machine can mend.
    """
    prepare_libraries()
    clock = SystemClock()
    with open_connection(config, lambda: VolunteerEntrance(invite, config.state_dir, clock), make_conduct) as connection:
        yield connection


@contextmanager
def found(config: PeerConfig, signed: SignedRunSpec, authority: Issuer, invite_sink: Callable[[str], None]) -> Iterator[Connection]:
    """Found a run, or go on with it, as the holder of its authority key.

    Args:
        config: ours.
        signed, authority: of the run; see `swarm.runfile.open_run`.
        invite_sink: called once with an invite, from the network thread, when others can join.

    Raises:
        UserError: whatever the person at this machine can mend.
    """
    clock = SystemClock()
    with open_connection(config, lambda: AuthorityEntrance(signed, authority, config.state_dir, clock, invite_sink)) as connection:
        yield connection
