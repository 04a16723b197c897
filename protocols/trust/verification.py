"""What a member makes of a coin and of everybody's checks: which coin it accepts, and which blocks it looks at.

One member leads the verification of a round: it collects shares and gives them to all, then collects checks and gives them to all. It can
leave somebody out, and nothing else; here is what a member accepts of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from protocols.errors import RemoteProtocolError, RemoteRefusal
from protocols.ids import BlockIndex, PeerId
from protocols.messages import HASH_BYTES, Plan, require
from protocols.parts import Part
from protocols.trust.checks import BlockFacts, Figures, doubt_differs, drawn_block, figures_differ, figures_of, suspicious, unverifiable
from protocols.trust.coin import coin_root, combine, share_commitment
from protocols.trust.statements import COIN_TRIES, Check, Commitment


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of one try of a coin, by index into the plan."""

    attempt: int
    shares: Mapping[int, bytes]


def check_share(plan: Plan, member: int, commitment: Commitment, attempt: int, share: bytes, by: PeerId) -> None:
    """Whether a share is what its member committed to.

    Raises:
        RemoteProtocolError: it is not; `by` showed it.
    """
    require(attempt < COIN_TRIES and len(share) == HASH_BYTES, by, "a share of the coin that nobody can have committed to")
    named = share_commitment(plan.members[member].peer, attempt, share)
    require(coin_root(commitment.coin) == plan.members[member].join.coin_root, by, "shares of the coin that its member did not join with")
    require(named == commitment.coin[attempt], by, f"a share of the coin that {plan.members[member].peer.short} has not committed to")


def accepted_coin(plan: Plan, shown: Shares, required: frozenset[int], commitments: Mapping[int, Commitment], leader: PeerId) -> bytes:
    """The coin of a round from the shares that its leader shows.

    Args:
        plan: attempt 0.
        shown: as the leader says.
        required: members whose shares must be in it: all of the plan that are not absent, but for those that the leader has missed aloud in
            an earlier try, and whom we could not find either.
        commitments: of all whose shares are shown.
        leader: who says so.

    Raises:
        RemoteRefusal: somebody is left out whom we know to be there; the leader may have missed it in good faith.
        RemoteProtocolError: a share is false.
    """
    left_out = required - shown.shares.keys()
    if left_out:
        raise RemoteRefusal(leader, "left-out", f"its coin lacks the shares of {len(left_out)} members that are there")
    for member, share in shown.shares.items():
        check_share(plan, member, commitments[member], shown.attempt, share, leader)
    return combine(plan.digest, shown.attempt, {plan.members[i].peer: share for i, share in shown.shares.items()})


_DRAWN_DOUBTS = 3
"""Some honest members doubt a block in any round in which weights differ much: looking at one each time would cost a fifth more traffic."""


@dataclass(frozen=True, slots=True)
class Looked:
    """Which blocks to look at, and why."""

    suspected: tuple[BlockIndex, ...]
    drawn: tuple[BlockIndex, ...]

    @property
    def blocks(self) -> tuple[BlockIndex, ...]:
        """All of them."""
        return tuple(sorted({*self.suspected, *self.drawn}))


def blocks_to_look_at(
    contributors: Mapping[BlockIndex, tuple[int, ...]],
    checks: Mapping[int, Check],
    facts: Mapping[BlockIndex, BlockFacts],
    coin: bytes,
    *,
    vanishing: bool,
) -> Looked:
    """Verifications 2 and 3 of all blocks.

    Args:
        contributors: whose parts are in each block.
        checks: of those who reported, all about this coin.
        facts: of each block whose radius is known.
        coin: of the round.
        vanishing: whether the aggregate's clipped differences cancel; if not, one block is drawn instead. Of blocks that more than a
            third of their contributors doubt one more is drawn, with a lot for each doubt. Of a reducer that has not reported every block
            is looked at: it could make all that it lies about unverifiable.
    """
    open_to_doubt = unverifiable(contributors, frozenset(checks))
    unknown = {*open_to_doubt, *(block for block in contributors if block not in facts)}
    if not vanishing:
        unknown = set(contributors)
    suspected: list[BlockIndex] = []
    doubts: dict[BlockIndex, int] = {}
    for block in sorted(contributors):
        reporting = [i for i in contributors[block] if i in checks]
        doubted = sum(block in checks[i].doubted for i in reporting)
        figures = [Figures(checks[i].projections[block], checks[i].distances[block]) for i in reporting]
        mute = vanishing and block in facts and facts[block].reducer not in (None, *checks)
        if mute or 2 * doubted > len(contributors[block]) or (block not in unknown and suspicious(figures, facts[block])):
            suspected.append(block)
        elif _DRAWN_DOUBTS * doubted > len(contributors[block]):
            doubts[block] = doubted
    lots = sorted(unknown.difference(suspected)), [block for block in sorted(doubts) for _ in range(doubts[block])]
    return Looked(tuple(suspected), tuple(drawn_block(coin, blocks) for blocks in lots if blocks))


def fitting_check(plan: Plan, check: Check, coin: bytes, count: int, sender: PeerId) -> None:
    """Whether a check is about this round, coin and vector.

    Raises:
        RemoteProtocolError: it is not.
    """
    named = (check.first_plan_digest, check.epoch, check.round_index)
    if named != (plan.digest, plan.epoch, plan.round_index):
        raise RemoteProtocolError(sender, "a check of another round")
    require(check.coin == coin, sender, "a check in another coin's direction")
    require(len(check.projections) == count, sender, "a check of a vector of another size")
    require(all(block < count for block in check.doubted), sender, "a check that doubts a block beyond the vector")


def misreports(check: Check, part_E: Part, result_E: torch.Tensor, block: BlockIndex, margin: float = 1.0) -> bool:
    """Verification 1 of a block: whether a contributor's figures, or its doubt, are not those of its part; margin: see `figures_differ`."""
    found = figures_of(part_E, result_E, check.coin, block)
    false_doubt = not check.round_index and doubt_differs(block in check.doubted, found, margin)
    return false_doubt or figures_differ(Figures(check.projections[block], check.distances[block]), found, margin)
