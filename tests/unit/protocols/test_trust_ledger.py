"""Bans: what proves one, what does not, and that all members end with the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import RemoteError, RemoteProtocolError, RemoteRefusal
from protocols.ids import Attempt, BlockIndex, Epoch, PeerId
from protocols.messages import Plan
from protocols.proto.swarm.v1 import trust_pb2 as pb
from protocols.trust.ledger import (
    ABSURD_AHEAD,
    MAX_BAN_BYTES,
    MAX_JUDGEMENT_BYTES,
    Ban,
    Ledger,
    ban_by_judgements,
    ban_by_statements,
    check_ban,
    contradiction,
)
from protocols.trust.offences import Offence
from protocols.trust.statements import ACCUSATION, CHECK, COMMITMENT, JUDGEMENT, REDUCTION, Charge, Check, Reduction
from protocols.trust.traced import Traced
from tests.helpers.trust_values import (
    EPOCH,
    NOTARIES,
    PEERS,
    commitment_to,
    judgements_of,
    opener,
    sealed_commitment,
    signed_join,
    signed_plan,
)

COUNT = 5
PLAN = signed_plan(range(COUNT))
ACCUSED, TELLER = 0, PEERS[9]
MAJORITY = (1, 2, 3)
GUILTY = Offence.REDUCTION


def seen(size: int) -> Callable[[Epoch, int, PeerId], int]:
    return lambda _epoch, _round, _peer: size


def checked(proof: bytes, group_size: int = COUNT, epoch_now: int = EPOCH) -> Ban:
    return check_ban(proof, opener, Epoch(epoch_now), seen(group_size), TELLER)


def judged(jurors: Sequence[int] = MAJORITY, plan: Plan = PLAN, *, offence: Offence = GUILTY, accused: int = ACCUSED) -> bytes:
    commitment = sealed_commitment(plan, accused)
    return ban_by_judgements(PEERS[accused], offence, plan, judgements_of(plan, accused, jurors, offence), commitment)


def refused(proof: bytes, group_size: int = COUNT) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        checked(proof, group_size)
    assert isinstance(caught.value, RemoteProtocolError | RemoteRefusal)
    assert caught.value.peer in (TELLER, *PEERS, None)
    return caught.value


def broken(proof: bytes, group_size: int = COUNT) -> None:
    assert isinstance(refused(proof, group_size), RemoteProtocolError)


def test_more_than_half_of_a_group_ban() -> None:
    for jurors in (MAJORITY, (4, 2, 1, 3)):
        ban = checked(judged(jurors))
        assert (ban.accused, ban.offence, ban.epoch) == (PEERS[ACCUSED], GUILTY, EPOCH)


def test_half_do_not() -> None:
    broken(judged((1, 2)))
    broken(judged((1, 2), signed_plan(range(4))))
    broken(judged(()))


def test_nor_do_more_than_half_of_a_plan_that_counts_more_members() -> None:
    broken(judged(MAJORITY, signed_plan(range(COUNT), counted=6)))
    assert checked(judged((1, 2, 3, 4), signed_plan(range(COUNT), counted=6)), group_size=0).accused == PEERS[ACCUSED]


def test_nobody_counts_twice_nor_a_stranger() -> None:
    broken(judged((1, 2, 2)))
    broken(judged((1, 2, 8)))


def test_whoever_saw_a_larger_group_believes_no_part_of_it() -> None:
    assert isinstance(refused(judged(), group_size=6), RemoteRefusal)
    assert checked(judged((1, 2, 3, 4)), group_size=7).accused == PEERS[ACCUSED]


def test_nobody_is_banned_by_a_plan_that_it_never_heard_of() -> None:
    """Two accomplices put an honest member's join, which everybody has, into a plan of their own, whenever they like."""
    forged = signed_plan([ACCUSED, 7, 8])
    words = judgements_of(forged, ACCUSED, (7, 8))
    for commitment in (None, sealed_commitment(PLAN, ACCUSED), NOTARIES[7].seal(COMMITMENT, commitment_to(forged, ACCUSED).encode())):
        proof = ban_by_judgements(PEERS[ACCUSED], GUILTY, forged, words, commitment)
        refused(proof, group_size=0)
        refused(proof, group_size=COUNT)


def test_who_saw_the_epoch_needs_no_commitment_of_the_accused() -> None:
    proof = ban_by_judgements(PEERS[ACCUSED], GUILTY, PLAN, judgements_of(PLAN, ACCUSED, MAJORITY))
    assert checked(proof, group_size=COUNT).accused == PEERS[ACCUSED]
    error = refused(proof, group_size=0)
    assert isinstance(error, RemoteRefusal)
    assert error.code == "unproved"


