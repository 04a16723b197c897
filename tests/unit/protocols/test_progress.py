from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from protocols.ids import Epoch, PeerId, SwarmTime
from protocols.progress import STALE_AFTER_S, SwarmProgress, estimate
from protocols.records import Phase, Progress
from tests.helpers.run_world import NOW

TARGET = 100


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


def state(epoch: int, fork: int = 0) -> bytes:
    return bytes([epoch % 256, fork]) * 16


ME = peer(0)


def says(
    number: int,
    epoch: int,
    samples: int = 0,
    *,
    speed: float = 1.0,
    state_hash: bytes | None = None,
    accepted: int = 0,
    age_s: float = 0.0,
    phase: Phase = "training",
) -> Progress:
    held = state(epoch) if state_hash is None else state_hash
    return Progress(peer(number), Epoch(epoch), samples, speed, accepted, held, phase, None, 0, 0, SwarmTime(NOW - age_s))


def swarm(own: Progress, *others: Progress, epoch_age_s: float = math.inf) -> SwarmProgress:
    return estimate(ME, own, {other.peer: other for other in others}, NOW, TARGET, epoch_age_s=epoch_age_s)


# Epoch


def test_alone_i_am_the_swarm() -> None:
    got = swarm(says(0, 5, 30, speed=7.0))
    assert got == SwarmProgress(Epoch(5), 30, 7.0, 10.0, False, state(5), ())


def test_in_a_swarm_of_two_the_other_counts() -> None:
    ahead = swarm(says(0, 5), says(1, 6))
    assert (ahead.epoch, ahead.behind, ahead.donors) == (6, True, (peer(1),))
    behind = swarm(says(0, 5, 10), says(1, 4, 20))
    assert (behind.epoch, behind.behind, behind.samples) == (4, False, 20)


def test_a_strict_majority_of_the_others_decides() -> None:
    assert swarm(says(0, 5), says(1, 6), says(2, 5)).epoch == 5
    assert swarm(says(0, 5), says(1, 6), says(2, 6)).epoch == 6
    assert swarm(says(0, 5), says(1, 6), says(2, 5), says(3, 6)).epoch == 6
    assert swarm(says(0, 5), says(1, 9), says(2, 7), says(3, 6)).epoch == 7
    assert swarm(says(0, 5), says(1, 6), says(2, 6), says(3, 5), says(4, 5)).epoch == 5


def test_one_who_claims_to_be_at_the_beginning_holds_nobody_back() -> None:
    got = swarm(says(0, 5, 10), says(1, 5, 20), says(2, 0, 99))
    assert (got.epoch, got.samples, got.behind) == (5, 30, False)


def test_who_holds_no_state_is_gone_stale_or_leaving_has_no_vote() -> None:
    silent = [
        says(1, 9, state_hash=b""),
        says(2, 9, age_s=STALE_AFTER_S + 1),
        says(3, 9, age_s=-10),
        says(4, 9, phase="leaving"),
    ]
    got = swarm(says(0, 5, 10), *silent)
    assert (got.epoch, got.samples, got.behind, got.donors) == (5, 10, False, ())


def test_my_own_record_among_the_others_is_ignored() -> None:
    assert swarm(says(0, 5, 10), says(0, 9, 90)).samples == 10


def test_a_joiner_without_state_is_behind_whoever_has_one() -> None:
    joiner = says(0, 0, state_hash=b"")
    got = swarm(joiner, says(1, 5, 10), says(2, 5, 20))
    assert (got.epoch, got.samples, got.behind, got.state_hash, got.donors) == (5, 30, True, state(5), (peer(1), peer(2)))
    at_zero = swarm(joiner, says(1, 0, 10))
    assert (at_zero.epoch, at_zero.behind) == (0, True)
    alone = swarm(joiner)
    assert (alone.behind, alone.state_hash, alone.eta_s) == (False, b"", math.inf)


# Samples


def test_samples_of_members_at_the_epoch_add_up() -> None:
    got = swarm(says(0, 5, 10, speed=1.0), says(1, 5, 20, speed=2.0), says(2, 5, 15, speed=2.0), says(3, 4, 99, speed=50.0))
    assert (got.samples, got.samples_per_s, got.eta_s) == (45, 5.0, 11.0)


def test_claims_grow_with_their_speed_while_training() -> None:
    assert swarm(says(0, 5), says(1, 5, 20, speed=3.0, age_s=4.0)).samples == 32
    assert swarm(says(0, 5), says(1, 5, 20, speed=3.0, age_s=4.0, phase="averaging")).samples == 20
    assert swarm(says(0, 5), says(1, 5, 20, speed=3.0, age_s=-2.0)).samples == 20


def test_absurd_claims_are_capped() -> None:
    assert swarm(says(0, 5, 10), says(1, 5, 10**9, speed=1e7)).samples == 10 + TARGET
    assert swarm(says(0, 5, 10), says(1, 5, 90, speed=0.0)).samples == 10, "it says itself that it computes nothing"
    assert swarm(says(0, 5, 10), says(1, 5, 90, speed=0.5), epoch_age_s=10.0).samples == 10 + 40
    assert swarm(says(0, 5, 10), says(1, 5, 90, speed=9.0), epoch_age_s=10.0).samples == 10 + 90


