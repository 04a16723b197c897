"""One member of a run as a volunteer has it, but for the model: a worker process of `scripts.bench.grouping` and of `scripts.soak`.

Identity, invite, libp2p daemon, DHT, mutual TLS, `Node` and `PeerHandle` are the real ones, on 127.0.0.1. Only the trainer is made up: it
averages a vector that follows from seed and rank, and the state that it holds follows from the epoch alone, so that no model is needed.

Orders on standard input, events on standard output, one JSON object a line:

    {"op": "open", "rank", "state_dir", "invite", "elems", "seed", "weight", "role", "expected"}
        -> {"event": "ready", "peer": "12D3...", "addresses": [...], "about": {...}}       "invite" null: found the run in "state_dir"
    {"op": "meet", "members": n, "within_s": t}  -> {"event": "met", "members": n}        how many it knows, itself included
    {"op": "load", "epoch": k}                    -> {"event": "loaded"}
    {"op": "average", "epoch": k, "start_at_s": t}
        -> {"event": "averaged", "status", "reason", "finished_at_s", "ready_at_s", "rounds": [...], "rel_error": e}
    {"op": "train", "samples_per_s": r}           -> {"event": "training"}                 from now on it closes epochs by itself
    {"op": "gauge"}                               -> {"event": "gauge", ...}               see `Trainer.gauge`
    {"op": "close"} or end of file                -> {"event": "closed"}, and the worker ends
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from peers.averaging.averager import RoundDone
from peers.bridge import Contribution, PeerHandle, PeerService
from peers.clock import SystemClock
from peers.identity import Identity, state_dir_lock
from peers.node import Node
from protocols.errors import RoundError
from protocols.ids import Epoch
from scripts.bench import data
from scripts.bench.trainer import Trainer, state_at
from scripts.bench.worker import Lines
from swarm.config import PeerConfig
from swarm.environment import prepare_libraries
from swarm.membership import AuthorityEntrance, VolunteerEntrance
from swarm.network import Entrance, NetworkThread
from swarm.runfile import load_run

ONLINE_WITHIN_S = 150.0
"""Many processes import torch at the same time on a few cores."""

LEAVE_WITHIN_S = 4.5
LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Part:
    """What one member is told at the start.

    Args:
        rank: which of the members it is.
        state_dir: its own.
        invite: how it gets in; None: it founds the run that lies in `state_dir`.
        elems: D, length of its vector.
        seed: determines the vector, with the rank.
        weight: samples its vector stands for.
        role: "trainer", "helper" or "client".
        expected: file with the exact mean, written by `scripts.bench.data.write_expected`; None: results are not judged.
    """

    rank: int
    state_dir: Path
    invite: str | None
    elems: int
    seed: int
    weight: float
    role: str
    expected: Path | None

    @classmethod
    def of(cls, order: dict[str, Any]) -> Part:
        """From the order that opens a worker."""
        fields = {name: value for name, value in order.items() if name != "op"}
        expected = Path(fields["expected"]) if fields["expected"] else None
        return cls(**{**fields, "state_dir": Path(fields["state_dir"]), "expected": expected})


class WatchedHandle(PeerHandle):
    """A `PeerHandle` that lets the benchmark ask the network thread what it knows."""

    loop: asyncio.AbstractEventLoop
    node: Node

    def __init__(self) -> None:
        super().__init__()
        self._rounds: deque[dict[str, Any]] = deque(maxlen=64)

    async def serve(self, service: PeerService) -> None:
        """Note who serves us and where."""
        if not isinstance(service, Node):
            raise TypeError("the network thread runs a Node")
        self.node, self.loop = service, asyncio.get_running_loop()
        service.on_round = self._note_round
        await super().serve(service)

    def _note_round(self, done: RoundDone) -> None:
        now_s = time.monotonic()
        self._rounds.append(
            {
                "epoch": done.round_id.epoch,
                "index": done.round_id.index,
                "members": [str(peer) for peer in done.members],
                "included": done.included_us,
                "planned_at_s": now_s - done.exchange_s,
                "done_at_s": now_s,
            }
        )

    def take_rounds(self) -> list[dict[str, Any]]:
        """The rounds that ended well since the last call; call it between epochs."""
        rounds = list(self._rounds)
        self._rounds.clear()
        return rounds

    def on_loop(self, ask: Callable[[], int]) -> int:
        """Call `ask` in the network thread."""

        async def answer() -> int:
            return ask()

        return asyncio.run_coroutine_threadsafe(answer(), self.loop).result(timeout=30)


class Member:
    """One member, open until `close`."""

    def __init__(self, part: Part) -> None:
        torch.set_num_threads(1)
        self._part = part
        self._stack = ExitStack()
        self.handle = WatchedHandle()
        self.trainer = Trainer(self.handle, part.rank, data.vector(part.seed, part.rank, part.elems), part.weight, part.invite is None)
        self._training: threading.Thread | None = None

    def open(self) -> dict[str, Any]:
        """Come up; returns what the others need and what is worth reporting."""
        part = self._part
        prepare_libraries()
        config = PeerConfig(
            probe=False,
            state_dir=part.state_dir,
            listen="127.0.0.1:0",
            announce="127.0.0.1",
            libp2p_listen="/ip4/127.0.0.1/tcp/0",
            device="cpu",
            role=part.role,  # type: ignore[arg-type]  # the model checks it
        )
        self._stack.enter_context(state_dir_lock(config.state_dir))
        identity = Identity.load_or_create(config.state_dir)
        network = NetworkThread(config, identity, self._entrance(config.state_dir), self.handle)
        network.start()
        self._stack.callback(network.leave, LEAVE_WITHIN_S)
        online = network.online.result(ONLINE_WITHIN_S)
        return {
            "peer": str(identity.peer),
            "addresses": list(online.libp2p_addresses),
            "about": {"torch": torch.__version__, "hivemind": version("hivemind"), "grpcio": version("grpcio")},
        }

    def _entrance(self, state_dir: Path) -> Entrance:
        if self._part.invite is not None:
            return VolunteerEntrance(self._part.invite, state_dir, SystemClock())
        signed, authority = load_run(state_dir)
        return AuthorityEntrance(signed, authority, state_dir, SystemClock(), lambda invite: None)

    def meet(self, members: int, timeout_s: float) -> int:
        """Hold the state of epoch 0 and wait until that many members, ourselves included, hold it too and can be dialled."""
        self.trainer.hold(Epoch(0))
        deadline_s = time.monotonic() + timeout_s
        while (known := 1 + self.handle.on_loop(self._dialable)) < members and time.monotonic() < deadline_s:
            time.sleep(LOOK_EVERY_S)
        return known

    def _dialable(self) -> int:
        roster = self.handle.node.roster
        return sum(roster.endpoint(peer) is not None for peer in roster.live(self.trainer.epoch))

    def average(self, epoch: Epoch, start_at_s: float) -> dict[str, Any]:
        """Close one epoch with everybody else; begins at a common moment of the monotonic clock."""
        time.sleep(max(0.0, start_at_s - time.monotonic()))
        ready_at_s = time.monotonic()
        outcome = self.handle.average(Contribution(epoch, self.trainer.vector_D, self._part.weight, state_at(epoch).state_hash))
        finished_at_s = time.monotonic()
        self.trainer.hold(Epoch(epoch + 1))  # whatever came of it: one failure is to count once, not in all epochs that follow
        error = float("inf")
        if outcome.vector is not None and self._part.expected is not None:
            error = data.relative_error(self._part.expected, outcome.vector.numpy(), epoch)
        return {
            "status": outcome.status.value,
            "reason": outcome.reason,
            "ready_at_s": ready_at_s,
            "finished_at_s": finished_at_s,
            "contributors": len(outcome.contributors),
            "rounds": self.handle.take_rounds(),
            "rel_error": error,
        }

    def train(self, samples_per_s: float) -> None:
        """Compute and close epochs from now on."""
        self._training = threading.Thread(target=self.trainer.run, args=(samples_per_s,), name="trainer")
        self._training.start()

    def gauge(self) -> dict[str, Any]:
        """What this process holds at the moment that only it can count."""
        return {**self.trainer.gauge(), "tasks": len(asyncio.all_tasks(self.handle.loop)), "threads": threading.active_count()}

    def close(self) -> None:
        """Leave the swarm and end everything this member has started."""
        self.handle.stop()
        if self._training:
            self._training.join()
        self._stack.close()

    def obey(self, order: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Follow one order; returns the event that answers it."""
        match order["op"]:
            case "meet":
                return "met", {"members": self.meet(int(order["members"]), float(order["within_s"]))}
            case "load":
                self.trainer.load(int(order["epoch"]))
                return "loaded", {}
            case "average":
                return "averaged", self.average(Epoch(int(order["epoch"])), float(order["start_at_s"]))
            case "train":
                self.train(float(order["samples_per_s"]))
                return "training", {}
            case "gauge":
                return "gauge", self.gauge()
            case unknown:
                raise RoundError(f"no such order: {unknown}")


def main() -> int:
    """Follow orders until told to close.

    Returns:
        Process exit code: 0. A failure ends the process with its traceback, which the orchestrator shows.
    """
    lines = Lines()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(name)s %(message)s", datefmt="%H:%M:%S")
    order = lines.receive()
    if order["op"] == "close":
        return 0
    member = Member(Part.of(order))
    try:
        lines.send("ready", **member.open())
        while (order := lines.receive())["op"] != "close":
            event, fields = member.obey(order)
            lines.send(event, **fields)
    finally:
        member.close()
    lines.send("closed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
