"""Settlement: how members that exchanged blocks make sure that all of them hold the same result.

Two groups never both commit. A plan names how many live members its leader counted, and a commit takes the reports of more than half of
those, so that two of them would share a reporter; and a member reports on one plan only, the one it was answered with. A join that still
stands at a leader whom its member has left may thus get into a plan, but never into a commit.

Each member reports the hashes of the result blocks it holds to the first member in `settlement_order` that is not known to be gone. That
member (the leader; the next in order if it falls silent) decides from the reports alone, with `settle`:

    everybody holds the same whole vector      -> Commit
    a block is missing or differs somewhere    -> a repair Plan: who holds the most common bytes serves them, and a block that nobody holds
                                                  is reduced again among the survivors, as is one that its only holder does not serve
    repairs do not help                        -> Commit if a strict majority of those counted holds one whole vector: a member that keeps
                                                  reporting something else is lying or broken, and fetches the result by itself

A commit is made of blocks that every reporting member, or most of the members, hold, so whichever member decides, it decides the
same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from protocols.bandwidth import most_blocks, reducer_bandwidths
from protocols.ids import Attempt, BlockIndex
from protocols.messages import BlockTask, Commit, Plan, Report
from protocols.partition import assign_blocks

MAX_ATTEMPTS = 4
"""Repairs of one round before it is given up; each loses at least one member, so honest crashes rarely need two."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The round is lost and nobody applies anything.

    Args:
        reason: one sentence.
    """

    reason: str


def settlement_order(plan: Plan) -> tuple[int, ...]:
    """Who decides: the first of these members that is still there. Those that reduce nothing, and may be out of reach, come last."""
    present = [i for i in range(len(plan.members)) if i not in plan.absent]
    return tuple(sorted(present, key=lambda i: plan.members[i].join.bandwidth_bytes_per_s == 0))


def settle(plan: Plan, first_plan_digest: bytes, reports: Mapping[int, Report], weight: float) -> Commit | Plan | GiveUp:
    """Decide what follows from the reports on a plan. Pure: every member that sees these reports decides alike.

    Args:
        plan: the attempt that was just exchanged.
        first_plan_digest: names the round.
        reports: member index -> its report, each of which fits the plan (`report_fits`); members that are not in it are gone.
        weight: accepted weight of the leader's own result, for the commit.

    Returns:
        A commit, a plan with the next attempt number, or the reason to give up.
    """
    if 2 * len(reports) <= plan.electorate:
        return GiveUp(f"only {len(reports)} of {plan.electorate} members are left: no majority")
    num_blocks = -(-plan.size_elems // plan.block_elems)
    held = [_most_common(reports, BlockIndex(block)) for block in range(num_blocks)]
    target = tuple(held)
    if all(held) and all(report.block_hashes == target for report in reports.values()):
        return Commit(first_plan_digest, plan.epoch, target, weight, plan.members[0].join.state_hash, plan.round_index)
    if plan.attempt + 1 > MAX_ATTEMPTS:
        agreeing = sum(report.block_hashes == target for report in reports.values())
        if all(held) and 2 * agreeing > plan.electorate:
            return Commit(first_plan_digest, plan.epoch, target, weight, plan.members[0].join.state_hash, plan.round_index)
        return GiveUp(f"the members still disagree after {MAX_ATTEMPTS} repairs")
    return _repair(plan, reports, held)


def _most_common(reports: Mapping[int, Report], block: BlockIndex) -> bytes:
    """Most common hash of a block among the reports; ties go to the smaller hash; b"" if nobody holds it."""
    votes = Counter(report.block_hashes[block] for report in reports.values() if report.block_hashes[block])
    return min(votes, key=lambda value: (-votes[value], value)) if votes else b""


def _repair(plan: Plan, reports: Mapping[int, Report], held: list[bytes]) -> Plan:
    survivors = sorted(reports)
    tried = {task.block: task.member for task in (*plan.reduce, *plan.fetch)}
    fetch: list[BlockTask] = []
    hashes: list[bytes] = []
    missing: list[BlockIndex] = []
    for number, value in enumerate(held):
        block = BlockIndex(number)
        holders = [i for i in survivors if value and reports[i].block_hashes[block] == value]
        if len(holders) == len(survivors):
            continue
        if plan.attempt > 0:  # in a repair everybody gets the block from one member: it has not served all, so it is not asked again
            holders = [i for i in holders if i != tried.get(block)]
        if holders:
            fetch.append(BlockTask(block, holders[number % len(holders)]))
            hashes.append(value)
        else:
            missing.append(block)
    return replace(
        plan,
        attempt=Attempt(plan.attempt + 1),
        reduce=_reassigned(plan, missing, survivors, {tried[block] for block in missing if block in tried}),
        fetch=tuple(fetch),
        fetch_hashes=tuple(hashes),
        absent=frozenset(range(len(plan.members))) - frozenset(survivors),
    )


def _reassigned(plan: Plan, missing: list[BlockIndex], survivors: list[int], failed: set[int]) -> tuple[BlockTask, ...]:
    """Blocks to reduce again: not by those who were to do it this time, as long as there are others."""
    if not missing:
        return ()
    able = [i for i in survivors if i not in failed] or survivors
    speeds, most = reducer_bandwidths(plan.members), most_blocks(plan.members, len(missing), plan.block_elems)
    try:
        owners = assign_blocks(len(missing), [speeds[i] for i in able], [most[i] for i in able])
    except ValueError:  # nobody who offers to, or too little memory: anybody, or the blocks would be lost
        able = survivors
        owners = assign_blocks(len(missing), [max(speeds[i], 1) for i in able])
    return tuple(BlockTask(block, able[owner]) for block, owner in zip(missing, owners, strict=True))


def report_fits(plan: Plan, report: Report) -> bool:
    """Whether a report speaks of this plan and of every one of its blocks."""
    return report.plan_digest == plan.digest and len(report.block_hashes) == -(-plan.size_elems // plan.block_elems)
