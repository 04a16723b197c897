from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocols.canonical import from_milliseconds, pack_fields, pack_time, to_milliseconds, unpack_fields, unpack_time
from protocols.certificate import membership_checker
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import PeerId, RunId, SwarmTime
from protocols.signing import (
    CLOCK_SKEW_S,
    MAX_ENVELOPE_BYTES,
    SIGNATURE_BYTES,
    Sealer,
    open_envelope,
    verify_envelope,
    verify_signature,
)
from tests.helpers.run_world import NOW, RunWorld, identity

WORLD = RunWorld()
OTHER_WORLD = RunWorld(number=2)
MEMBERSHIP = membership_checker(WORLD.run, WORLD.authority_key)
SEALED = WORLD.sealer(1).seal("join", b"payload", NOW, 60.0)


def opened(data: bytes, kind: str = "join", run: RunId = WORLD.run, now: float = NOW) -> tuple[PeerId, bytes]:
    return open_envelope(data, kind, run, SwarmTime(now), MEMBERSHIP)


def test_an_envelope_says_who_and_what() -> None:
    assert opened(SEALED) == (identity(1).peer, b"payload")
    envelope = verify_envelope(SEALED, "join", WORLD.run, NOW, MEMBERSHIP)
    assert (envelope.issued_at, envelope.expires_at) == (NOW, NOW + 60)
    assert envelope.certificate == WORLD.chain(1).to_bytes()


def test_a_delegates_member_is_a_member() -> None:
    sealed = WORLD.sealer(2, WORLD.delegate()).seal("join", b"", NOW, 60.0)
    assert opened(sealed) == (identity(2).peer, b"")


def test_every_bit_is_protected() -> None:
    for position in range(len(SEALED)):
        for bit in (1, 0x80):
            tampered = bytearray(SEALED)
            tampered[position] ^= bit
            with pytest.raises(RemoteProtocolError):
                opened(bytes(tampered))


def test_nothing_can_be_cut_off_or_added() -> None:
    for cut in range(len(SEALED)):
        with pytest.raises(RemoteProtocolError):
            opened(SEALED[:cut])
    for added in (
        SEALED + b"\0",
        b"\0" + SEALED,
        SEALED + SEALED,
        SEALED[:-SIGNATURE_BYTES] + pack_fields(b"") + SEALED[-SIGNATURE_BYTES:],
    ):
        with pytest.raises(RemoteProtocolError):
            opened(added)


@pytest.mark.parametrize("field", range(8))
def test_a_field_replaced_and_signed_by_somebody_else_is_refused(field: int) -> None:
    """Each field in turn is exchanged for another valid value; the signature stays, or is another member's."""
    other = OTHER_WORLD.sealer(2).seal("commit", b"other", SwarmTime(NOW + 1), 50.0)
    fields = list(unpack_fields(SEALED[:-SIGNATURE_BYTES], 8))
    fields[field] = b"swarm.v2.envelope" if field == 0 else unpack_fields(other[:-SIGNATURE_BYTES], 8)[field]
    body = pack_fields(*fields)
    for signature in (SEALED[-SIGNATURE_BYTES:], identity(3).sign(body)):
        with pytest.raises(RemoteProtocolError):
            opened(body + signature)


def test_the_right_key_over_the_wrong_thing_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="kind 'join' where 'commit'"):
        opened(SEALED, kind="commit")
    with pytest.raises(RemoteProtocolError, match="not of"):
        opened(SEALED, run=OTHER_WORLD.run)


@pytest.mark.parametrize(
    ("now", "fault"),
    [
        (NOW - CLOCK_SKEW_S - 0.5, "in the future"),
        (NOW - CLOCK_SKEW_S, None),
        (NOW, None),
        (NOW + 60 + CLOCK_SKEW_S, None),
        (NOW + 60 + CLOCK_SKEW_S + 0.5, "expired"),
    ],
)
def test_time_is_judged_with_three_seconds_of_patience(now: float, fault: str | None) -> None:
    if fault is None:
        assert opened(SEALED, now=now)[1] == b"payload"
    else:
        with pytest.raises(RemoteProtocolError, match=fault):
            opened(SEALED, now=now)


