"""Newcomers that fetch the state of a simulated swarm in which some donors serve poison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from peers.attacks.donors import Poison, PoisonDonor
from peers.state_server import StateServer
from peers.state_snapshot import StateSnapshot
from peers.state_transfer import fetch_state
from protocols.errors import LocalProtocolError, RemoteError, RemoteProtocolError
from protocols.ids import Epoch, PeerId, SwarmTime
from protocols.progress import estimate
from protocols.records import Progress
from scripts.attacks.simulated_members import SimulatedMembers

PIECE_BYTES = 256
"""Small, so that even of a small state everybody is asked for some pieces."""


class Newcomers:
    """What members serve to newcomers, and what became of these.

    Args:
        members: all.
        attackers: those that serve poison once they attack; the kind changes from epoch to epoch and from one to the next.

    Attributes:
        servers: of all members.
        dropped: times that each member was named as a liar.
        served: newcomers that ended with the honest members' bytes.
        misled: newcomers that ended with others.
    """

    def __init__(self, members: Sequence[PeerId], attackers: Sequence[PeerId]) -> None:
        self._attackers = tuple(attackers)
        self.servers: dict[PeerId, StateServer] = {
            peer: PoisonDonor(_has_published) if peer in self._attackers else StateServer(_has_published) for peer in members
        }
        self._state: StateSnapshot | None = None
        self.dropped: Counter[PeerId] = Counter()
        self.served = self.misled = 0

    def publish(self, epoch: int, params_D: torch.Tensor, *, poisoned: bool) -> None:
        """All members hold this state now.

        Args:
            epoch: updates applied to it.
            params_D: the state.
            poisoned: whether attackers attack.
        """
        self._state = StateSnapshot.of([("params", params_D)], epoch=epoch, accepted_samples=epoch, meta={}, piece_bytes=PIECE_BYTES)
        kinds = tuple(Poison)
        for number, peer in enumerate(self._attackers):
            donor = self.servers[peer]
            if isinstance(donor, PoisonDonor):
                donor.poison = kinds[(number + epoch) % len(kinds)] if poisoned else None
        for server in self.servers.values():
            server.announce(self._state.state_hash)
            server.publish(self._state)

    async def visit(self, swarm: SimulatedMembers, epoch: int) -> None:
        """Somebody new arrives, and fetches the state as a node does: by the majority's hash, from all who say that they hold it.

        Raises:
            RoundError: it got none.
        """
        transport = swarm.newcomer(epoch)
        try:
            said = {peer: _progress(peer, held) for peer, server in self.servers.items() if (held := server.newest)}
            view = estimate(swarm.newcomer_id(epoch), _progress(swarm.newcomer_id(epoch), None), said, SwarmTime(0.0), 1)
            donors = [swarm.endpoints[peer] for peer in view.donors]
            found = await fetch_state(transport, donors, view.state_hash, on_drop=self._drop)
        finally:
            await transport.close()
        right = self._state is not None and found.manifest == self._state.manifest and bytes(found.data) == bytes(self._state.data)
        self.served += right
        self.misled += not right

    def reasons(self) -> dict[str, int]:
        """For `Row.reasons`."""
        liars = sum(times for peer, times in self.dropped.items() if peer in self._attackers)
        found = {"donors dropped": liars, "honest: donors dropped": self.dropped.total() - liars, "newcomers served": self.served}
        return {reason: times for reason, times in found.items() if times}

    def check(self) -> None:
        """Nobody may have taken over poison.

        Raises:
            LocalProtocolError: somebody has.
        """
        if self.misled:
            raise LocalProtocolError(f"{self.misled} of {self.misled + self.served} newcomers ended with another state than honest members")

    def _drop(self, error: RemoteError) -> None:
        if isinstance(error, RemoteProtocolError) and error.peer is not None:
            self.dropped[error.peer] += 1


def _has_published() -> None:
    """The state is published before anybody asks for it."""


def _progress(peer: PeerId, held: StateSnapshot | None) -> Progress:
    epoch, state_hash = (Epoch(held.epoch), held.state_hash) if held else (Epoch(0), b"")
    return Progress(peer, epoch, 0, 0.0, 0, state_hash, "training" if held else "syncing", None, 0, 0, SwarmTime(0.0))