def test_my_own_samples_count_as_they_are() -> None:
    assert swarm(says(0, 5, 250, speed=0.0)).samples == 250


def test_eta() -> None:
    assert swarm(says(0, 5, TARGET, speed=1.0)).eta_s == 0.0
    assert swarm(says(0, 5, TARGET + 50, speed=0.0)).eta_s == 0.0
    assert swarm(says(0, 5, TARGET - 1, speed=0.0)).eta_s == math.inf
    assert swarm(says(0, 5, 0, speed=4.0)).eta_s == 25.0


# State


def test_i_am_behind_only_if_a_majority_of_all_disagrees_with_me() -> None:
    mine = says(0, 5, state_hash=state(5, 1))
    assert not swarm(mine, says(1, 5)).behind, "one against one is no majority"
    assert swarm(mine, says(1, 5), says(2, 5)).behind
    assert not swarm(mine, says(1, 5), says(2, 5, state_hash=state(5, 2))).behind
    assert not swarm(mine, says(1, 5), says(2, 5), says(3, 4), says(4, 4)).behind, "two of five are no majority"


def test_ties_go_to_more_accepted_samples_then_to_the_smaller_hash() -> None:
    one, two = state(5, 1), state(5, 2)
    more = swarm(says(0, 5, state_hash=one, accepted=10), says(1, 5, state_hash=two, accepted=11))
    assert (more.state_hash, more.donors) == (two, (peer(1),))
    same = swarm(says(0, 5, state_hash=two, accepted=10), says(1, 5, state_hash=one, accepted=10))
    assert same.state_hash == one
    votes = swarm(says(0, 5, state_hash=one, accepted=1), says(1, 5, state_hash=one, accepted=1), says(2, 5, state_hash=two, accepted=99))
    assert votes.state_hash == one, "votes come before samples"


def test_one_of_several_holders_cannot_raise_their_accepted_samples() -> None:
    one, two = state(5, 1), state(5, 2)
    split = [says(1, 5, state_hash=one, accepted=10), says(2, 5, state_hash=one, accepted=10**9)]
    against = [says(3, 5, state_hash=two, accepted=20), says(4, 5, state_hash=two, accepted=20)]
    assert swarm(says(0, 4), *split, *against).state_hash == two


# One liar

lies = st.builds(
    lambda epoch, samples, speed, accepted, fork, age_s, phase: (epoch, samples, speed, accepted, fork, age_s, phase),
    st.integers(0, 2**40),
    st.integers(0, 10**9),
    st.floats(0, 1e7),
    st.integers(0, 2**53),
    st.integers(0, 3),
    st.floats(-5, 100),
    st.sampled_from(["joining", "syncing", "training", "averaging", "leaving"]),
)


def liar(number: int, lie: tuple[int, int, float, int, int, float, Phase]) -> Progress:
    epoch, samples, speed, accepted, fork, age_s, phase = lie
    return says(number, epoch, samples, speed=speed, accepted=accepted, state_hash=state(epoch, fork), age_s=age_s, phase=phase)


@given(st.integers(2, 8), st.integers(0, 500), lies)
def test_one_liar_among_three_or_more_moves_neither_epoch_nor_state(
    size: int, epoch: int, lie: tuple[int, int, float, int, int, float, Phase]
) -> None:
    """`size` honest members, me included, and one liar."""
    own = says(0, epoch, 10)
    honest = [says(number, epoch, 10) for number in range(1, size)]
    got = swarm(own, *honest, liar(size, lie))
    assert got.epoch == epoch
    assert got.state_hash == state(epoch)
    assert not got.behind
    assert set(got.donors) >= {progress.peer for progress in honest}
    assert 10 * size <= got.samples <= 10 * size + TARGET


@given(st.integers(3, 8), st.integers(0, 500), lies)
def test_one_liar_does_not_keep_me_from_noticing_that_i_am_behind(
    size: int, epoch: int, lie: tuple[int, int, float, int, int, float, Phase]
) -> None:
    honest = [says(number, epoch + 3) for number in range(1, size)]
    got = swarm(says(0, epoch), *honest, liar(size, lie))
    assert (got.epoch, got.behind, got.state_hash) == (epoch + 3, True, state(epoch + 3))


claims = st.lists(lies, max_size=8)


@given(lies, claims)
def test_whatever_they_say_the_answer_is_sound(
    mine: tuple[int, int, float, int, int, float, Phase], theirs: list[tuple[int, int, float, int, int, float, Phase]]
) -> None:
    others: Mapping[PeerId, Progress] = {peer(i + 1): liar(i + 1, lie) for i, lie in enumerate(theirs)}
    own = replace(liar(0, mine), time=NOW)
    got = estimate(ME, own, others, NOW, TARGET)
    epochs = {own.epoch, *(progress.epoch for progress in others.values())}
    assert got.epoch in epochs
    assert got.samples >= 0
    assert got.samples_per_s >= 0
    assert got.eta_s >= 0
    assert ME not in got.donors
    assert all(others[donor].state_hash == got.state_hash and others[donor].epoch == got.epoch for donor in got.donors)
    if got.behind:
        assert got.donors or got.epoch > own.epoch
    assert estimate(ME, own, dict(reversed(list(others.items()))), NOW, TARGET) == got, "the order of records means nothing"