def test_a_commitment_beside_judgements_is_the_accuseds_to_that_plan_and_nothing_else() -> None:
    words = judgements_of(PLAN, ACCUSED, MAJORITY)
    good = sealed_commitment(PLAN, ACCUSED)
    assert checked(ban_by_judgements(PEERS[ACCUSED], GUILTY, PLAN, words, good), group_size=0).accused == PEERS[ACCUSED]
    for bad in (sealed_commitment(PLAN, 1), sealed_commitment(signed_plan(range(COUNT), number=1), ACCUSED), b"", good + b"x"):
        broken(ban_by_judgements(PEERS[ACCUSED], GUILTY, PLAN, words, bad))
    m = pb.Ban.FromString(ban_by_judgements(PEERS[ACCUSED], GUILTY, PLAN, words, good))
    m.statements.append(m.statements[0])
    broken(m.SerializeToString())


def altered(**changes: object) -> bytes:
    m = pb.Ban.FromString(judged())
    for name, value in changes.items():
        m.ClearField(name)
        part = pb.Ban(**{name: value})  # type: ignore[arg-type]
        m.MergeFrom(part)
    return m.SerializeToString()


def test_judgements_must_be_of_that_round_member_and_offence() -> None:
    other_round = signed_plan(range(COUNT), number=1)
    for jurors, plan, accused, offence in (
        ((3,), other_round, ACCUSED, GUILTY),
        ((3,), PLAN, 4, GUILTY),
        ((3,), PLAN, ACCUSED, Offence.CHECK),
    ):
        words = [*judgements_of(PLAN, ACCUSED, (1, 2)), *judgements_of(plan, accused, jurors, offence)]
        broken(altered(judgements=words))
    wrong_epoch = Charge(PLAN.digest, Epoch(EPOCH + 1), PEERS[ACCUSED], GUILTY).encode_judgement()
    broken(altered(judgements=[*judgements_of(PLAN, ACCUSED, (1, 2)), NOTARIES[3].seal(JUDGEMENT, wrong_epoch)]))
    assert checked(altered(judgements=judgements_of(PLAN, ACCUSED, MAJORITY))).accused == PEERS[ACCUSED]


def test_judgements_must_be_signed_as_such() -> None:
    charge = Charge(PLAN.digest, EPOCH, PEERS[ACCUSED], GUILTY)
    sealed = judgements_of(PLAN, ACCUSED, MAJORITY)
    forged = PEERS[4].public_key + sealed[0][32:]
    accusation = NOTARIES[3].seal(ACCUSATION, charge.encode_judgement())
    for last in (forged, accusation, sealed[2][:-1], b""):
        broken(altered(judgements=[*sealed[:2], last]))


def test_the_accused_must_be_in_the_plan_and_the_plan_be_one() -> None:
    broken(judged(MAJORITY, signed_plan(range(1, COUNT)), accused=ACCUSED))
    broken(altered(plan=b"no plan"))
    broken(altered(plan=b""))
    broken(judged(MAJORITY, replace(PLAN, attempt=Attempt(1))))
    mixed = replace(PLAN, members=(*PLAN.members[:-1], signed_join(4, Epoch(EPOCH + 1))))
    broken(judged(MAJORITY, mixed))
    unsigned = replace(PLAN.members[4], sealed=PLAN.members[4].sealed[:-1] + b"x")
    broken(judged(MAJORITY, replace(PLAN, members=(*PLAN.members[:-1], unsigned))))


def test_a_ban_names_a_member_and_an_offence() -> None:
    broken(altered(accused=b"a" * 31))
    broken(altered(offence="murder"))
    broken(altered(accused=PEERS[4].public_key))
    broken(b"")
    broken(b"\xff" * 40)


def test_a_proof_is_not_too_long() -> None:
    broken(judged() + bytes(MAX_BAN_BYTES))
    words = judgements_of(PLAN, ACCUSED, MAJORITY)
    padding = MAX_JUDGEMENT_BYTES - len(words[2])
    charge = pb.Judgement(first_plan_digest=PLAN.digest, epoch=EPOCH, accused=PEERS[ACCUSED].public_key, offence=GUILTY.value)
    body = charge.SerializeToString(deterministic=True)

    def padded(by: int) -> bytes:
        """A field that nobody knows, 8 of its bytes being tag and length."""
        field = b"\xba\x3e" + bytes([0x80 | by & 0x7F, 0x80 | by >> 7 & 0x7F, by >> 14]) + bytes(by)
        return NOTARIES[3].seal(JUDGEMENT, body + field)

    assert len(padded(padding - 5)) == MAX_JUDGEMENT_BYTES
    assert checked(altered(judgements=[*words[:2], padded(padding - 5)])).accused == PEERS[ACCUSED]
    broken(altered(judgements=[*words[:2], padded(padding - 4)]))


