"""From a plan to an agreed result: exchange blocks, settle, and again for what is missing, until everybody who is left holds the same."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import torch

from peers.averaging.context import Blame, MemberContext
from peers.averaging.evidence import Evidence
from peers.averaging.exchange import Exchange, drop_minorities
from peers.averaging.fetching import fetch_blocks
from peers.averaging.patience import Patience
from peers.averaging.result import RoundResult
from peers.averaging.rounds import Rounds
from peers.averaging.settling import Settling
from peers.averaging.verdicts import Verdict
from protocols.bandwidth import generous_s
from protocols.butterfly import accepted_weight
from protocols.errors import RoundError
from protocols.messages import BlockTask, Commit, Plan
from protocols.settlement import GiveUp

log = logging.getLogger(__name__)


async def average_by_plan(
    context: MemberContext, rounds: Rounds, plan: Plan, own_D: torch.Tensor, blame: Blame, evidence: Evidence | None = None
) -> tuple[Plan, RoundResult, Commit]:
    """Average as planned. The result is served to others from now on, until `rounds` forgets it.

    Args:
        context: who we are.
        rounds: where others find what we take part in.
        plan: attempt 0.
        own_D: our contribution, fp32; not changed and not kept.
        blame: called with a member that broke the protocol, and how.
        evidence: of the round, if it is verified.

    Returns:
        The last attempt's plan, what we hold, and what was agreed; its weight is as we count it.

    Raises:
        RoundError: no agreement.
    """
    first_digest = plan.digest
    digests: tuple[bytes, ...] = (first_digest,)
    result = rounds.results[first_digest] = RoundResult(context.blocks_of(own_D.numel()), context.rules.result_codec, context.memory)
    codecs = context.rules.part_codec(plan.round_index), context.rules.result_codec
    most_s = generous_s(plan, max(codec.max_encoded_bytes(plan.size_elems) for codec in codecs))
    patience = Patience(rounds.exchange_deadline, context.rules.stall_timeout_s, most_s)
    try:
        while True:
            verdict = await _Attempt(context, rounds, plan, first_digest, blame, evidence).run(own_D, result, patience)
            match verdict:
                case Commit():
                    rounds.exchanged(digests)
                    if tuple(result.hashes) != verdict.block_hashes:
                        raise RoundError("the group committed to blocks that we do not hold")
                    return plan, result, replace(verdict, weight=accepted_weight(plan, result.masks))  # the leader's is a claim
                case GiveUp(reason):
                    raise RoundError(reason)
                case Plan():
                    plan, digests = verdict, (*digests, verdict.digest)
                    log.info("epoch %d: attempt %d repairs %d blocks", plan.epoch, plan.attempt, len(plan.reduce) + len(plan.fetch))
    except BaseException:
        rounds.results.pop(first_digest, None)
        for digest in digests:
            if exchange := rounds.exchanges.peek(digest):
                exchange.forget()  # it stays, to tell whoever asks that we have left
        raise


class _Attempt:
    """One exchange and its settlement."""

    def __init__(
        self, context: MemberContext, rounds: Rounds, plan: Plan, first_digest: bytes, blame: Blame, evidence: Evidence | None
    ) -> None:
        self._context = context
        self._rounds = rounds
        self._plan = plan
        self._first_digest = first_digest
        self._blame = blame
        self._evidence = evidence
        if evidence:
            evidence.note_attempt(plan)

    async def run(self, own_D: torch.Tensor, result: RoundResult, patience: Patience) -> Verdict:
        """In touch with whoever decides from the beginning."""
        started_s = asyncio.get_running_loop().time()
        deadline = self._rounds.exchange_deadline
        exchange = Exchange(self._context, self._plan, own_D, result, patience.cut_s, self._blame, self._evidence)
        settling = Settling(self._context, self._plan, self._first_digest, self._blame)
        self._rounds.settlings.put(self._plan.digest, settling)
        self._rounds.exchanges.put(self._plan.digest, exchange)
        try:
            async with asyncio.TaskGroup() as group:
                settled = group.create_task(settling.run())
                ended = await self._fetch(result)
                await exchange.run()
                took_s = asyncio.get_running_loop().time() - started_s
                patience.exchanged(took_s)
                deadline.observe(took_s)
                settling.report(result, ended | exchange.ended, patience.usual_s, patience.longest_s)
        except BaseException:
            exchange.abandon()
            settling.abandon()
            raise
        return settled.result()

    async def _fetch(self, result: RoundResult) -> set[int]:
        """In a repair: get blocks that another member already holds; returns holders that have ended."""
        wanted: dict[int, list[tuple[BlockTask, bytes]]] = {}
        for task, value in zip(self._plan.fetch, self._plan.fetch_hashes, strict=True):
            if result.hashes[task.block] != value:
                wanted.setdefault(task.member, []).append((task, value))
        ended = set()
        for holder, items in wanted.items():
            blocks = {task.block: value for task, value in items}
            if not await fetch_blocks(self._context, self._plan.members[holder].peer, self._first_digest, blocks, result):
                ended.add(holder)
            if self._evidence:
                drop_minorities(self._plan, result, blocks)
        return ended
