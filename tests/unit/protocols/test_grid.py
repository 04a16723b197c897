"""Placement on the grid: groups that fit, meet once, hold a dialable member, and end with the exact mean."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.grid import Grid, Placement, epoch_coin, grid_for, place
from protocols.ids import Epoch, PeerId, RunId

COIN = bytes(range(32))
NOBODY: frozenset[PeerId] = frozenset()


def make_peers(count: int, kind: bytes = b"") -> list[PeerId]:
    return [PeerId(blake3(kind + number.to_bytes(4, "little")).digest()) for number in range(count)]


PEERS = make_peers(1024)
CLIENTS = make_peers(200, b"client")


def placed(dialable: int, max_group: int, undialable: int = 0, coin: bytes = COIN) -> Placement:
    return Placement(coin, frozenset(PEERS[:dialable]), frozenset(CLIENTS[:undialable]), max_group)


def everybody(dialable: int, undialable: int = 0) -> list[PeerId]:
    return PEERS[:dialable] + CLIENTS[:undialable]


def groups_of(placement: Placement, peers: Iterable[PeerId], round_index: int) -> list[tuple[PeerId, ...]]:
    groups: list[tuple[PeerId, ...]] = []
    seen: set[PeerId] = set()
    for peer in peers:
        if peer not in seen:
            groups.append(placement.group(peer, round_index))
            seen.update(groups[-1])
    return groups


def averaged(placement: Placement, values: dict[PeerId, float]) -> dict[PeerId, float]:
    """An epoch: each round's result is a mean weighted by what went into each distinct input, however many hold it."""
    holds = {peer: (value, 1.0, index) for index, (peer, value) in enumerate(values.items())}
    for round_index in range(placement.rounds):
        for number, group in enumerate(groups_of(placement, values, round_index)):
            inputs = {holds[peer] for peer in group}
            weight = sum(part for _, part, _ in inputs)
            mean = sum(value * part for value, part, _ in inputs) / weight
            holds.update((peer, (mean, weight, number)) for peer in group)
    return {peer: mean for peer, (mean, _, _) in holds.items()}


def check_groups(placement: Placement, peers: list[PeerId], largest: int) -> None:
    for round_index in range(placement.rounds):
        groups = groups_of(placement, peers, round_index)
        assert sum(map(len, groups)) == len(peers) == len({peer for group in groups for peer in group})  # each in exactly one
        assert max(map(len, groups)) <= largest


@pytest.mark.parametrize("max_group", [4, 8, 16])
def test_every_number_of_members_gets_the_exact_mean(max_group: int) -> None:
    random_values = random.Random(max_group)
    for count in range(1, 301):
        placement = placed(count, max_group)
        values = {peer: random_values.gauss(0.0, 1.0) for peer in PEERS[:count]}
        mean = sum(values.values()) / count
        assert placement.exact
        check_groups(placement, PEERS[:count], max_group)
        assert all(abs(value - mean) < 1e-12 for value in averaged(placement, values).values()), count


def test_pairs_are_exact_for_powers_of_two_and_near_it_otherwise() -> None:
    for count in range(1, 301):
        placement = placed(count, 2)
        assert placement.rounds == max(1, (count - 1).bit_length())
        assert placement.exact == (count.bit_count() == 1)
        check_groups(placement, PEERS[:count], 2)


@pytest.mark.parametrize(
    ("count", "max_group", "sides"),
    [
        (1, 16, (1,)),
        (16, 16, (16,)),
        (17, 16, (2, 2)),
        (100, 16, (7, 7)),
        (240, 16, (15, 15)),
        (241, 16, (4, 4, 4)),  # 16 x 16 would leave cells empty
        (256, 16, (16, 16)),
        (1024, 32, (32, 32)),
        (512, 8, (8, 8, 8)),
        (512, 32, (16, 16)),
    ],
)
def test_grid_follows_the_number_of_members(count: int, max_group: int, sides: tuple[int, ...]) -> None:
    assert grid_for(count, 0, max_group) == Grid(sides)


def test_a_full_grid_needs_no_more_rounds_than_its_dimension() -> None:
    for max_group, count, rounds in [(32, 1024, 2), (8, 512, 3), (4, 64, 3), (2, 64, 6), (16, 256, 2)]:
        placement = placed(count, max_group)
        assert (placement.rounds, placement.exact) == (rounds, True)


@settings(max_examples=60, deadline=None)
@given(dialable=st.integers(1, 120), undialable=st.integers(0, 120), max_group=st.integers(2, 20), coin=st.binary(min_size=32, max_size=32))
def test_groups_are_a_partition_in_which_somebody_can_be_dialled(dialable: int, undialable: int, max_group: int, coin: bytes) -> None:
    placement = placed(dialable, max_group, undialable, coin)
    peers = everybody(dialable, undialable)
    fits = placement.grid.room(max_group) >= len(peers) or (placement.rounds == 1 and len(peers) <= max_group)
    check_groups(placement, peers, max_group if fits else placement.grid.largest_group(len(peers)))
    reachable = frozenset(PEERS[:dialable])
    for peer in peers:
        for round_index in range(placement.rounds):
            group = placement.group(peer, round_index)
            assert peer in group
            assert placement.group(group[-1], round_index) == group
            assert group[0] in reachable
            assert [member in reachable for member in group] == sorted((member in reachable for member in group), reverse=True)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 150), max_group=st.integers(2, 16))
