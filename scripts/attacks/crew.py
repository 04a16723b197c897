"""Cells of the table spread over worker processes, one for each core."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.attacks.scenario import Row, Scenario
from scripts.bench import processes
from scripts.bench.fleet import Worker

_LOOK_EVERY_S = 0.05
_CLOSE_GRACE_S = 0.5


@dataclass(frozen=True, slots=True)
class Cell:
    """One run to do; see `Runner.run`."""

    attack: str
    defence: str
    seed: int
    auditors: int


def run_cells(cells: Sequence[Cell], scenario: Scenario, workers: int, directory: Path, progress: Callable[[int], None]) -> list[Row]:
    """Run all cells. However this ends, no worker is left.

    Args:
        cells: what to run.
        scenario: what they have in common.
        workers: processes, at least 1.
        directory: for what workers say on standard error.
        progress: called with the epochs that some cell has got further.

    Returns:
        A row for each cell, in their order.

    Raises:
        BenchmarkError: a worker failed; says with what.
    """
    waiting = deque(enumerate(cells))
    rows: dict[int, Row] = {}
    busy: dict[Worker, int] = {}
    started: list[Worker] = []
    try:
        for rank in range(min(workers, len(cells))):
            worker = Worker("scripts.attacks.worker", rank, directory / f"{rank}.log", [])
            started.append(worker)
            worker.send("open", scenario=asdict(scenario))
            _next(worker, waiting, busy)
        while busy:
            for worker in [worker for worker in busy if worker.has_news()]:
                news = worker.expect("news", timeout_s=0.0)
                progress(news["epochs"])
                if news["row"]:
                    rows[busy.pop(worker)] = Row(**news["row"])
                    _next(worker, waiting, busy)
            time.sleep(_LOOK_EVERY_S)
    finally:
        for worker in started:
            worker.hang_up()
        processes.end({worker.session for worker in started}, grace_s=_CLOSE_GRACE_S)
        for worker in started:
            worker.reap()
    return [rows[index] for index in range(len(cells))]


def _next(worker: Worker, waiting: deque[tuple[int, Cell]], busy: dict[Worker, int]) -> None:
    """Give a worker something to do, if there is anything."""
    if waiting:
        index, cell = waiting.popleft()
        busy[worker] = index
        worker.send("run", **asdict(cell))
