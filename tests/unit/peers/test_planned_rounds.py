"""What planning predicts beside what real averagers do on a simulated network: bytes of every member, and the time of a round."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from peers.averaging.trust_rules import TrustRules
from peers.simulation import run_simulated
from peers.transport.simulated import LinkSpec
from protocols.planning import Link, Machine, Members, Prediction, Settings, Workload, predict
from tests.helpers.averaging_swarm import SimulatedSwarm, averaged, rules

BYTES_PER_S = 1e6
RTT_S = 0.04
BYTES_WITHIN = 0.05
TIME_WITHIN = 1.25


@dataclass(frozen=True)
class Case:
    """A swarm of one epoch. Few blocks, so that simulating is quick; vectors large enough for words to be small beside them."""

    peers: int
    codec: str
    max_group: int = 16
    clients: int = 0
    helpers: int = 0
    verify: bool = False
    size_elems: int = 2**18
    block_elems: int = 2**14


async def _measured(case: Case) -> tuple[float, float, float]:
    """Seconds of the epoch, and mean bytes up and down of a member."""
    link = LinkSpec(latency_s=RTT_S / 2, bandwidth_bytes_per_s=BYTES_PER_S)
    trust = TrustRules(auditors=0) if case.verify else None
    averaging = rules(case.codec, case.block_elems, case.max_group, trust, join_timeout_s=30.0, round_timeout_s=300.0)
    clients = range(case.peers - case.clients, case.peers)
    async with SimulatedSwarm(case.peers, link=link, averaging=averaging, clients=clients) as swarm:
        begin_s = asyncio.get_running_loop().time()
        bandwidths = [0 if number in clients else int(BYTES_PER_S) for number in range(case.peers)]
        weights = [0.0 if number < case.helpers else 1.0 for number in range(case.peers)]
        assert len(averaged(await swarm.round(case.size_elems, bandwidths=bandwidths, weights=weights))) == case.peers
        took_s = asyncio.get_running_loop().time() - begin_s
        traffic = [member.transport.traffic for member in swarm.members]
        up_bytes, down_bytes = sum(one.sent_bytes for one in traffic), sum(one.received_bytes for one in traffic)
        return took_s, up_bytes / case.peers, down_bytes / case.peers


def _predicted(case: Case) -> Prediction:
    return predict(
        Members(peers=case.peers, clients=case.clients, helpers=case.helpers),
        Machine(flops_per_s=1.0, processing_s_per_elem=0.0, update_s_per_elem=0.0),  # on virtual time computing takes none
        Link(bytes_per_s=BYTES_PER_S, rtt_s=RTT_S, share=1.0),  # and neither do TCP's headers
        Workload(parameters=case.size_elems, flops_per_sample=1.0, tokens_per_sample=1),
        Settings(codec=case.codec, block_elems=case.block_elems, max_group=case.max_group, verify=case.verify),
    )


@pytest.mark.parametrize(
    "case",
    [
        Case(2, "fp32"),
        Case(4, "fp32"),
        Case(4, "int8", verify=True),
        Case(6, "int4"),
        Case(8, "fp16"),
        Case(8, "fp16", verify=True),
        Case(8, "adaptive-int8", clients=3),
        Case(9, "int8", max_group=3),
        Case(10, "int8", max_group=8),
        Case(12, "int8", max_group=4, clients=3),
        Case(2, "int8", helpers=1),
        Case(6, "int8", helpers=2, clients=1),
        Case(4, "topk64", size_elems=2**21, block_elems=2**16),
        Case(8, "topk128", size_elems=2**21, block_elems=2**16),
        Case(8, "topk32-152", size_elems=2**21, block_elems=2**16),
        Case(10, "topk32-152", max_group=4, size_elems=2**21, block_elems=2**16),
    ],
    ids=str,
)
def test_bytes_and_time_of_an_epoch_are_as_predicted(case: Case) -> None:
    took_s, up_bytes, down_bytes = run_simulated(_measured(case), seed=3)
    found = _predicted(case)
    assert found.up_bytes == pytest.approx(up_bytes, rel=BYTES_WITHIN)
    assert found.down_bytes == pytest.approx(down_bytes, rel=BYTES_WITHIN)
    assert found.averaging_s / TIME_WITHIN < took_s < found.averaging_s * TIME_WITHIN