def test_a_full_groups_proof_fits() -> None:
    plan_bytes, joins, words = 2**16 * 8, 64 * 16 * 1024, 64 * MAX_JUDGEMENT_BYTES
    assert plan_bytes + joins + words + MAX_JUDGEMENT_BYTES < MAX_BAN_BYTES


# Statements

CHECKED = Check(PLAN.digest, EPOCH, 0, b"c" * 32, COUNT, b"r" * 32, 5.0, (0.5,), (1.0,))
REDUCED = Reduction(PLAN.digest, 0, (BlockIndex(0),), (b"h" * 32,), (1.0,))


def said(kind: str, payload: bytes, number: int = ACCUSED) -> tuple[str, bytes]:
    return kind, NOTARIES[number].seal(kind, payload)


def convicted(*statements: tuple[str, bytes], offence: Offence = Offence.EQUIVOCATION) -> bytes:
    return ban_by_statements(PEERS[ACCUSED], offence, statements)


CONTRADICTIONS = {
    COMMITMENT: (commitment_to(PLAN, 0).encode(), commitment_to(PLAN, 0, samples=9).encode()),
    CHECK: (CHECKED.encode(), replace(CHECKED, projections=(0.25,)).encode()),
    REDUCTION: (REDUCED.encode(), replace(REDUCED, radii=(2.0,)).encode()),
}
CHAIN = (
    commitment_to(PLAN, 0, traced=Traced(inner_end=b"e" * 32)).encode(),
    commitment_to(
        PLAN, 0, first_plan_digest=b"l" * 32, epoch=Epoch(EPOCH + 1), traced=Traced(0, b"f" * 32, EPOCH, b"z" * 32, (), PLAN.digest)
    ).encode(),
)
ELSEWHERE = signed_plan(range(COUNT), number=1).digest
NO_CONTRADICTIONS = {
    "the same commitment": (COMMITMENT, commitment_to(PLAN, 0).encode(), commitment_to(PLAN, 0).encode()),
    "of another round": (COMMITMENT, commitment_to(PLAN, 0).encode(), commitment_to(PLAN, 0, first_plan_digest=ELSEWHERE).encode()),
    "for another coin": (CHECK, CHECKED.encode(), replace(CHECKED, coin=b"d" * 32).encode()),
    "check of another round": (CHECK, CHECKED.encode(), replace(CHECKED, first_plan_digest=ELSEWHERE, weight=2.0).encode()),
    "of another attempt": (REDUCTION, REDUCED.encode(), replace(REDUCED, attempt=1).encode()),
    "reduction of another round": (REDUCTION, REDUCED.encode(), replace(REDUCED, first_plan_digest=ELSEWHERE).encode()),
    "joins": ("join", signed_join(0).join.encode(), signed_join(0, weight=2.0).join.encode()),
}


def test_an_inner_state_that_the_contribution_before_did_not_end_with_bans() -> None:
    proof = convicted(said(COMMITMENT, CHAIN[0]), said(COMMITMENT, CHAIN[1]))
    ban = checked(proof, group_size=0)
    assert (ban.accused, ban.offence) == (PEERS[ACCUSED], Offence.EQUIVOCATION)
    broken(convicted(said(COMMITMENT, CHAIN[0]), said(COMMITMENT, CHAIN[1], number=1)))


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_two_statements_that_contradict_each_other_ban(kind: str) -> None:
    one, other = CONTRADICTIONS[kind]
    proof = convicted(said(kind, one), said(kind, other))
    assert checked(proof, group_size=0).accused == PEERS[ACCUSED]
    assert checked(convicted(said(kind, other), said(kind, one)), group_size=50).offence is Offence.EQUIVOCATION
    broken(convicted(said(kind, one)))
    broken(convicted(said(kind, one), said(kind, other), said(kind, other)))
    broken(convicted(said(kind, one), said(kind, other, number=1)))
    broken(convicted(said(kind, one, number=1), said(kind, other, number=1)))
    broken(convicted(said(kind, one), said(kind, other), offence=Offence.CHECK))


