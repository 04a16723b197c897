"""Honest epochs: all codecs and aggregators get their share, and nobody is found guilty; whoever is would be counted."""

from __future__ import annotations

import json

import pytest
import torch

from peers.simulation import run_simulated
from peers.training_peer import Replayed
from protocols.aggregation import AGGREGATOR_NAMES
from protocols.codecs import CODEC_NAMES
from scripts.bench import honest
from scripts.bench.honest_swarm import Case, HonestSwarm


def test_every_codec_meets_every_aggregator_and_all_epochs_are_lived() -> None:
    found = honest.cases(1000, seed=1)
    assert {(case.codec, case.aggregator) for case in found} == {(codec, rule) for codec in CODEC_NAMES for rule in AGGREGATOR_NAMES}
    assert sum(case.epochs for case in found) == 1000
    assert {case.members for case in found} >= {1, 2, 6, 16}
    assert {case.members > case.max_group for case in found} == {True, False}


def test_a_few_epochs_find_nobody_guilty(capsys: pytest.CaptureFixture[str]) -> None:
    assert honest.main(["--epochs", "6", "--seed", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["epochs"], found["bans"], found["judgements"], found["accusations_upheld"], found["stuck"]) == (6, 0, 0, 0, 0)
    assert found["verified_rounds"] > 0
    assert sum(found["codecs"].values()) == sum(found["aggregators"].values()) == 6


def test_replays_that_give_something_else_are_counted() -> None:
    class Elsewhere(HonestSwarm):
        async def _replay(self, replay: object) -> Replayed | None:
            return Replayed(torch.ones(self._elems))

    case = Case("fp32", "centered_clip", 6, 16, 1, 3, seed=5)
    found = run_simulated(Elsewhere(case, lambda: None).run(), seed=5, limit_s=1e6)
    assert found.bans > 0
    assert found.accusations_upheld > 0
    assert found.offences["contribution"] == found.accusations_upheld
    assert json.loads(json.dumps(found.summary()))["offences"]["contribution"] > 0
