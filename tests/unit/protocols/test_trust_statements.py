"""Statements of verified rounds: what is written is read again, and each limit holds on both of its sides."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError
from protocols.frames import MAX_MEMBERS
from protocols.ids import MAX_EPOCH, BlockIndex, Epoch, PeerId
from protocols.messages import MAX_BLOCKS, MAX_CARRIED_WEIGHT, MAX_ROUNDS, MAX_WEIGHT
from protocols.proto.swarm.v1 import trust_pb2 as pb
from protocols.trust.offences import Offence
from protocols.trust.statements import (
    COIN_TRIES,
    Charge,
    Check,
    Commitment,
    Reduction,
    begins_elsewhere,
    breaks_chain,
    hashes_root,
    read_offence,
)
from protocols.trust.traced import MAX_CUTS, UNTRACED, Traced

SENDER, ACCUSED = PeerId(b"p" * 32), PeerId(b"a" * 32)
HASH = b"h" * 32
COIN = tuple(bytes([number]) * 32 for number in range(COIN_TRIES))
COMMITTED = Commitment(HASH, Epoch(3), 0, HASH, COIN, 7, 16)
LATER = Commitment(HASH, Epoch(3), 1, HASH, COIN, 0, 0, b"q" * 32)
REDUCED = Reduction(HASH, 1, (BlockIndex(0), BlockIndex(4)), (HASH, b"k" * 32), (0.5, math.inf))
CHECKED = Check(HASH, Epoch(3), 0, b"c" * 32, 4, b"r" * 32, 12.0, (-0.5, 0.0), (1.5, 0.0), (BlockIndex(1),))
CHARGED = Charge(HASH, Epoch(3), ACCUSED, Offence.CHECK, BlockIndex(2))

Read = Callable[[bytes, PeerId], object]
READERS: tuple[Read, ...] = (Commitment.decode, Reduction.decode, Check.decode, Charge.decode_accusation, Charge.decode_judgement)


def refused(read: Read, data: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        read(data, SENDER)
    assert caught.value.peer == SENDER


def blamed_for(read: Read, data: bytes) -> PeerId | None:
    """Whom a reader blames; None if it finds nothing wrong."""
    try:
        read(data, SENDER)
    except RemoteProtocolError as error:
        return error.peer
    return None


hashes = st.binary(min_size=32, max_size=32)
epochs = st.integers(0, MAX_EPOCH).map(Epoch)
finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def traces(draw: st.DrawFn, epoch: Epoch, samples: int) -> Traced:
    cuts = tuple(sorted(draw(st.sets(st.integers(1, samples - 1), max_size=4)))) if samples > 1 else ()
    late, end = draw(st.integers(0, samples)), draw(st.sampled_from([b"", HASH]))
    if not end or not epoch or draw(st.booleans()):
        return Traced(late, inner_end=end, cuts=cuts)
    return Traced(late, draw(hashes), Epoch(draw(st.integers(0, epoch - 1))), end, cuts, draw(hashes))


@st.composite
def commitments(draw: st.DrawFn) -> Commitment:
    round_index = draw(st.integers(0, MAX_ROUNDS - 1))
    coin = tuple(draw(st.lists(hashes, min_size=COIN_TRIES, max_size=COIN_TRIES)))
    samples, first = draw(st.integers(0, int(MAX_WEIGHT))), draw(st.integers(0, 2**40))
    previous = draw(hashes) if round_index else b""
    epoch = draw(epochs)
    traced = UNTRACED if round_index else draw(traces(epoch, samples))
    return Commitment(draw(hashes), epoch, round_index, draw(st.sampled_from([b"", HASH])), coin, first, samples, previous, traced)


@st.composite
def reductions(draw: st.DrawFn) -> Reduction:
    blocks = tuple(BlockIndex(b) for b in sorted(draw(st.sets(st.integers(0, 2**32 - 1), max_size=6))))
    of_blocks = [draw(hashes) for _ in blocks]
    radii = [draw(st.floats(min_value=0.0, exclude_min=True, allow_nan=False)) for _ in blocks]
    return Reduction(draw(hashes), draw(st.integers(0, 2**32 - 1)), blocks, tuple(of_blocks), tuple(radii))


@st.composite
def checks(draw: st.DrawFn) -> Check:
    count = draw(st.integers(0, 6))
    projections = tuple(draw(finite) for _ in range(count))
    distances = tuple(abs(draw(finite)) for _ in range(count))
    doubted = tuple(BlockIndex(b) for b in sorted(draw(st.sets(st.integers(0, 9), max_size=count))))
    electorate, weight = draw(st.integers(1, 2 * MAX_MEMBERS)), draw(st.floats(min_value=1e-300, max_value=MAX_CARRIED_WEIGHT))
    head = draw(hashes), draw(epochs), draw(st.integers(0, MAX_ROUNDS - 1)), draw(hashes), electorate, draw(hashes), weight
    return Check(*head, projections, distances, doubted)


@settings(derandomize=True)
@given(commitments(), reductions(), checks())
def test_what_is_written_is_read_again(commitment: Commitment, reduction: Reduction, check: Check) -> None:
    assert Commitment.decode(commitment.encode(), SENDER) == commitment
    assert Reduction.decode(reduction.encode(), SENDER) == reduction
    assert Check.decode(check.encode(), SENDER) == check


@settings(derandomize=True)
@given(hashes, epochs, hashes, st.sampled_from(Offence), st.integers(0, MAX_BLOCKS - 1))
def test_charges_are_read_again(digest: bytes, epoch: Epoch, accused: bytes, offence: Offence, block: int) -> None:
    charge = Charge(digest, epoch, PeerId(accused), offence, BlockIndex(block))
    assert Charge.decode_accusation(charge.encode_accusation(), SENDER) == charge
    assert Charge.decode_judgement(charge.encode_judgement(), SENDER) == replace(charge, block=BlockIndex(0))


@settings(derandomize=True, max_examples=400)
@given(st.binary(max_size=300))
def test_random_bytes_are_a_statement_or_refused(data: bytes) -> None:
    for read in READERS:
        assert blamed_for(read, data) in (None, SENDER)


WRITTEN = (COMMITTED.encode(), LATER.encode(), REDUCED.encode(), CHECKED.encode(), CHARGED.encode_accusation(), CHARGED.encode_judgement())


@settings(derandomize=True, max_examples=400)
@given(st.sampled_from(WRITTEN), st.integers(0, 400), st.integers(0, 255))
def test_one_wrong_byte_is_refused_or_read_as_something_that_can_be_written(data: bytes, place: int, value: int) -> None:
    place %= len(data)
    damaged = data[:place] + bytes([value]) + data[place + 1 :]
    for read in READERS[:3]:
        try:
            found = read(damaged, SENDER)
        except RemoteProtocolError:
            continue
        assert read(found.encode(), SENDER) == found  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"epoch": Epoch(MAX_EPOCH)}, {"epoch": Epoch(MAX_EPOCH + 1)}),
        ({"round_index": MAX_ROUNDS - 1, "previous_plan_digest": HASH}, {"round_index": MAX_ROUNDS, "previous_plan_digest": HASH}),
        ({"first_plan_digest": HASH}, {"first_plan_digest": HASH[1:]}),
        ({"hashes_root": b""}, {"hashes_root": HASH[1:]}),
        ({"hashes_root": HASH}, {"hashes_root": HASH + b"h"}),
        ({"coin": COIN}, {"coin": COIN[1:]}),
        ({"coin": COIN}, {"coin": (*COIN, HASH)}),
        ({"coin": COIN}, {"coin": (*COIN[1:], HASH[1:])}),
        ({"samples": int(MAX_WEIGHT)}, {"samples": int(MAX_WEIGHT) + 1}),
        ({"first_sample": 2**40}, {"first_sample": 2**40 + 1}),
        ({"previous_plan_digest": b""}, {"previous_plan_digest": HASH}),
        ({"round_index": 1, "previous_plan_digest": HASH}, {"round_index": 1, "previous_plan_digest": b""}),
    ],
)
def test_limits_of_commitments(good: dict[str, object], bad: dict[str, object]) -> None:
    assert Commitment.decode(replace(COMMITTED, **good).encode(), SENDER) == replace(COMMITTED, **good)  # type: ignore[arg-type]
    refused(Commitment.decode, replace(COMMITTED, **bad).encode())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        {"first_plan_digest": HASH[1:]},
        {"blocks": (BlockIndex(4), BlockIndex(0))},
        {"blocks": (BlockIndex(4), BlockIndex(4))},
        {"blocks": (BlockIndex(4),)},
        {"block_hashes": (HASH,)},
        {"block_hashes": (HASH, b"")},
        {"radii": (0.5,)},
        {"radii": (0.5, 0.0)},
        {"radii": (0.5, -1.0)},
        {"radii": (0.5, math.nan)},
    ],
)
def test_limits_of_reductions(bad: dict[str, object]) -> None:
    assert Reduction.decode(REDUCED.encode(), SENDER) == REDUCED
    refused(Reduction.decode, replace(REDUCED, **bad).encode())  # type: ignore[arg-type]


def test_nobody_reduces_more_blocks_than_there_can_be() -> None:
    count = MAX_BLOCKS
    most = Reduction(HASH, 0, tuple(BlockIndex(b) for b in range(count)), (HASH,) * count, (1.0,) * count)
    assert Reduction.decode(most.encode(), SENDER) == most
    more = replace(most, blocks=(*most.blocks, BlockIndex(count)), block_hashes=(*most.block_hashes, HASH), radii=(*most.radii, 1.0))
    refused(Reduction.decode, more.encode())


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"epoch": Epoch(MAX_EPOCH)}, {"epoch": Epoch(MAX_EPOCH + 1)}),
        ({"round_index": MAX_ROUNDS - 1}, {"round_index": MAX_ROUNDS}),
        ({"electorate": 1}, {"electorate": 0}),
        ({"electorate": 2 * MAX_MEMBERS}, {"electorate": 2 * MAX_MEMBERS + 1}),
        ({"coin": HASH}, {"coin": HASH[1:]}),
        ({"result_hash": HASH}, {"result_hash": b""}),
        ({"weight": MAX_CARRIED_WEIGHT * MAX_MEMBERS}, {"weight": MAX_CARRIED_WEIGHT * MAX_MEMBERS * 2}),
        ({"weight": 1e-300}, {"weight": 0.0}),
        ({"weight": 1.0}, {"weight": -1.0}),
        ({"weight": 1.0}, {"weight": math.inf}),
        ({"weight": 1.0}, {"weight": math.nan}),
        ({"projections": (-1e300, 1e300)}, {"projections": (math.nan, 0.0)}),
        ({"projections": (0.0, 0.0)}, {"projections": (0.0, math.inf)}),
        ({"projections": (0.0, 0.0)}, {"projections": (0.0,)}),
        ({"distances": (0.0, 1e300)}, {"distances": (0.0, math.inf)}),
        ({"distances": (0.0, 0.0)}, {"distances": (-1e-300, 0.0)}),
        ({"doubted": (BlockIndex(0), BlockIndex(1))}, {"doubted": (BlockIndex(1), BlockIndex(0))}),
        ({"doubted": ()}, {"doubted": (BlockIndex(1), BlockIndex(1))}),
        ({"doubted": (BlockIndex(3), BlockIndex(4))}, {"doubted": (BlockIndex(0), BlockIndex(1), BlockIndex(2))}),
    ],
)
def test_limits_of_checks(good: dict[str, object], bad: dict[str, object]) -> None:
    assert Check.decode(replace(CHECKED, **good).encode(), SENDER) == replace(CHECKED, **good)  # type: ignore[arg-type]
    refused(Check.decode, replace(CHECKED, **bad).encode())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        {"first_plan_digest": HASH[1:]},
        {"epoch": MAX_EPOCH + 1},
        {"accused": HASH[1:]},
        {"offence": "murder"},
        {"offence": ""},
        {"block": MAX_BLOCKS},
    ],
)
def test_limits_of_charges(bad: dict[str, object]) -> None:
    fields = {"first_plan_digest": HASH, "epoch": MAX_EPOCH, "accused": HASH, "offence": "check", "block": MAX_BLOCKS - 1}
    most = Charge(HASH, Epoch(MAX_EPOCH), PeerId(HASH), Offence.CHECK, BlockIndex(MAX_BLOCKS - 1))
    assert Charge.decode_accusation(pb.Accusation(**fields).SerializeToString(), SENDER) == most  # type: ignore[arg-type]
    refused(Charge.decode_accusation, pb.Accusation(**{**fields, **bad}).SerializeToString())  # type: ignore[arg-type]
    if "block" not in bad:
        del fields["block"]
        refused(Charge.decode_judgement, pb.Judgement(**{**fields, **bad}).SerializeToString())  # type: ignore[arg-type]


def test_a_root_names_its_list() -> None:
    a, b = b"a" * 32, b"b" * 32
    assert hashes_root(()) == b""
    assert len({hashes_root((a,)), hashes_root((b,)), hashes_root((a, b)), hashes_root((b, a)), hashes_root((a, a))}) == 5


@pytest.mark.parametrize("offence", Offence)
def test_offences_travel_by_name_and_say_what_they_are(offence: Offence) -> None:
    assert read_offence(offence.value, SENDER) is offence
    assert offence.sentence.startswith("it")
    assert len({other.sentence for other in Offence}) == len(Offence)


SENSELESS = {
    "a root of 31 bytes": Traced(inner_end=b"r" * 31),
    "a beginning without an end": Traced(inner_start=HASH, inner_start_epoch=Epoch(2), inner_start_plan=HASH),
    "a beginning after the end": Traced(inner_start=HASH, inner_start_epoch=Epoch(3), inner_end=HASH, inner_start_plan=HASH),
    "a beginning from no round": Traced(inner_start=HASH, inner_start_epoch=Epoch(2), inner_end=HASH),
    "a round and no beginning": Traced(inner_end=HASH, inner_start_plan=HASH),
    "anew, since an epoch": Traced(inner_start_epoch=Epoch(1), inner_end=HASH),
    "more late samples than samples": Traced(late_samples=9),
    "cuts out of order": Traced(cuts=(4, 3)),
    "a cut at nothing": Traced(cuts=(0,)),
    "a cut at the end": Traced(cuts=(8,)),
    "too many cuts": Traced(cuts=tuple(range(1, MAX_CUTS + 2))),
}


@pytest.mark.parametrize("case", SENSELESS)
def test_an_origin_that_makes_no_sense_is_its_signers_fault(case: str) -> None:
    samples = 100 if case == "too many cuts" else 8
    said = Commitment(HASH, Epoch(3), 0, HASH, (HASH,) * COIN_TRIES, 0, samples, b"", SENSELESS[case])
    assert blamed_for(Commitment.decode, said.encode()) == SENDER


def test_a_later_round_has_no_inner_state() -> None:
    said = Commitment(HASH, Epoch(3), 1, HASH, (HASH,) * COIN_TRIES, 0, 0, HASH, Traced(inner_end=HASH))
    assert blamed_for(Commitment.decode, said.encode()) == SENDER


def contribution(
    epoch: int, end: bytes, start: tuple[bytes, int, bytes] = (b"", 0, b""), *, plan: bytes = HASH, samples: int = 8
) -> Commitment:
    root, since, of_round = start
    traced = Traced(inner_start=root, inner_start_epoch=Epoch(since), inner_end=end, inner_start_plan=of_round)
    return Commitment(plan, Epoch(epoch), 0, HASH, (HASH,) * COIN_TRIES, 0, samples, b"", traced)


E, F, G = b"e" * 32, b"f" * 32, b"g" * 32
P, Q, R = b"p" * 32, b"q" * 32, b"r" * 32
CHAINS = {
    "as it ended": (contribution(4, E, plan=P), contribution(5, G, (E, 4, P), plan=Q), False, False),
    "anew": (contribution(4, E, plan=P), contribution(5, G, plan=Q), False, False),
    "another state": (contribution(4, E, plan=P), contribution(5, G, (F, 4, P), plan=Q), True, False),
    "a round that nobody saw": (contribution(4, E, plan=P), contribution(5, G, (F, 4, R), plan=Q), False, True),
    "of before its last one": (contribution(4, E, plan=P), contribution(5, G, (F, 3, R), plan=Q), False, True),
    "the same state, in a round that was tried again": (contribution(4, E, plan=P), contribution(5, G, (E, 4, R), plan=Q), False, False),
    "of an epoch in which nobody saw it": (contribution(2, E, plan=P), contribution(5, G, (F, 3, R), plan=Q), False, False),
    "two ends of one epoch": (contribution(5, E, (G, 3, R), plan=P), contribution(5, F, (G, 3, R), plan=Q), False, False),
    "the run went back": (contribution(7, E, plan=P), contribution(5, G, (F, 4, R), plan=Q), False, False),
}


@pytest.mark.parametrize("case", CHAINS)
def test_who_begins_with_another_state_than_it_ended_with_contradicts_itself_or_is_seen_to(case: str) -> None:
    earlier, later, broken, elsewhere = CHAINS[case]
    assert breaks_chain(earlier, later) is broken
    assert breaks_chain(later, earlier) is broken
    assert begins_elsewhere(later, [earlier]) is elsewhere
    assert begins_elsewhere(later, []) is False


def test_statements_of_two_lines_of_a_run_that_went_back_contradict_nothing() -> None:
    plans = {(line, epoch): bytes([line, epoch]) * 16 for line in (1, 2) for epoch in range(10, 14)}
    said = [
        contribution(epoch, plan[::-1], (plans[line, epoch - 1][::-1], epoch - 1, plans[line, epoch - 1]), plan=plan)
        for (line, epoch), plan in plans.items()
        if epoch > 10
    ]
    assert not any(breaks_chain(one, other) for one in said for other in said)
