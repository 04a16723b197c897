"""The coin of a round: nobody can change a share, use it twice, or choose the outcome but by staying away."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError, RemoteRefusal
from protocols.trust.coin import CoinSecret, combine, share_commitment
from protocols.trust.statements import COIN_TRIES, Commitment
from protocols.trust.verification import Shares, accepted_coin, check_share
from tests.helpers.trust_values import PEERS, commitment_to, secret_of, signed_plan

COUNT = 5
PLAN, OTHER_PLAN = signed_plan(range(COUNT)), signed_plan(range(COUNT), number=1)
SECRETS = {i: secret_of(i) for i in range(COUNT)}
COMMITMENTS = {i: commitment_to(PLAN, i) for i in range(COUNT)}
LEADER = PEERS[0]
EVERYBODY = frozenset(range(COUNT))


def shares(attempt: int = 0, without: frozenset[int] = frozenset()) -> dict[int, bytes]:
    return {i: secret.share(attempt) for i, secret in SECRETS.items() if i not in without}


def coin(
    shown: Mapping[int, bytes],
    attempt: int = 0,
    required: frozenset[int] = EVERYBODY,
    commitments: Mapping[int, Commitment] = COMMITMENTS,
) -> bytes:
    return accepted_coin(PLAN, Shares(attempt, shown), required, commitments, LEADER)


def test_all_get_the_same_coin_in_whatever_order_shares_come() -> None:
    assert len(coin(shares())) == 32
    assert coin(dict(reversed(shares().items()))) == coin(shares())


def test_each_share_changes_it() -> None:
    whole = {PEERS[i]: share for i, share in shares().items()}
    coins = {combine(PLAN.digest, 0, whole), combine(PLAN.digest, 1, whole), combine(OTHER_PLAN.digest, 0, whole)}
    for peer in whole:
        coins.add(combine(PLAN.digest, 0, {**whole, peer: b"x" * 32}))
        coins.add(combine(PLAN.digest, 0, {other: share for other, share in whole.items() if other != peer}))
    assert len(coins) == 3 + 2 * COUNT


def test_two_members_cannot_swap_their_shares() -> None:
    swapped = {**shares(), 1: SECRETS[2].share(0), 2: SECRETS[1].share(0)}
    with pytest.raises(RemoteProtocolError, match="has not committed to"):
        coin(swapped)


@pytest.mark.parametrize("member", range(COUNT))
def test_nobody_can_change_its_share_when_it_has_seen_the_others(member: int) -> None:
    for lie in (b"x" * 32, SECRETS[member].share(1), SECRETS[(member + 1) % COUNT].share(0), b"", SECRETS[member].share(0) + b"x"):
        with pytest.raises(RemoteProtocolError) as caught:
            coin({**shares(), member: lie})
        assert caught.value.peer == LEADER  # it was to look at what it shows


def test_a_share_is_of_one_try_and_one_member() -> None:
    share, peer = SECRETS[1].share(2), PEERS[1]
    check_share(PLAN, 1, COMMITMENTS[1], 2, share, peer)
    for plan, member, attempt in ((PLAN, 1, 1), (PLAN, 2, 2)):
        with pytest.raises(RemoteProtocolError):
            check_share(plan, member, COMMITMENTS[1], attempt, share, peer)
    with pytest.raises(RemoteProtocolError):
        check_share(PLAN, 1, COMMITMENTS[1], COIN_TRIES, share, peer)
    assert len({share_commitment(who, attempt, share) for who in PEERS[:3] for attempt in range(COIN_TRIES)}) == 3 * COIN_TRIES


def test_nobody_has_other_shares_than_it_joined_with() -> None:
    other = CoinSecret(PEERS[1], b"o" * 32)
    with pytest.raises(RemoteProtocolError, match="join with"):
        check_share(PLAN, 1, commitment_to(PLAN, 1, other), 0, other.share(0), PEERS[1])


@settings(derandomize=True)
@given(st.binary(min_size=32, max_size=32))
def test_shares_of_other_tries_say_nothing_of_one(seed: bytes) -> None:
    secret = CoinSecret(PEERS[0], seed)
    assert len({secret.share(attempt) for attempt in range(COIN_TRIES)}) == COIN_TRIES
    assert secret.commitments() == CoinSecret(PEERS[0], seed).commitments()
    assert seed not in {secret.share(attempt) for attempt in range(COIN_TRIES)}


def test_whoever_keeps_its_share_back_is_left_out_of_the_next_try_whose_shares_nobody_has_seen() -> None:
    withholding, others = frozenset({3}), EVERYBODY - {3}
    with pytest.raises(RemoteRefusal) as caught:
        coin(shares(0, without=withholding))
    assert caught.value.code == "left-out"
    again = coin(shares(1, without=withholding), attempt=1, required=others)
    foreseen = combine(PLAN.digest, 0, {PEERS[i]: share for i, share in shares(0, without=withholding).items()})
    assert again != foreseen
    with pytest.raises(RemoteProtocolError):  # shares of the try before do not count in the next one
        coin(shares(0, without=withholding), attempt=1, required=others)


def test_who_is_not_required_may_be_in_it_and_counts() -> None:
    assert coin(shares(), required=EVERYBODY - {3}) != coin(shares(without=frozenset({3})), required=EVERYBODY - {3})


def test_a_leader_can_leave_nobody_out_whom_we_know() -> None:
    for member in EVERYBODY:
        with pytest.raises(RemoteRefusal):
            coin(shares(without=frozenset({member})))
