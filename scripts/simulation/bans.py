"""Who is banned in a simulated swarm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from protocols.ids import PeerId
from protocols.trust.ledger import Ledger


@dataclass
class Bans:
    """What became of attackers, and of honest members.

    Args:
        attackers: those that are still members, and what they do.
    """

    attackers: dict[PeerId, str]
    honest_banned: set[PeerId] = field(default_factory=set)
    by_offence: Counter[str] = field(default_factory=Counter)
    last_epoch: int | None = None

    def look(self, epoch: int, honest: Mapping[PeerId, Ledger]) -> tuple[PeerId, ...]:
        """An epoch is over. An attacker is out when all honest members say so; an honest member as soon as one of them does.

        Args:
            epoch: which.
            honest: what honest members that live believe.

        Returns:
            Attackers that are out since this epoch.
        """
        out = [peer for peer in self.attackers if honest and all(peer in ledger for ledger in honest.values())]
        for peer in out:
            del self.attackers[peer]
            self.last_epoch = epoch
            self._count(peer, honest.values(), "")
        framed = {peer for peer in honest for ledger in honest.values() if peer in ledger}
        for peer in sorted(framed - self.honest_banned):
            self._count(peer, honest.values(), "honest: ")
        self.honest_banned |= framed
        return tuple(out)

    def _count(self, peer: PeerId, ledgers: Iterable[Ledger], prefix: str) -> None:
        ban = next(ban for ledger in ledgers if (ban := ledger.of(peer)))
        self.by_offence[prefix + ban.offence.value] += 1

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "attackers_left": len(self.attackers),
            "attacks_left": dict(sorted(Counter(self.attackers.values()).items())),
            "honest_banned": len(self.honest_banned),
            "bans": dict(sorted(self.by_offence.items())),
            "epochs_to_last_ban": self.last_epoch + 1 if self.last_epoch is not None and not self.attackers else None,
        }
