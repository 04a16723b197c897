"""What a node is told about its run and itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from peers.averaging.context import AveragingRules
from peers.conduct import HONEST, Conduct
from protocols.ids import RunId
from protocols.link_figures import LinkFigures
from protocols.progress import TargetSamples
from protocols.records import Presence
from protocols.trust.ledger import Ledger


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What a node is told about its run and itself.

    Args:
        run, authority_key: which run, and whose word counts in it.
        rules: of averaging.
        target_samples: that close an epoch, or each of them.
        presence: as it will be announced, but for the address, the times, and a bandwidth below its own as long as we measure no more.
        bandwidth_bytes_per_s: what others may count on at most, whatever our link carries; 0: we reduce nothing.
        founder: we may begin alone; others first wait until they have seen somebody, or a slow
            look-up would make them a swarm of their own.
        part_memory_bytes: for others' parts of the blocks that we reduce; 0: no limit.
        ledger: who is banned as far as we know already; shared with whoever guards our doors.
        conduct: how we behave.
        on_link: told once what we have found out about our own link, after we hold a state; None: it is not measured.
    """

    run: RunId
    authority_key: bytes
    rules: AveragingRules
    target_samples: TargetSamples
    presence: Presence
    bandwidth_bytes_per_s: int
    founder: bool
    part_memory_bytes: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    conduct: Conduct = HONEST
    on_link: Callable[[LinkFigures], None] | None = None