def test_who_contradicts_itself_does_not_choose_an_epoch_to_come() -> None:
    """Of a ban that nobody else has seen, the statements name the epoch; two members that read them agree on it."""
    for named, epoch in ((EPOCH - 1, EPOCH - 1), (EPOCH, EPOCH), (EPOCH + 1, EPOCH), (2**40, EPOCH)):
        one = commitment_to(PLAN, 0, epoch=Epoch(named)).encode()
        earlier = commitment_to(PLAN, 0, epoch=Epoch(named - 1)).encode()
        other = commitment_to(PLAN, 0, epoch=Epoch(named), samples=9).encode()
        for second in (earlier, other):
            assert checked(convicted(said(COMMITMENT, one), said(COMMITMENT, second))).epoch == epoch
            assert checked(convicted(said(COMMITMENT, second), said(COMMITMENT, one))).epoch == epoch
    assert checked(convicted(*(said(REDUCTION, payload) for payload in CONTRADICTIONS[REDUCTION]))).epoch == EPOCH


@pytest.mark.parametrize("name", NO_CONTRADICTIONS)
def test_what_does_not_contradict_itself_bans_nobody(name: str) -> None:
    kind, one, other = NO_CONTRADICTIONS[name]
    assert contradiction(kind, one, other, PEERS[ACCUSED]) is None
    broken(convicted(said(kind, one), said(kind, other)))


def test_statements_of_two_kinds_do_not_contradict_each_other() -> None:
    broken(convicted(said(COMMITMENT, CONTRADICTIONS[COMMITMENT][0]), said(CHECK, CHECKED.encode())))
    broken(convicted())


def test_a_statement_that_is_damaged_proves_nothing() -> None:
    one, other = CONTRADICTIONS[COMMITMENT]
    for bad in (other[:-1], b"", b"\xff"):
        broken(convicted(said(COMMITMENT, one), said(COMMITMENT, bad)))
    m = pb.Ban(accused=PEERS[ACCUSED].public_key, offence="equivocation", statements=[b"no kind", b"\xff\xff\0x"])
    broken(m.SerializeToString())


def test_an_absurd_epoch_bans_and_one_that_may_come_does_not() -> None:
    for ahead, banned in ((ABSURD_AHEAD, False), (ABSURD_AHEAD + 1, True)):
        proof = convicted(("join", signed_join(ACCUSED, Epoch(EPOCH + ahead)).sealed), offence=Offence.ABSURD_CLAIM)
        if banned:
            assert checked(proof).epoch == EPOCH
        else:
            broken(proof)
    one, other = CONTRADICTIONS[COMMITMENT]
    broken(convicted(said(COMMITMENT, one), said(COMMITMENT, other), offence=Offence.ABSURD_CLAIM))


# The ledger

BANS = tuple(
    checked(judged(jurors, accused=accused, offence=offence))
    for accused, jurors, offence in (
        (0, (1, 2, 3), GUILTY),
        (0, (2, 3, 4), GUILTY),
        (0, (1, 2, 3, 4), Offence.CHECK),
        (1, (0, 2, 3), GUILTY),
        (1, (0, 2, 4), GUILTY),
        (2, (0, 1, 3), Offence.CONTRIBUTION),
    )
)


@settings(derandomize=True)
@given(st.permutations(BANS), st.lists(st.integers(0, 2), min_size=len(BANS), max_size=len(BANS)), st.permutations(range(3)))
def test_all_orders_and_ways_of_bans_give_one_ledger(order: list[Ban], parts: list[int], merged: list[int]) -> None:
    ledgers = [Ledger() for _ in range(3)]
    for ban, part in zip(order, parts, strict=True):
        ledgers[part].add(ban)
    whole = Ledger()
    for part in merged:
        for ban in ledgers[part].bans:
            whole.add(ban)
    plain = Ledger()
    for ban in BANS:
        plain.add(ban)
    assert whole.bans == plain.bans
    assert [ban.accused for ban in whole.bans] == sorted(PEERS[:3])


def test_a_ledger_says_what_is_new() -> None:
    ledger = Ledger()
    assert ledger.add(BANS[0])
    assert not ledger.add(BANS[0])
    assert not ledger.add(BANS[1])
    assert PEERS[0] in ledger
    assert PEERS[1] not in ledger
    assert ledger.of(PEERS[1]) is None
    assert ledger.of(PEERS[0]) == min(BANS[:2], key=lambda ban: ban.digest)


@settings(derandomize=True, max_examples=200)
@given(st.binary(max_size=200))
def test_random_bytes_ban_nobody(data: bytes) -> None:
    broken(data)


@settings(derandomize=True, max_examples=300)
@given(st.integers(0, len(judged()) - 1), st.integers(1, 255))
def test_a_damaged_proof_bans_nobody_else(place: int, change: int) -> None:
    proof = bytearray(judged())
    proof[place] ^= change
    with suppress(RemoteProtocolError, RemoteRefusal):
        ban = checked(bytes(proof))
        assert (ban.accused, ban.offence) == (PEERS[ACCUSED], GUILTY)
