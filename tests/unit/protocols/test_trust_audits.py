"""Audits: who looks at whom, how soon liars are found, and what counts as the same contribution."""

from __future__ import annotations

import random
import statistics
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.codecs import CODEC_NAMES, codec_named
from protocols.ids import PeerId
from protocols.layout import Blocks
from protocols.trust.audits import Audit, blocks_in_audit_order, contribution_differs, draw_audits

PEERS = [PeerId(bytes([number]) * 32) for number in range(1, 40)]
TOLERANCE = 0.02


def coin(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in numbers).ljust(32, b"\0")


@settings(derandomize=True)
@given(st.integers(0, 20), st.integers(0, 6), st.integers(0, 33), st.binary(min_size=32, max_size=32), st.randoms())
def test_nobody_is_drawn_twice_and_everybody_draws_alike(
    members: int, newcomers: int, count: int, seed: bytes, shuffle: random.Random
) -> None:
    proven, fresh = PEERS[:members], PEERS[members : members + newcomers]
    audits = draw_audits(seed, proven, fresh, count)
    among = [audit for audit in audits if audit.target not in fresh]
    assert len(among) == min(count, members // 2)
    assert len({peer for audit in among for peer in (audit.auditor, audit.target)}) == 2 * len(among)
    assert {audit.auditor for audit in audits} <= set(proven)
    of_fresh = [audit.target for audit in audits if audit.target in fresh]
    assert sorted(of_fresh) == (sorted(fresh) if members else [])
    assert all(audit.auditor != audit.target for audit in audits)
    shuffle.shuffle(proven)
    shuffle.shuffle(fresh)
    assert draw_audits(seed, proven, fresh, count) == audits


def test_all_pairs_are_drawn_equally_often() -> None:
    drawn = Counter(draw_audits(coin(number), PEERS[:5], (), 1)[0] for number in range(8000))
    assert len(drawn) == 20
    assert all(300 < times < 500 for times in drawn.values())


def test_newcomers_are_spread_over_auditors() -> None:
    audits = draw_audits(coin(1), PEERS[:3], PEERS[10:16], 0)
    assert Counter(Counter(audit.auditor for audit in audits).values()) == {2: 3}
    assert draw_audits(coin(1), (), PEERS[10:16], 3) == ()
    assert draw_audits(coin(1), PEERS[:1], PEERS[10:11], 1) == (Audit(PEERS[0], PEERS[10]),)


def epochs_until_all_are_banned(seed: int, auditors: int) -> int:
    """16 members of whom 7 attack in every epoch; whoever is audited by an honest member is banned (papers.md B.5)."""
    here, attackers, epoch = set(PEERS[:16]), set(PEERS[:7]), 0
    while attackers:
        epoch += 1
        for audit in draw_audits(coin(seed, epoch), here, (), auditors):
            if audit.target in attackers and audit.auditor not in PEERS[:7]:
                attackers.discard(audit.target)
                here.discard(audit.target)
    return epoch


@pytest.mark.parametrize(("auditors", "mean", "p95"), [(1, 37.0, 63), (2, 18.4, 31)])
def test_attackers_are_gone_as_soon_as_was_published(auditors: int, mean: float, p95: int) -> None:
    took = sorted(epochs_until_all_are_banned(seed, auditors) for seed in range(1500))
    assert statistics.mean(took) == pytest.approx(mean, rel=0.04)
    assert took[int(0.95 * len(took))] == pytest.approx(p95, rel=0.08)


# Whether a contribution is what its samples give

D, SPAN = 4096, (1024, 2048)


def gradient(seed: int = 0) -> torch.Tensor:
    return torch.randn(D, generator=torch.Generator().manual_seed(seed))


def differs(theirs_D: torch.Tensor, own_D: torch.Tensor, codec: str = "fp32", tolerance: float = TOLERANCE) -> bool:
    how = codec_named(codec)
    start, stop = SPAN
    theirs_E = how.decode(bytes(how.encode(theirs_D[start:stop])), stop - start)
    return contribution_differs(theirs_E, own_D, SPAN, how, tolerance)


@pytest.mark.parametrize("codec", CODEC_NAMES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_an_honest_contribution_passes_whatever_the_codec(codec: str, scale: float) -> None:
    own_D = scale * gradient()
    for noise in (0.0, 1e-4, 0.01):
        assert not differs(own_D + noise * scale * gradient(1), own_D, codec), noise


@pytest.mark.parametrize("codec", ["fp32", "fp16"])
def test_what_is_clearly_something_else_does_not(codec: str) -> None:
    own_D = gradient()
    for theirs_D in (own_D + 0.05 * gradient(1), 1.05 * own_D, 0.95 * own_D, gradient(1), -own_D, 0.0 * own_D, 1000.0 * own_D):
        assert differs(theirs_D, own_D, codec)
        assert differs(theirs_D, own_D, codec, 2 * TOLERANCE)  # for whoever accuses, too


def test_who_accuses_leaves_a_gap_to_what_others_find_in_order() -> None:
    """Two honest replays a tolerance apart: what is twice as far from one is not in order for the other."""
    own_D, step_D = gradient(), 0.019 * gradient(1)
    elsewhere_D = own_D + step_D
    for times in torch.arange(0.0, 4.0, 0.05).tolist():
        theirs_D = own_D + times * step_D
        if differs(theirs_D, elsewhere_D, tolerance=2 * TOLERANCE):
            assert differs(theirs_D, own_D)


def test_a_block_with_nothing_in_it_may_hold_a_little() -> None:
    own_D = gradient()
    own_D[SPAN[0] : SPAN[1]] = 0.0
    theirs_D = own_D.clone()
    theirs_D[SPAN[0] : SPAN[1]] += 1e-4 * gradient(1)[:1024]
    assert not differs(theirs_D, own_D)
    theirs_D[SPAN[0] : SPAN[1]] += 0.05 * gradient(1)[:1024]
    assert differs(theirs_D, own_D)
    assert not differs(torch.zeros(D), torch.zeros(D))
    assert differs(torch.full((D,), 1e-6), torch.zeros(D))


def test_the_order_of_blocks_is_the_coins() -> None:
    blocks = Blocks(1000, 100)
    orders = {tuple(blocks_in_audit_order(coin(number), blocks)) for number in range(50)}
    assert len(orders) == 50
    assert all(sorted(order) == list(range(10)) for order in orders)
    firsts = Counter(blocks_in_audit_order(coin(number), blocks)[0] for number in range(2000))
    assert all(130 < firsts[block] < 270 for block in range(10))
