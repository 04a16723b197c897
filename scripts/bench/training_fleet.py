"""One system of the training benchmark from its first process to its last: start, train so many seconds, end, then measure the losses."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protocols.runspec import DataSection
from scripts.bench import processes
from scripts.bench.fleet import Worker
from scripts.bench.netns import Host
from scripts.bench.training_member import Task
from scripts.bench.training_plans import Common, Plan, member_settings
from scripts.bench.training_report import Point, Trained
from swarm.data.dataset import load_dataset
from swarm.models.build import build_model
from swarm.training.evaluation import held_out_loss

OPEN_TIMEOUT_S = 120.0
FINISH_TIMEOUT_S = 120.0
CLOSE_TIMEOUT_S = 8.0
HELD_OUT_WINDOWS = 64


class Judge:
    """Measures the held-out loss of parameters that were written down; the same windows for all systems.

    Args:
        common: which model, on which data.
    """

    def __init__(self, common: Common) -> None:
        self._model = build_model(common.model, common.seed)
        self._dataset = load_dataset(DataSection(sequence_length=common.sequence_length), Path.cwd())
        self.parameters = sum(parameter.numel() for parameter in self._model.parameters())

    def curve(self, snapshots: Path, began_s: float, seconds: float) -> list[Point]:
        """The loss over time.

        Args:
            snapshots: folder of what `Recorder` wrote.
            began_s: monotonic time at which all had begun to compute.
            seconds: later ones do not count.
        """
        points = []
        for file in sorted(snapshots.glob("*.npy"), key=lambda file: float(file.stem)):
            at_s = max(float(file.stem) - began_s, 0.0)
            if at_s <= seconds + 1.0:  # who was told to stop may just be finishing a step
                points.append((min(at_s, seconds), self._loss(torch.from_numpy(np.load(file)))))
        return points

    @torch.no_grad()
    def _loss(self, flat_D: torch.Tensor) -> float:
        begin = 0
        for parameter in self._model.parameters():
            parameter.copy_(flat_D[begin : begin + parameter.numel()].view_as(parameter))
            begin += parameter.numel()
        return held_out_loss(self._model, self._dataset, windows=HELD_OUT_WINDOWS)


@dataclass(slots=True)
class TrainingFleet:
    """All members of one system.

    Args:
        plan: which system.
        common: what all are given alike.
        hosts: one a member.
        directory: scratch, of this system alone.
        finish_timeout_s: how long a member may take to end what it is in the middle of.
        package: workers are `scripts.bench.<package>_<module of the plan>`.
    """

    plan: Plan
    common: Common
    hosts: tuple[Host, ...]
    directory: Path
    finish_timeout_s: float = FINISH_TIMEOUT_S
    package: str = "training"
    _workers: list[Worker] = field(default_factory=list)

    def run(self, seconds: float, judge: Judge) -> Trained:
        """Everything in order; every process has ended when it returns.

        Raises:
            BenchmarkError: a member failed.
        """
        try:
            opened_s = time.monotonic()
            about = self._open()
            start_s = time.monotonic() - opened_s
            for worker in self._workers:
                worker.send("go")
            began_s = max(worker.expect("begun", OPEN_TIMEOUT_S)["at_s"] for worker in self._workers)
            cpu_before_s = processes.cpu_s(self._sessions)
            time.sleep(max(0.0, began_s + seconds - time.monotonic()))
            cpu_s = processes.cpu_s(self._sessions) - cpu_before_s
            for worker in self._workers:
                worker.send("stop")
            finished = [worker.expect("finished", self.finish_timeout_s) for worker in self._workers]
        finally:
            self.close()
        curve = judge.curve(self.directory / "snapshots", began_s, seconds)
        shutil.rmtree(self.directory / "snapshots")
        return Trained(
            self.plan.name,
            self.plan.group,
            curve,
            samples=sum(reply["samples"] for reply in finished),
            sent_bytes=[reply["sent_bytes"] for reply in finished],
            received_bytes=[reply["received_bytes"] for reply in finished],
            start_s=start_s,
            cpu_s=cpu_s,
            about=about,
            notes=finished[0]["notes"],
        )

    def _open(self) -> dict[str, Any]:
        (self.directory / "snapshots").mkdir(parents=True)
        bootstrap: dict[str, Any] | None = None
        for rank, host in enumerate(self.hosts):
            # gloo picks an interface by the host's name otherwise, which need not resolve.
            prefix = [*host.prefix, "env", "GLOO_SOCKET_IFNAME=eth0"]
            worker = Worker(f"scripts.bench.{self.package}_{self.plan.module}", rank, self.directory / f"{rank}.log", prefix)
            self._workers.append(worker)
            worker.send("open", **self._task(rank, host, bootstrap))
            if rank == 0:
                bootstrap = worker.expect("bootstrap", OPEN_TIMEOUT_S)["value"]
        abouts = [worker.expect("ready", OPEN_TIMEOUT_S)["about"] for worker in self._workers]
        about: dict[str, Any] = abouts[0]
        return about

    def _task(self, rank: int, host: Host, bootstrap: dict[str, Any] | None) -> dict[str, Any]:
        common = self.common
        task = Task(
            rank=rank,
            peers=common.peers,
            address=host.address,
            seed=common.seed,
            model=dict(common.model),
            sequence_length=common.sequence_length,
            micro_batch_samples=common.micro_batch_samples,
            settings=member_settings(self.plan, common),
            directory=self.directory,
            bootstrap=bootstrap,
        )
        return {**asdict(task), "directory": str(self.directory)}

    @property
    def _sessions(self) -> set[int]:
        return {worker.session for worker in self._workers}

    def close(self) -> None:
        """End every process, by process id, whatever state it is in, and remove the socket files they leave."""
        sessions = self._sessions
        started = processes.descendants(sessions) - sessions
        sockets = processes.socket_files(sessions)
        for worker in self._workers:
            worker.hang_up()
        processes.end(sessions, grace_s=CLOSE_TIMEOUT_S)
        for worker in self._workers:
            worker.reap()
        processes.await_end(started, timeout_s=CLOSE_TIMEOUT_S)
        for file in sockets:
            file.unlink(missing_ok=True)
        self._workers.clear()
