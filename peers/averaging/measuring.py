"""What an exchange tells about links: fed while it runs, summed up when it is over."""

from __future__ import annotations

import asyncio

from peers.averaging.context import MemberContext
from peers.bandwidth import Sampler
from protocols.bandwidth import VectorBytes, fills_its_link
from protocols.messages import Plan


class Measuring:
    """One exchange, as the member's `peers.bandwidth.Bandwidth` sees it; does nothing where nobody wants to know.

    Args:
        context: who we are.
        plan: what is exchanged.
        me: our index in it.
    """

    def __init__(self, context: MemberContext, plan: Plan, me: int) -> None:
        self._bandwidth = context.bandwidth
        self._transport = context.transport
        self._rules = context.rules
        self._plan = plan
        self._me = me
        self._full = fills_its_link(plan, me)
        self._sampler: Sampler | None = None
        self._began_s = 0.0
        self._parts_in_s: dict[int, float] = {}

    def begin(self) -> None:
        """The exchange begins."""
        self._began_s = asyncio.get_running_loop().time()
        if self._bandwidth:
            self._sampler = Sampler(self._began_s, self._transport.traffic)

    def moved(self) -> None:
        """Something has been sent or has come."""
        if self._sampler:
            self._sampler.sample(asyncio.get_running_loop().time(), self._transport.traffic)

    def parts_in(self, sender: int) -> None:
        """All parts of a member have come."""
        self._parts_in_s[sender] = asyncio.get_running_loop().time() - self._began_s

    def end(self, returned_bytes: int, *, complete: bool) -> None:
        """The exchange is over.

        Args:
            returned_bytes: encoded length of all blocks of the result that we hold.
            complete: those are all there are.
        """
        if self._bandwidth and self._sampler:
            now = asyncio.get_running_loop().time()
            self._bandwidth.meter.note(self._sampler.rate(now, self._transport.traffic, full=self._full))
            if complete and self._plan.attempt == 0:
                vector_bytes = VectorBytes(self._brought_bytes(returned_bytes), returned_bytes)
                self._bandwidth.round_done(self._plan, self._me, vector_bytes, now - self._began_s, self._parts_in_s)

    def _brought_bytes(self, returned_bytes: int) -> int:
        """Of a contribution, which none of us has whole but its member: as much shorter as its codec's longest encoding is."""
        brought, returned = self._rules.part_codec(self._plan.round_index), self._rules.result_codec
        elems = self._plan.size_elems
        return returned_bytes * brought.max_encoded_bytes(elems) // max(returned.max_encoded_bytes(elems), 1)