def test_another_members_certificate_does_not_help() -> None:
    borrowed = replace(WORLD.sealer(1), certificate=WORLD.chain(2).to_bytes()).seal("join", b"", NOW, 60.0)
    with pytest.raises(RemoteProtocolError, match="with the certificate of"):
        opened(borrowed)


@pytest.mark.parametrize("certificate", [b"", b"garbage", OTHER_WORLD.chain(1).to_bytes()])
def test_a_stranger_is_refused(certificate: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        opened(replace(WORLD.sealer(1), certificate=certificate).seal("join", b"", NOW, 60.0))


def test_a_member_whose_certificate_ran_out_is_refused() -> None:
    sealer = Sealer(identity(1), WORLD.chain(1, not_after=NOW + 10).to_bytes(), WORLD.run)
    sealed = sealer.seal("join", b"", NOW, 600.0)
    assert opened(sealed, now=NOW + 10)
    with pytest.raises(RemoteProtocolError, match="has expired"):
        opened(sealed, now=NOW + 20)


def test_the_blame_goes_to_the_signer_only_once_it_is_proven() -> None:
    with pytest.raises(RemoteProtocolError) as proven:
        opened(SEALED, kind="commit")
    assert proven.value.peer == identity(1).peer
    with pytest.raises(RemoteProtocolError) as unproven:
        opened(SEALED[:-1] + bytes([SEALED[-1] ^ 1]))
    assert unproven.value.peer is None


@given(st.binary(max_size=400))
def test_garbage_is_refused_as_garbage(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        opened(data)


@given(st.lists(st.binary(max_size=40), min_size=8, max_size=8))
def test_well_formed_garbage_is_refused_as_garbage(fields: list[bytes]) -> None:
    body = pack_fields(b"swarm.v1.envelope", *fields[1:])
    with pytest.raises(RemoteProtocolError):
        opened(body + bytes(SIGNATURE_BYTES))


def test_oversized_envelopes_are_neither_read_nor_made() -> None:
    with pytest.raises(RemoteProtocolError, match="too large"):
        opened(bytes(MAX_ENVELOPE_BYTES + 1))
    with pytest.raises(LocalProtocolError):
        WORLD.sealer(1).seal("join", bytes(MAX_ENVELOPE_BYTES), NOW, 60.0)


@pytest.mark.parametrize(
    ("kind", "issued_at", "lifetime_s"),
    [("", NOW, 60.0), ("k" * 65, NOW, 60.0), ("k", NOW, 0.0), ("k", NOW, -5.0), ("k", -1.0, 60.0), ("k", float("nan"), 60.0)],
)
def test_nonsense_is_not_signed(kind: str, issued_at: float, lifetime_s: float) -> None:
    with pytest.raises(LocalProtocolError):
        WORLD.sealer(1).seal(kind, b"", SwarmTime(issued_at), lifetime_s)


def test_malformed_keys_and_signatures_are_simply_wrong() -> None:
    signature = identity(1).sign(b"m")
    assert verify_signature(identity(1).public_key, signature, b"m")
    assert not verify_signature(identity(1).public_key, signature, b"n")
    assert not verify_signature(identity(2).public_key, signature, b"m")
    assert not verify_signature(b"", signature, b"m")
    assert not verify_signature(identity(1).public_key, b"", b"m")


@given(st.integers(0, 2**52))
@example(8_749_135_907_897)
@example(4_467_760_140_955_557)
def test_times_on_the_wire_stay_where_they_are(milliseconds: int) -> None:
    time = from_milliseconds(milliseconds)
    assert to_milliseconds(time) == milliseconds
    assert unpack_time(pack_time(time)) == time


@pytest.mark.parametrize("time", [-0.001, float("nan"), float("inf"), 1e300])
def test_what_is_no_time_is_refused(time: float) -> None:
    with pytest.raises(ValueError, match="not a time"):
        to_milliseconds(SwarmTime(time))
