"""The coin of a round: commit, reveal, combine, so that nobody chooses it (papers.md B.3, "MPRNG"; Blum 1981).

Each member commits to one secret share for each try when it joins, so the plan says whose shares there are, and shows the share of a try
when the round's result stands. A coin counts only with everybody's shares. Whoever keeps one back learns the others' and can spoil that
coin, so the next try goes on without it, with shares that nobody has seen: spoiling chooses little, and costs the spoiler its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from protocols.ids import PeerId
from protocols.trust.statements import COIN_TRIES

_SHARE_DOMAIN = b"swarm.v1.coin-share"
_COMMIT_DOMAIN = b"swarm.v1.coin-commit"
_COIN_DOMAIN = b"swarm.v1.coin"
_ROOT_DOMAIN = b"swarm.v1.coin-root"


@dataclass(frozen=True, slots=True)
class CoinSecret:
    """Our shares of one round's coin.

    Args:
        peer: we.
        seed: 32 random bytes of this try of this round alone.
    """

    peer: PeerId
    seed: bytes

    def share(self, attempt: int) -> bytes:
        """What we show in a try; says nothing of those of other tries."""
        return blake3(_SHARE_DOMAIN + attempt.to_bytes(4, "little"), key=self.seed).digest()

    def commitments(self) -> tuple[bytes, ...]:
        """Hashes of all our shares."""
        return tuple(share_commitment(self.peer, attempt, self.share(attempt)) for attempt in range(COIN_TRIES))

    @property
    def root(self) -> bytes:
        """What our join says of them."""
        return coin_root(self.commitments())


def share_commitment(peer: PeerId, attempt: int, share: bytes) -> bytes:
    """What a member commits to: names member and try, so that no share can be used by somebody else, or in another try."""
    return blake3(_COMMIT_DOMAIN + peer.public_key + attempt.to_bytes(4, "little") + share).digest()


def coin_root(commitments: Sequence[bytes]) -> bytes:
    """32 bytes that name a member's commitments to its shares. They are in its signed join, and so in the plan, before anybody shows one:
    nobody can choose them, or whether to have any, by what others have shown.
    """
    return blake3(_ROOT_DOMAIN + b"".join(commitments)).digest()


def combine(first_plan_digest: bytes, attempt: int, shares: Mapping[PeerId, bytes]) -> bytes:
    """The coin, 32 bytes: a hash of everybody's shares in the order of their keys.

    Args:
        first_plan_digest: the round.
        attempt: the try.
        shares: of 32 bytes, each checked against its commitment.
    """
    body = b"".join(peer.public_key + shares[peer] for peer in sorted(shares))
    return blake3(_COIN_DOMAIN + first_plan_digest + attempt.to_bytes(4, "little") + body).digest()
