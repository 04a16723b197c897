"""Attacks on what members say: statements, coins, accusations, silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from peers.attacks.ring import Attacker
from protocols.frames import BytesLike
from protocols.ids import BlockIndex, Epoch, PeerId
from protocols.messages import Join, Plan
from protocols.trust.offences import Offence
from protocols.trust.statements import Charge, Commitment

HUGE_EPOCH = Epoch(10**9)


class Equivocate(Attacker):
    """Tells some reducers of one sample more than others."""

    name = "equivocate"

    def commitment(self, commitment: Commitment, to: PeerId) -> Commitment:
        """See `Conduct.commitment`."""
        lies = self.attacks and to in self.ring.victims
        return replace(commitment, samples=commitment.samples + 1) if lies else commitment


class WithholdCoin(Attacker):
    """Shows its share of the coin to nobody."""

    name = "withhold_coin"

    def shows_share(self, to: PeerId) -> bool:
        """See `Conduct.shows_share`."""
        return not self.attacks


class FalseAccuser(Attacker):
    """Accuses an honest member of a false contribution in every epoch."""

    name = "false_accuser"

    def accusations(self, plan: Plan) -> Sequence[Charge]:
        """See `Conduct.accusations`."""
        honest = [member.peer for member in plan.members if member.peer not in self.ring.members]
        if not self.attacks or not honest:
            return ()
        accused = honest[int(self.ring.rng.integers(len(honest)))]
        return (Charge(plan.digest, plan.epoch, accused, Offence.CONTRIBUTION, BlockIndex(0)),)


class SelectiveSilence(Attacker):
    """Sends victims no blocks, does not admit to have got theirs, and shows them no share of the coin until everybody asks."""

    name = "selective_silence"

    def part(self, block: BlockIndex, data: BytesLike, to: PeerId) -> BytesLike | None:
        """See `Conduct.part`."""
        return None if self.attacks and to in self.ring.victims else data

    def takes_part_of(self, sender: PeerId) -> bool:
        """See `Conduct.takes_part_of`."""
        return not (self.attacks and sender in self.ring.victims)


class Replay(Attacker):
    """Commits with its commitment of the epoch before: signed by itself, and stale."""

    name = "replay"

    def __init__(self, *of: object) -> None:
        super().__init__(*of)  # type: ignore[arg-type]
        self._older: Commitment | None = None
        self._newest: Commitment | None = None

    def contribution(self, epoch: Epoch, own_D: torch.Tensor, weight: float) -> tuple[torch.Tensor, float]:
        """See `Conduct.contribution`."""
        self._older = self._newest
        return super().contribution(epoch, own_D, weight)

    def commitment(self, commitment: Commitment, to: PeerId) -> Commitment:
        """See `Conduct.commitment`."""
        self._newest = commitment
        return self._older if self.attacks and self._older else commitment


class Forge(Attacker):
    """Sends statements whose signatures are not right."""

    name = "forge"

    def sealed(self, kind: str, sealed: bytes) -> bytes:
        """See `Conduct.sealed`."""
        return sealed[:-1] + bytes([sealed[-1] ^ 1]) if self.attacks else sealed


class HugeEpoch(Attacker):
    """Signs a join of an epoch that nobody will see."""

    name = "huge_epoch"

    def join(self, join: Join, to: PeerId) -> Join:
        """See `Conduct.join`."""
        return replace(join, epoch=HUGE_EPOCH) if self.attacks else join
