"""How far a replay of H inner steps is from the contribution itself, and what it costs: what `trust.audit_tolerance` has to allow.

    python -m scripts.bench.replays --h 8 32 --json

One member trains by the outer rule, on one thread, micro-batches of 4. Its contributions are computed again as another machine may: with as
many threads and samples at once, with others, and in bf16 as GPUs compute. A run allows what its members' machines differ by, and an
auditor accuses from twice that on. Distances are relative 2-norms, of the contribution, and of the inner state as
`swarm.optim.inner_distance` has it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from peers.training_peer import Contribution, ReplayRequest
from protocols.ids import Epoch, PeerId
from scripts.learning.task import MODEL, OUTER, small_task
from swarm.data.assignment import window_offsets
from swarm.data.dataset import Dataset
from swarm.models.build import build_model
from swarm.optim.outer_rule import OuterRule
from swarm.optim.replay import ReplayParams
from swarm.training.gradients import accumulate_gradients

PEER = PeerId(bytes(32))
SKIPPED_EPOCHS = 2
"""The first ones begin anew, with an optimizer that knows nothing."""


@dataclass(frozen=True, slots=True)
class Machine:
    """How a replay computes.

    Args:
        name: in tables.
        threads: of torch.
        micro_batch_samples: at once.
        bf16: None for what this machine does by itself.
    """

    name: str
    threads: int
    micro_batch_samples: int
    bf16: bool | None = None


MACHINES = (Machine("the same", 1, 4), Machine("2 threads, batches of 8", 2, 8), Machine("bf16", 1, 4, bf16=True))


@dataclass(frozen=True, slots=True)
class _Brought:
    contribution: Contribution
    params: ReplayParams


class _Member:
    def __init__(self, dataset: Dataset, learning_rate: float, seed: int) -> None:
        self._dataset, self._seed = dataset, seed
        self.model = build_model(MODEL, seed)
        inner = torch.optim.AdamW(self.model.parameters(), lr=learning_rate)
        self.rule = OuterRule(self.model, inner, replace(OUTER, inner_batch_samples=8, overlap=False))
        self.rule.record()

    def compute(self, epoch: Epoch, first: int, samples: int, bf16: bool | None = None) -> None:
        offsets = window_offsets(self._seed, epoch, PEER.public_key, range(first, first + samples), self._dataset.positions)
        accumulate_gradients(self.model, self._dataset.sample(offsets), bf16=bf16)

    def epoch(self, number: int, samples: int) -> _Brought:
        """Compute and contribute; the average is its own."""
        epoch = Epoch(number)
        for first in range(0, samples, 4):
            self.compute(epoch, first, 4)
            self.rule.add(4, summed=True)
        params = ReplayParams({name: param.detach().clone() for name, param in self.rule.shared.trained.items()})
        contribution = self.rule.contribution(epoch, bytes(32))
        self.rule.begin_next()
        self.rule.apply(contribution.vector, epoch)
        return _Brought(contribution, params)

    def replay(self, brought: _Brought, machine: Machine) -> tuple[float, float]:
        """Relative distances of the contribution and of the inner state."""
        given, inner = brought.contribution, brought.contribution.inner
        start, end = (inner.start, inner.end) if inner else (None, None)
        about = given.epoch, PEER, given.first_sample, int(given.weight), given.state_hash, machine.bf16, given.traced
        replay = self.rule.replay(ReplayRequest(*about, start=start, end=end), brought.params)

        def compute(wanted: ReplayRequest, done: int) -> int:
            samples = min(machine.micro_batch_samples, wanted.samples - done)
            self.compute(wanted.epoch, wanted.first_sample + done, samples, wanted.bf16)
            return samples

        while not replay.finished:
            with replay.computing():
                if not replay.advance(compute):
                    raise ArithmeticError("a replay came to what is not finite")
        found = replay.result()
        off = float((found.vector - given.vector).norm() / given.vector.norm())
        return off, found.end_distance or 0.0


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All numbers of inner steps on all machines.

    Returns:
        What `--json` prints; of each the largest distance.
    """
    dataset = small_task(target_samples=1, until_samples=1).dataset
    rows: list[dict[str, Any]] = []
    with Progress(console=console, transient=True) as progress:
        for h in options.h:
            task = progress.add_task(f"H = {h}", total=options.epochs * (1 + len(MACHINES)))
            torch.set_num_threads(1)
            member, brought = _Member(dataset, options.lr, options.seed), []
            for number in range(SKIPPED_EPOCHS + options.epochs):
                brought.append(member.epoch(number, 8 * h))
                progress.advance(task)
            for machine in MACHINES:
                torch.set_num_threads(machine.threads)
                other, began_s = _Member(dataset, options.lr, options.seed), time.perf_counter()
                apart = []
                for each in brought[SKIPPED_EPOCHS:]:
                    apart.append(other.replay(each, machine))
                    progress.advance(task)
                took_s = (time.perf_counter() - began_s) / len(apart)
                worst, worst_state = max(off for off, _ in apart), max(off for _, off in apart)
                row = {"h": h, "machine": machine.name, "contribution": round(worst, 6), "inner_state": round(worst_state, 6)}
                rows.append(row | {"replay_s": round(took_s, 3)})
    return {"rows": rows, "epochs": options.epochs, "lr": options.lr, "seed": options.seed}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; see `--help`.

    Returns:
        Process exit code: 0, 2 wrong arguments.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.replays", description="How far replays of H inner steps are off.")
    parser.add_argument("--h", type=int, nargs="+", default=[8, 32], help="inner steps of an epoch")
    parser.add_argument("--epochs", type=int, default=2, help="contributions that are replayed")
    parser.add_argument("--lr", type=float, default=2e-3, help="of AdamW")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    if min(options.h) < 1 or options.epochs < 1 or options.lr <= 0 or options.seed < 0:
        parser.error("--h and --epochs must be at least 1, --lr positive, --seed at least 0.")
    console = Console(stderr=True)
    found = measure(options, console)
    table = Table("H", "computed again by", "contribution is off by", "inner state by", "s")
    for row in found["rows"]:
        table.add_row(str(row["h"]), row["machine"], f"{row['contribution']:.2%}", f"{row['inner_state']:.2%}", f"{row['replay_s']:.2f}")
    console.print(table)
    if options.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
