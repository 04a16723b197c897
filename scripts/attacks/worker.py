"""A worker process of the table of attacks: takes cells from standard input, one JSON object a line, and answers with rows.

{"op": "open", "scenario": {...}}
{"op": "run", "attack": "alie", "defence": "mean", "seed": 0, "auditors": 1}
-> {"event": "news", "epochs": 5, "row": null}, again and again; the last one of a cell holds its row
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from scripts.attacks.plain_swarm import CleanRuns
from scripts.attacks.runners import runner_named
from scripts.attacks.scenario import Runner, Scenario

_EPOCHS_A_LINE = 5


class _News:
    """Counts epochs and says so now and then."""

    def __init__(self) -> None:
        self._epochs = 0

    def epoch(self) -> None:
        self._epochs += 1
        if self._epochs >= _EPOCHS_A_LINE:
            self.say(None)

    def say(self, row: dict[str, Any] | None) -> None:
        epochs, self._epochs = self._epochs, 0
        print(json.dumps({"event": "news", "epochs": epochs, "row": row}), flush=True)


def main() -> int:
    """Work until standard input ends."""
    torch.set_num_threads(1)  # there is a worker for each core
    clean, runners, news = CleanRuns(Scenario()), dict[str, Runner](), _News()
    for line in sys.stdin:
        order = json.loads(line)
        if order["op"] == "open":
            clean, runners = CleanRuns(Scenario(**order["scenario"])), {}
            continue
        defence = order["defence"]
        if defence not in runners:
            runners[defence] = runner_named(defence, clean)
        row = runners[defence].run(order["attack"], order["seed"], order["auditors"], news.epoch)
        news.say(row.as_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
