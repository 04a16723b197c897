"""A swarm that learns, on virtual time. Read `LearningSwarm.run`."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from peers.averaging.context import AveragingRules
from peers.averaging.trust_rules import TrustRules
from peers.clock import SIMULATION_START, SimulatedClock
from peers.node import Node
from peers.node_settings import NodeSettings
from peers.testing import PortedTransport
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.codecs import codec_named
from protocols.records import Presence
from scripts.learning.learner import Learner, Pace, SimulatedHandle
from scripts.learning.papers import Papers
from scripts.learning.records import SharedRecords
from swarm.data.dataset import Dataset
from swarm.models.build import build_model
from swarm.optim import CollaborativeOptimizer, GradientSettings, StepOutcome, StepStatus
from swarm.training.evaluation import held_out_loss

_HOME_LINK = LinkSpec(latency_s=0.03, jitter_s=0.01, bandwidth_bytes_per_s=2.5e6)
_BANDWIDTH_BYTES_PER_S = 10_000_000
_LOOK_S = 0.05
_STUCK_AFTER_S = 600.0


@dataclass(frozen=True)
class Learning:
    """What is learnt, and how.

    Args:
        dataset: text.
        model: of the run file, such as {"preset": "tiny"}.
        rule: of the optimizer; must overlap, as nothing may block on virtual time.
        inner_optimizer: makes the optimizer of a model.
        codec: how blocks travel.
        target_samples: that close an epoch.
        until_samples: accepted samples at which the run ends.
        micro_batch_samples: that a member computes at once.
        step_s: virtual seconds that they take.
        max_group: most members of a group.
        link: of every member.
        block_elems: elements of a block.
        seed: of everything random.
        trust: how rounds are verified; None: everybody is believed.
    """

    dataset: Dataset
    model: dict[str, object]
    rule: GradientSettings
    inner_optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer]
    codec: str
    target_samples: int
    until_samples: int
    micro_batch_samples: int = 4
    step_s: float = 0.1
    max_group: int = 16
    link: LinkSpec = _HOME_LINK
    block_elems: int = 2**16
    seed: int = 0
    trust: TrustRules | None = None


@dataclass
class Learnt:
    """What came of it.

    Args:
        curve: (accepted samples, held-out loss), whenever it was measured.
        closed_at_s: virtual time at which each epoch was first closed by anybody.
        left, crashed, joined: members.
        up_bytes, down_bytes: of all members' transports together.
        computed_samples: of all members, those that were lost included.
        epochs: closed.
    """

    curve: list[tuple[int, float]] = field(default_factory=list)
    closed_at_s: dict[int, float] = field(default_factory=dict)
    left: int = 0
    crashed: int = 0
    joined: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    computed_samples: int = 0

    @property
    def epochs(self) -> int:
        """Closed."""
        return len(self.closed_at_s)

    @property
    def loss(self) -> float:
        """The last one."""
        return self.curve[-1][1] if self.curve else math.nan

    @property
    def gaps_s(self) -> list[float]:
        """Times between the ends of epochs, in order."""
        return [later - sooner for sooner, later in itertools.pairwise(sorted(self.closed_at_s.values()))]


class LearningSwarm:
    """Members that come, learn and go.

    Args:
        learning: what all do.
        members: at the beginning, and kept up: whoever goes is replaced at once.
        half_life_epochs: after which half of the members have gone; None: nobody goes. Every other one crashes, the rest say goodbye.
        evaluate_every: epochs between measurements of the held-out loss.
        progress: called with the accepted samples, again and again.
    """

    def __init__(
        self,
        learning: Learning,
        members: int,
        half_life_epochs: float | None = None,
        evaluate_every: int = 0,
        progress: Callable[[int], None] = lambda samples: None,
    ) -> None:
        self._learning = learning
        self._count = members
        self._half_life_epochs = half_life_epochs
        self._evaluate_every = evaluate_every
        self._progress = progress
        self._dice = random.Random(learning.seed)  # the point is that it can be predicted
        self._network = SimulatedNetwork(learning.seed, learning.link)
        self._clock = SimulatedClock()
        self._records = SharedRecords(self._clock)
        self._papers = Papers(f"learning-{learning.seed}")
        self._serial = 0
        self.members: list[Learner] = []
        self.found = Learnt()

    async def run(self) -> Learnt:
        """Until the samples are reached.

        Raises:
            TimeoutError: no epoch was closed for a very long time.
        """
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._count):
                self._join(tasks)
            while self._accepted() < self._learning.until_samples:
                await asyncio.sleep(_LOOK_S)
                self._mind_stalls()
                self._churn(tasks)
            self._measure(max(self.members, key=lambda member: member.optimizer.accepted_samples))
            for member in list(self.members):
                self._end(member)
        return self.found

    def _accepted(self) -> int:
        return max((member.optimizer.accepted_samples for member in self.members), default=0)

    def _mind_stalls(self) -> None:
        last_s = max(self.found.closed_at_s.values(), default=0.0)
        if asyncio.get_running_loop().time() - last_s > _STUCK_AFTER_S:
            raise TimeoutError("no epoch was closed for ten minutes of virtual time")

    # Coming and going

    def _join(self, tasks: asyncio.TaskGroup) -> None:
        learner = self._make(self._serial)
        self._serial += 1
        learner.tasks = [tasks.create_task(self._live(learner)), tasks.create_task(learner.train())]
        self.members.append(learner)
        self.found.joined += 1

    @staticmethod
    async def _live(learner: Learner) -> None:
        await learner.node.run(lambda _address: None)

    def _make(self, number: int) -> Learner:
        learning, papers = self._learning, self._papers
        who, sealer = papers.identity(number), papers.sealer(number)
        rules = AveragingRules(papers.run, learning.block_elems, codec_named(learning.codec), learning.max_group, trust=learning.trust)
        leaf_pem = papers.chain(number).leaf_pem
        presence = Presence(who.peer, "", leaf_pem, (), "trainer", "cpu", _BANDWIDTH_BYTES_PER_S, SIMULATION_START, "simulated")
        settings = NodeSettings(
            papers.run, papers.authority_key, rules, learning.target_samples, presence, _BANDWIDTH_BYTES_PER_S, founder=number < self._count
        )
        handle = SimulatedHandle()
        transport = PortedTransport(SimulatedTransport(self._network, who.peer))
        node = Node(settings, sealer, who, transport, self._records, handle, self._clock)
        model = build_model(learning.model, learning.seed)
        optimizer = CollaborativeOptimizer(
            model,
            learning.inner_optimizer(model),
            peer=handle,
            target_batch_samples=learning.target_samples,
            rule=learning.rule,
            clock=asyncio.get_running_loop().time,
        )
        pace = Pace(learning.micro_batch_samples, learning.step_s, learning.seed)
        learner = Learner(who.peer, node, handle, transport, model, optimizer, learning.dataset, pace, self._note)
        if learning.trust is not None and learning.trust.auditors:
            optimizer.replay_with(learner.replay)
        return learner

    def _churn(self, tasks: asyncio.TaskGroup) -> None:
        """Each moment every member may go; half of them do within the half-life."""
        epoch_s = self._epoch_s()
        if self._half_life_epochs is None or epoch_s is None:
            return
        goes = 1 - 0.5 ** (_LOOK_S / (self._half_life_epochs * epoch_s))
        for member in list(self.members):
            if self._dice.random() < goes and len(self.members) > 1:
                if self._dice.random() < 0.5:
                    self.found.crashed += 1
                    self._end(member, crashes=True)
                else:
                    self.found.left += 1
                    member.handle.stop()
                    self.members.remove(member)
                    self._count_bytes(member)
                self._join(tasks)

    def _epoch_s(self) -> float | None:
        """How long an epoch takes, by the last ten; None before there were a few."""
        times = sorted(self.found.closed_at_s.values())[-10:]
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 3 else None

    def _end(self, member: Learner, *, crashes: bool = False) -> None:
        if crashes:
            self._network.crash(member.peer)
        self._count_bytes(member)
        for task in member.tasks:
            task.cancel()
        self.members.remove(member)

    def _count_bytes(self, member: Learner) -> None:
        traffic = member.transport.traffic
        self.found.up_bytes += traffic.sent_bytes
        self.found.down_bytes += traffic.received_bytes
        self.found.computed_samples += member.computed_samples

    # What is measured

    def _note(self, member: Learner, outcome: StepOutcome) -> None:
        if outcome.status is StepStatus.CAUGHT_UP:
            return
        epoch = outcome.epoch
        if epoch in self.found.closed_at_s:
            return
        self.found.closed_at_s[epoch] = asyncio.get_running_loop().time()
        self._progress(member.optimizer.accepted_samples)
        if self._evaluate_every and epoch % self._evaluate_every == 0:
            self._measure(member)

    def _measure(self, member: Learner) -> None:
        with member.optimizer.shared_parameters():
            loss = held_out_loss(member.model, self._learning.dataset)
        self.found.curve.append((member.optimizer.accepted_samples, loss))