def test_two_members_meet_once_unless_they_share_a_cell(count: int, max_group: int) -> None:
    placement = placed(count, max_group)
    met: Counter[tuple[PeerId, PeerId]] = Counter()
    for peer in PEERS[:count]:
        for round_index in range(placement.rounds):
            met.update((peer, other) for other in placement.group(peer, round_index) if other != peer)
    assert all(times == (placement.rounds if placement.cell(a) == placement.cell(b) else 1) for (a, b), times in met.items())


def test_lines_and_cells_are_loaded_evenly_where_everybody_has_a_cell() -> None:
    placement = placed(1000, 16)
    held = Counter(placement.cell(peer) for peer in PEERS[:1000])
    assert set(held.values()) == {1, 2}
    sizes = {len(placement.group(peer, axis)) for peer in PEERS[:1000] for axis in range(3)}
    assert min(sizes) >= 12


def test_client_only_members_still_get_the_exact_mean() -> None:
    placement = placed(60, 16, undialable=40)
    assert placement.exact
    values = {peer: float(number) for number, peer in enumerate(everybody(60, 40))}
    assert averaged(placement, values) == pytest.approx(dict.fromkeys(values, 49.5))


def test_too_few_dialable_members_share_the_excess_evenly() -> None:
    placement = placed(4, 8, undialable=46)  # four groups of 8 a round are all that four dialable members can be in
    sizes = {len(placement.group(peer, axis)) for peer in everybody(4, 46) for axis in range(placement.rounds)}
    assert placement.sides == (4, 4)
    assert sizes == {12, 13}


@pytest.mark.parametrize(("dialable", "undialable", "sides"), [(30, 70, (7, 7)), (25, 200, (15, 15)), (2, 30, (2, 2))])
def test_clients_fill_the_cells_where_dialable_members_are_few(dialable: int, undialable: int, sides: tuple[int, ...]) -> None:
    placement = placed(dialable, 16, undialable)
    assert (placement.sides, placement.exact) == (sides, True)
    check_groups(placement, everybody(dialable, undialable), 16)


def test_nobody_that_can_be_dialled_makes_one_group() -> None:
    placement = placed(0, 4, undialable=9)
    assert placement.rounds == 1
    assert set(placement.group(CLIENTS[0], 0)) == set(CLIENTS[:9])


def test_equal_views_give_equal_placements_whatever_their_order() -> None:
    shuffled = PEERS[:100]
    random.Random(1).shuffle(shuffled)
    one, other = placed(100, 16), Placement(COIN, frozenset(shuffled), NOBODY, 16)
    assert all(one.group(peer, axis) == other.group(peer, axis) for peer in PEERS[:100] for axis in range(one.rounds))


def test_places_are_these_on_every_machine() -> None:
    """Members must agree across versions: a change of these values is a change of the protocol."""
    placement = placed(100, 16)
    whole = blake3(b"".join(peer.public_key for axis in range(2) for peer in placement.group(PEERS[0], axis))).hexdigest()
    assert [placement.cell(peer) for peer in PEERS[:4]] == [(6, 0), (2, 4), (2, 5), (2, 3)]
    assert whole[:16] == "cff4ffd464ae161f"


def test_coin_changes_with_run_and_epoch_and_moves_everybody() -> None:
    run, other_run = RunId(bytes(32)), RunId(bytes([1]) * 32)
    coins = [epoch_coin(run, Epoch(3)), epoch_coin(run, Epoch(4)), epoch_coin(other_run, Epoch(3))]
    assert len({*coins}) == 3
    assert coins[0] == epoch_coin(run, Epoch(3))
    one, other = placed(256, 16, coin=coins[0]), placed(256, 16, coin=coins[1])
    assert sum(one.cell(peer) == other.cell(peer) for peer in PEERS[:256]) < 10


@pytest.mark.parametrize(("count", "max_group", "mostly_unchanged"), [(1000, 16, 0.85), (250, 32, 0.4), (1000, 32, 0.85)])
def test_a_member_that_only_one_view_holds_leaves_most_groups_alone(count: int, max_group: int, mostly_unchanged: float) -> None:
    whole = placed(count, max_group)
    groups = {(axis, frozenset(whole.group(peer, axis))) for peer in PEERS[:count] for axis in range(whole.rounds)}
    unchanged = 0.0
    for missing in PEERS[:10]:
        view = Placement(COIN, frozenset(PEERS[:count]) - {missing}, NOBODY, max_group)
        seen = {(axis, frozenset(view.group(peer, axis))) for peer in PEERS[:count] if peer != missing for axis in range(view.rounds)}
        unchanged += len(groups & seen) / len(groups) / 10
    assert unchanged > mostly_unchanged


def test_order_in_a_group_changes_with_the_round() -> None:
    placement = placed(1000, 16)
    firsts = {axis: {placement.group(peer, axis)[0] for peer in PEERS[:1000]} for axis in range(3)}
    assert len(firsts[0] & firsts[1] & firsts[2]) < 10


def test_placements_are_remembered() -> None:
    peers = frozenset(PEERS[:50])
    assert place(COIN, peers, NOBODY, 16) is place(COIN, frozenset(PEERS[:50]), NOBODY, 16)


def test_what_cannot_be_placed_is_refused() -> None:
    with pytest.raises(ValueError, match="at once"):
        Placement(COIN, frozenset(PEERS[:2]), frozenset(PEERS[1:3]), 16)
    with pytest.raises(ValueError, match="groups of 1"):
        placed(3, 1)
    for sides in [(), (0, 2), (3, 2)]:
        with pytest.raises(ValueError, match="sides"):
            Grid(sides)
    with pytest.raises(KeyError):
        placed(3, 4).group(PEERS[5], 0)
    with pytest.raises(IndexError):
        placed(3, 4).group(PEERS[0], 1)
