"""Which blocks a member looks at, and which checks it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from protocols.errors import RemoteProtocolError, RemoteRefusal
from protocols.ids import BlockIndex, Epoch, PeerId
from protocols.trust.certifying import CertifiedResult, check_certificate
from protocols.trust.checks import BlockFacts
from protocols.trust.statements import ACCUSATION, CHECK, Check
from protocols.trust.verification import Looked, blocks_to_look_at, fitting_check
from tests.helpers.trust_values import NOTARIES, PEERS, opener, signed_plan

COUNT, BLOCKS = 4, 3
PLAN = signed_plan(range(COUNT), blocks=BLOCKS)
COIN = b"c" * 32
EVERYBODY = {BlockIndex(block): tuple(range(COUNT)) for block in range(BLOCKS)}
FACTS = {block: BlockFacts((1.0,) * COUNT, math.inf, 1.0, 0.0) for block in EVERYBODY}


def check(projections: tuple[float, ...] = (0.0,) * BLOCKS, doubted: tuple[int, ...] = ()) -> Check:
    blocks = tuple(BlockIndex(block) for block in doubted)
    return Check(PLAN.digest, PLAN.epoch, 0, COIN, COUNT, b"r" * 32, 4.0, projections, (1.0,) * BLOCKS, blocks)


def checks(*projections: tuple[float, ...]) -> dict[int, Check]:
    return {member: check(figures) for member, figures in enumerate(projections)}


VANISHING = checks((0.5, 0.1, -1.0), (-0.5, 0.1, 1.0), (0.25, -0.1, 0.5), (-0.25, -0.1, -0.5))


def looked(found: dict[int, Check] = VANISHING, contributors: dict[BlockIndex, tuple[int, ...]] = EVERYBODY, **changes: object) -> Looked:
    facts = changes.pop("facts", FACTS)
    return blocks_to_look_at(contributors, found, facts, COIN, **{"vanishing": True, **changes})  # type: ignore[arg-type]


def test_where_all_sums_vanish_nobody_looks() -> None:
    assert looked() == Looked((), ())
    assert looked().blocks == ()


def test_a_sum_that_does_not_vanish_is_looked_at() -> None:
    assert looked({**VANISHING, 0: check((0.5, 0.2, -1.0))}) == Looked((BlockIndex(1),), ())
    assert looked({**VANISHING, 0: check((0.6, 0.2, -1.0))}).blocks == (0, 1)


def test_one_block_of_those_that_cannot_be_summed_is_drawn() -> None:
    silent = {member: found for member, found in VANISHING.items() if member != 2}
    found = looked(silent)
    assert found.suspected == ()
    assert len(found.drawn) == 1
    only_there = {**EVERYBODY, BlockIndex(0): (0, 1), BlockIndex(2): (0, 1)}
    facts = {block: replace(FACTS[block], weights_G=(1.0,) * len(members)) for block, members in only_there.items()}
    assert looked(silent, only_there, facts=facts) == Looked((), (BlockIndex(1),))
    assert looked({}).drawn == found.drawn


def test_a_block_whose_reducer_said_nothing_of_it_is_drawn() -> None:
    assert looked(facts={block: fact for block, fact in FACTS.items() if block != 1}).drawn == (BlockIndex(1),)


def test_rules_whose_sums_do_not_vanish_have_one_block_drawn() -> None:
    assert len(looked({**VANISHING, 0: check((9.0, 9.0, 9.0))}, vanishing=False).drawn) == 1
    assert looked(vanishing=False).suspected == ()


def test_a_block_that_more_than_half_doubt_is_looked_at() -> None:
    doubting = {member: replace(found, doubted=(BlockIndex(2),)) for member, found in VANISHING.items()}
    assert looked(doubting).suspected == (BlockIndex(2),)
    assert looked({**VANISHING, 0: doubting[0], 1: doubting[1]}).suspected == ()
    assert looked({**VANISHING, 0: doubting[0], 1: doubting[1], 3: doubting[3]}).suspected == (BlockIndex(2),)
    silent = {0: doubting[0], 1: doubting[1]}  # two of four are half, however few report
    assert BlockIndex(2) not in looked(silent).suspected
    assert looked(doubting, vanishing=False).suspected == (BlockIndex(2),)


def test_of_the_blocks_that_more_than_a_third_doubt_one_is_drawn_with_a_lot_for_each_doubt() -> None:
    def doubting(*blocks_of_members: tuple[int, ...]) -> dict[int, Check]:
        return {i: replace(VANISHING[i], doubted=tuple(map(BlockIndex, blocks))) for i, blocks in enumerate(blocks_of_members)}

    assert looked(doubting((), (), (1,), ())) == Looked((), ())
    assert looked(doubting((1,), (), (1,), ())) == Looked((), (BlockIndex(1),))
    assert looked(doubting((0, 1), (0, 1), (0, 1), ())) == Looked((BlockIndex(0), BlockIndex(1)), ())
    found = doubting((1, 2), (1, 2), (0,), ())
    drawn = [blocks_to_look_at(EVERYBODY, found, FACTS, number.to_bytes(4, "little") * 8, vanishing=True).drawn for number in range(900)]
    assert {len(blocks) for blocks in drawn} == {1}
    assert 390 < drawn.count((BlockIndex(1),)) < 510
    assert drawn.count((BlockIndex(0),)) == 0


def test_a_suspected_block_is_not_drawn_besides() -> None:
    doubting = {member: replace(found, doubted=(BlockIndex(2),)) for member, found in VANISHING.items()}
    assert looked(doubting, {BlockIndex(2): EVERYBODY[BlockIndex(2)]}, vanishing=False) == Looked((BlockIndex(2),), ())


@pytest.mark.parametrize(
    "change",
    [
        {"first_plan_digest": b"x" * 32},
        {"epoch": Epoch(PLAN.epoch + 1)},
        {"round_index": 1},
        {"coin": b"d" * 32},
        {"projections": (0.0,) * (BLOCKS + 1), "distances": (0.0,) * (BLOCKS + 1)},
        {"projections": (), "distances": ()},
        {"doubted": (BlockIndex(BLOCKS),)},
    ],
)
def test_a_check_is_of_this_round_coin_and_vector(change: dict[str, object]) -> None:
    fitting_check(PLAN, check(doubted=(BLOCKS - 1,)), COIN, BLOCKS, PEERS[1])
    with pytest.raises(RemoteProtocolError) as caught:
        fitting_check(PLAN, replace(check(), **change), COIN, BLOCKS, PEERS[1])  # type: ignore[arg-type]
    assert caught.value.peer == PEERS[1]


# Certificates

RESULT = CertifiedResult(PLAN.digest, PLAN.epoch, 0, b"r" * 32, 4.0)


def vouched(*signers: int, said: Check | None = None, kind: str = CHECK) -> list[bytes]:
    return [NOTARIES[number].seal(kind, (said or check()).encode()) for number in signers]


def certify(sealed: list[bytes], group: Sequence[int] = range(COUNT), by: PeerId = PEERS[9]) -> None:
    check_certificate(RESULT, sealed, opener, frozenset(PEERS[number] for number in group), by)


def test_more_than_half_certify() -> None:
    certify(vouched(0, 1, 2))
    certify(vouched(0, 1, 2), group=range(6))


@pytest.mark.parametrize(
    ("sealed", "group"),
    [
        (vouched(0, 1), range(COUNT)),
        (vouched(0, 1, 1, 0), range(COUNT)),
        ([], ()),
        (vouched(0, 1, 2), ()),
        (vouched(0, 1, 2), range(7)),
        (vouched(0, 1, 2), (0, 5, 6)),
        (vouched(0, said=replace(check(), electorate=1)), range(COUNT)),
    ],
)
def test_half_one_twice_strangers_or_part_of_a_larger_group_do_not(sealed: list[bytes], group: Sequence[int]) -> None:
    with pytest.raises(RemoteRefusal) as caught:
        certify(sealed, group)
    assert (caught.value.code, caught.value.peer) == ("uncertified", PEERS[9])


@pytest.mark.parametrize(
    "change",
    [
        {"first_plan_digest": b"x" * 32},
        {"epoch": Epoch(PLAN.epoch + 1)},
        {"round_index": 1},
        {"result_hash": b"x" * 32},
        {"weight": 5.0},
        {"electorate": 9},
    ],
)
def test_what_somebody_says_of_another_result_counts_as_nothing_and_spoils_nothing(change: dict[str, object]) -> None:
    other = vouched(3, said=replace(check(), **change))  # type: ignore[arg-type]
    certify([*vouched(0, 1, 2), *other])
    with pytest.raises(RemoteRefusal):
        certify([*vouched(0, 1), *other])


def test_what_is_no_signed_check_counts_as_nothing_and_spoils_nothing() -> None:
    for bad in (*vouched(3, kind=ACCUSATION), b"", vouched(3)[0][:-1], NOTARIES[3].seal(CHECK, b"\xff")):
        certify([*vouched(0, 1, 2), bad])
        with pytest.raises(RemoteRefusal):
            certify([*vouched(0, 1), bad])


def test_all_blocks_of_a_reducer_that_reports_nothing_are_looked_at() -> None:
    facts = {block: replace(fact, reducer=3) for block, fact in FACTS.items()}
    assert looked(VANISHING, facts=facts).suspected == ()
    mute = {member: check for member, check in VANISHING.items() if member != 3}
    assert looked(mute, facts=facts).suspected == tuple(sorted(facts))
