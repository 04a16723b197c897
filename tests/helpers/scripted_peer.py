"""A user's own training loop, and a peer whose swarm follows a script."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import torch

from peers.bridge import Contribution, ReplayRequest, RoundOutcome, RoundStatus, SwarmView
from peers.local import LocalPeer
from peers.state_snapshot import StateSnapshot
from peers.training_peer import Replayed
from protocols.errors import RoundError
from protocols.ids import Epoch, PeerId
from swarm.optim import CollaborativeOptimizer, GradientSettings, StepStatus

ME, OTHER = PeerId(b"m" * 32), PeerId(b"o" * 32)
OptimizerMaker = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
Answer = Callable[[Contribution], RoundOutcome]

MAKERS: dict[str, OptimizerMaker] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}


@dataclass
class ScriptedPeer:
    """A peer whose swarm follows a script."""

    answers: deque[Answer] = field(default_factory=deque)
    shown: SwarmView = field(default_factory=SwarmView)
    state: StateSnapshot | RoundError | None = None
    closing: bool = False
    wanted: bool = False
    stopped: bool = False
    slow: bool = False
    running: Future[RoundOutcome] | None = None
    reports: list[tuple[int, str]] = field(default_factory=list)
    announced: list[tuple[int, bytes, int]] = field(default_factory=list)
    published: list[StateSnapshot] = field(default_factory=list)
    contributions: list[Contribution] = field(default_factory=list)
    replays: deque[ReplayRequest] = field(default_factory=deque)
    replayed: list[tuple[ReplayRequest, torch.Tensor | None]] = field(default_factory=list)
    ended: list[Replayed | None] = field(default_factory=list)

    def report(self, samples: int, samples_per_s: float, loss: float | None, phase: str) -> None:
        self.reports.append((samples, phase))

    def view(self) -> SwarmView:
        return self.shown

    def epoch_closing(self) -> bool:
        return self.closing

    def wait_for_call(self, timeout_s: float) -> bool:
        return self.closing

    def pause(self, duration_s: float) -> None:
        return

    def average(self, contribution: Contribution) -> RoundOutcome:
        self.closing = False
        self.contributions.append(contribution)
        return self.answers.popleft()(contribution)

    def start_averaging(self, contribution: Contribution) -> Future[RoundOutcome]:
        """Answered at once, or by `end_round` if rounds are `slow`."""
        answer: Future[RoundOutcome] = Future()
        if self.slow:
            self.closing = False
            self.contributions.append(contribution)
            self.running = answer
        else:
            answer.set_result(self.average(contribution))
        return answer

    def end_round(self) -> None:
        """The round that was started ends."""
        assert self.running is not None
        running, self.running = self.running, None
        running.set_result(self.answers.popleft()(self.contributions[-1]))

    def announce_epoch(self, epoch: Epoch, state_hash: bytes, accepted_samples: int) -> None:
        self.announced.append((epoch, state_hash, accepted_samples))
        self.shown = replace(self.shown, behind=False)

    def snapshot_wanted(self) -> bool:
        return self.wanted

    def publish_snapshot(self, snapshot: StateSnapshot) -> None:
        self.wanted = False
        self.published.append(snapshot)

    def fetch_state(self) -> StateSnapshot:
        if isinstance(self.state, RoundError):
            raise self.state
        assert self.state is not None
        return self.state

    def replay_wanted(self) -> ReplayRequest | None:
        return self.replays[0] if self.replays else None

    def publish_replay(self, request: ReplayRequest, replayed: Replayed | None) -> None:
        assert request == self.replays.popleft()
        self.replayed.append((request, None if replayed is None else replayed.vector))
        self.ended.append(replayed)

    def stopping(self) -> bool:
        return self.stopped


def applied(vector: torch.Tensor | None = None, weight: float = 8.0) -> Answer:
    return lambda mine: RoundOutcome(RoundStatus.APPLIED, mine.epoch, mine.vector if vector is None else vector, weight, (ME, OTHER))


def aborted(mine: Contribution) -> RoundOutcome:
    return RoundOutcome(RoundStatus.ABORTED, mine.epoch, reason="the leader vanished")


def behind(mine: Contribution) -> RoundOutcome:
    return RoundOutcome(RoundStatus.BEHIND, mine.epoch, reason="the swarm is in epoch 9")


CLIPPED = GradientSettings(grad_clip_norm=1.0)


class Loop:
    """A user's own training loop."""

    def __init__(self, peer: ScriptedPeer | LocalPeer, optimizer: str = "adamw", seed: int = 0, width: int = 6) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 2))
        self.inner = MAKERS[optimizer](list(self.model.parameters()))
        self.peer = peer
        self.now_s = 0.0
        self.opt = CollaborativeOptimizer(self.model, self.inner, peer=peer, target_batch_samples=8, rule=CLIPPED, clock=lambda: self.now_s)

    def batch(self, number: int, scale: float = 1.0) -> StepStatus:
        """Compute micro-batch `number` (4 samples) and step."""
        generator = torch.Generator().manual_seed(number)
        inputs, targets = torch.randn(4, 4, generator=generator), torch.randn(4, 2, generator=generator)
        torch.nn.functional.mse_loss(self.model(inputs * scale), targets).backward()  # type: ignore[no-untyped-call]
        return self.opt.step(samples=4).status

    def params(self) -> torch.Tensor:
        return torch.cat([param.detach().flatten() for param in self.model.parameters()]).clone()


def alone(optimizer: str = "adamw", seed: int = 0) -> Loop:
    return Loop(LocalPeer(ME, 8), optimizer, seed)


def trained(epochs: int, optimizer: str = "adamw") -> Loop:
    loop = alone(optimizer)
    for number in range(2 * epochs):
        loop.batch(number)
    assert loop.opt.epoch == epochs
    return loop
