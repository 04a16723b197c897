from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import Epoch, PeerId, SwarmTime
from protocols.proto.swarm.v1 import records_pb2 as pb
from protocols.record_keeping import (
    MAX_RECORD_BYTES,
    PRESENCE_TTL_S,
    PROGRESS_TTL_S,
    RecordReader,
    SealedRecord,
    record_key,
    record_validator,
    seal_presence,
    seal_progress,
)
from protocols.records import Presence, Progress
from tests.helpers.run_world import ADDRESS, NOW, RunWorld, identity

WORLD = RunWorld()
OTHER = RunWorld(number=2)
READER = RecordReader(WORLD.run, WORLD.authority_key)
PRESENCE = Presence(
    identity(1).peer,
    "192.0.2.1:7001",
    WORLD.chain(1).leaf_pem,
    (ADDRESS,),
    "trainer",
    "NVIDIA H200",
    12_500_000,
    SwarmTime(NOW - 5),
    "swarm-peer 0.1.0",
)
PROGRESS = Progress(identity(1).peer, Epoch(7), 64, 12.5, 1792, b"h" * 32, "training", 2.5, 1000, 2000, NOW)
SEALED_PRESENCE = seal_presence(PRESENCE, WORLD.sealer(1), NOW)
SEALED_PROGRESS = seal_progress(PROGRESS, WORLD.sealer(1))


def verdict(record: SealedRecord, now: float = NOW, **changes: object) -> str | None:
    moved = replace(record, **changes)  # type: ignore[arg-type]
    return READER.validate(moved.key, moved.subkey, moved.value, moved.expires_at, SwarmTime(now))


def test_records_read_back() -> None:
    assert READER.presence(SEALED_PRESENCE.value, NOW) == PRESENCE
    assert READER.progress(SEALED_PROGRESS.value, NOW) == PROGRESS
    delegated = seal_presence(PRESENCE, WORLD.sealer(1, WORLD.delegate()), NOW)
    leaf = WORLD.chain(1, WORLD.delegate()).leaf_pem
    assert READER.presence(delegated.value, NOW) == replace(PRESENCE, certificate_pem=leaf), "the certificate is the envelope's"


@pytest.mark.parametrize(
    "changes", [{"loss": None}, {"state_hash": b""}, {"samples_per_s": 0.0, "samples": 0, "epoch": Epoch(0)}, {"phase": "leaving"}]
)
def test_progress_without_this_or_that_reads_back(changes: dict[str, object]) -> None:
    progress = replace(PROGRESS, **changes)  # type: ignore[arg-type]
    assert READER.progress(seal_progress(progress, WORLD.sealer(1)).value, NOW) == progress


def test_a_diverged_loss_is_announced_as_none() -> None:
    for loss in (math.nan, math.inf):
        sealed = seal_progress(replace(PROGRESS, loss=loss), WORLD.sealer(1))
        assert READER.progress(sealed.value, NOW).loss is None


def test_a_client_has_no_address() -> None:
    client = replace(PRESENCE, role="client", address="")
    assert READER.presence(seal_presence(client, WORLD.sealer(1), NOW).value, NOW) == client


def test_where_and_how_long_records_live() -> None:
    assert SEALED_PRESENCE.key == record_key(WORLD.run, "presence") == f"{WORLD.run}/presence"
    assert SEALED_PROGRESS.key == f"{WORLD.run}/progress"
    assert SEALED_PRESENCE.subkey == str(identity(1).peer)
    assert SEALED_PRESENCE.expires_at == NOW + PRESENCE_TTL_S
    assert SEALED_PROGRESS.expires_at == NOW + PROGRESS_TTL_S
    assert verdict(SEALED_PRESENCE) is None
    assert verdict(SEALED_PROGRESS) is None
    assert (
        record_validator(WORLD.run, WORLD.authority_key)(
            SEALED_PRESENCE.key, SEALED_PRESENCE.subkey, SEALED_PRESENCE.value, SEALED_PRESENCE.expires_at, NOW
        )
        is None
    )


@given(st.floats(0, 2**40))
def test_our_own_expiry_is_accepted_at_any_time(now: float) -> None:
    """Rounding to milliseconds must not make a record live longer than its signature says."""
    sealed = seal_progress(replace(PROGRESS, time=SwarmTime(NOW + now % 1000)), WORLD.sealer(1))
    assert verdict(sealed, NOW + now % 1000) is None


@pytest.mark.parametrize("record", [SEALED_PRESENCE, SEALED_PROGRESS])
def test_every_bit_is_protected(record: SealedRecord) -> None:
    for position in range(len(record.value)):
        tampered = bytearray(record.value)
        tampered[position] ^= 1
        assert verdict(record, value=bytes(tampered))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"subkey": str(identity(2).peer)}, "another peer's name"),
        ({"subkey": ""}, "another peer's name"),
        ({"key": f"{WORLD.run}/progress"}, "kind 'presence' where 'progress'"),
        ({"key": f"{OTHER.run}/presence"}, "no record of this run"),
        ({"key": f"{WORLD.run}/passwords"}, "no record of this run"),
        ({"key": f"{WORLD.run}"}, "no record of this run"),
        ({"key": f"{WORLD.run}/presence/x"}, "no record of this run"),
        ({"expires_at": NOW + PRESENCE_TTL_S + 0.01}, "longer than its signer said"),
        ({"expires_at": math.nan}, "longer than its signer said"),
        ({"value": b""}, "not an envelope"),
        ({"value": SEALED_PRESENCE.value + bytes(MAX_RECORD_BYTES)}, "too large"),
    ],
)
def test_records_in_the_wrong_place_are_refused(changes: dict[str, object], words: str) -> None:
    reason = verdict(SEALED_PRESENCE, **changes)  # type: ignore[arg-type]
    assert reason is not None
    assert words in reason


def test_a_shorter_life_is_the_storers_choice() -> None:
    assert verdict(SEALED_PRESENCE, expires_at=NOW + 1) is None


def test_expired_and_future_records_are_refused() -> None:
    assert "expired" in str(verdict(SEALED_PROGRESS, NOW + PROGRESS_TTL_S + 10))
    assert "future" in str(verdict(SEALED_PROGRESS, NOW - 10))


def test_records_that_want_to_live_too_long_are_refused() -> None:
    value = WORLD.sealer(1).seal("presence", PRESENCE.encode(), NOW, 10_000.0)
    assert "wants to live" in str(verdict(SEALED_PRESENCE, value=value))


def test_strangers_records_are_refused() -> None:
    for sealer in (
        OTHER.sealer(1),
        replace(WORLD.sealer(1), certificate=OTHER.chain(1).to_bytes()),
        replace(WORLD.sealer(1), signer=identity(2)),
    ):
        value = sealer.seal("presence", PRESENCE.encode(), NOW, PRESENCE_TTL_S)
        assert verdict(SEALED_PRESENCE, value=value)


BAD_PRESENCE: list[dict[str, object]] = [
    {"role": "boss"},
    {"role": ""},
    {"role": "client"},
    {"address": ""},
    {"address": "no-port"},
    {"address": "host:0"},
    {"address": "host:70000"},
    {"address": "ho st:1"},
    {"address": "host:1\n"},
    {"libp2p_addresses": ["ip4/x"]},
    {"libp2p_addresses": ["/a"] * 17},
    {"libp2p_addresses": ["/\x1b[31m"]},
    {"device": "\x1b]0;owned\x07"},
    {"device": "d" * 300},
    {"agent": "a\nb"},
    {"bandwidth_bytes_per_s": 10**13},
    {"started_at": math.nan},
    {"started_at": math.inf},
    {"started_at": -1.0},
    {"started_at": NOW + 100},
]
BAD_PROGRESS: list[dict[str, object]] = [
    {"epoch": 2**41},
    {"samples": 10**10},
    {"samples_per_s": math.nan},
    {"samples_per_s": math.inf},
    {"samples_per_s": -1.0},
    {"samples_per_s": 1e9},
    {"accepted_samples": 2**60},
    {"state_hash": b"short"},
    {"state_hash": b"h" * 33},
    {"phase": "sleeping"},
    {"phase": ""},
    {"loss": math.nan},
    {"loss": -math.inf},
    {"loss": 1e12},
    {"sent_bytes": 2**63},
    {"received_bytes": 2**63},
]


@pytest.mark.parametrize("changes", BAD_PRESENCE)
def test_absurd_presence_is_refused_although_signed(changes: dict[str, object]) -> None:
    message = pb.Presence.FromString(PRESENCE.encode())
    _change(message, changes)
    value = WORLD.sealer(1).seal("presence", message.SerializeToString(), NOW, PRESENCE_TTL_S)
    with pytest.raises(RemoteProtocolError) as caught:
        READER.presence(value, NOW)
    assert caught.value.peer == identity(1).peer
    assert verdict(SEALED_PRESENCE, value=value) == str(caught.value)


@pytest.mark.parametrize("changes", BAD_PROGRESS)
def test_absurd_progress_is_refused_although_signed(changes: dict[str, object]) -> None:
    message = pb.Progress.FromString(PROGRESS.encode())
    _change(message, changes)
    value = WORLD.sealer(1).seal("progress", message.SerializeToString(), NOW, PROGRESS_TTL_S)
    with pytest.raises(RemoteProtocolError) as caught:
        READER.progress(value, NOW)
    assert caught.value.peer == identity(1).peer
    assert verdict(SEALED_PROGRESS, value=value) == str(caught.value)


def _change(message: pb.Presence | pb.Progress, changes: dict[str, object]) -> None:
    for name, value in changes.items():
        if isinstance(value, list):
            message.ClearField(name)
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)


@pytest.mark.parametrize("address", ["example.org:1", "[2001:db8::1]:65535", "192.0.2.1:7001", "node_7:80"])
def test_addresses_that_people_have(address: str) -> None:
    presence = replace(PRESENCE, address=address)
    assert READER.presence(seal_presence(presence, WORLD.sealer(1), NOW).value, NOW).address == address


def test_what_others_would_refuse_is_not_signed() -> None:
    with pytest.raises(LocalProtocolError, match="others would refuse our progress"):
        seal_progress(replace(PROGRESS, samples=10**10), WORLD.sealer(1))
    with pytest.raises(LocalProtocolError, match="others would refuse our presence"):
        seal_presence(replace(PRESENCE, address="nowhere"), WORLD.sealer(1), NOW)
    with pytest.raises(LocalProtocolError, match="as our own"):
        seal_progress(replace(PROGRESS, peer=identity(2).peer), WORLD.sealer(1))


@given(st.binary(max_size=300))
def test_garbage_is_refused_as_garbage(data: bytes) -> None:
    for read in (READER.presence, READER.progress):
        with pytest.raises(RemoteProtocolError):
            read(data, NOW)
    assert verdict(SEALED_PRESENCE, value=data)


@given(st.binary(max_size=60), st.sampled_from(["presence", "progress"]))
def test_signed_garbage_is_refused_or_sound(payload: bytes, kind: str) -> None:
    value = WORLD.sealer(1).seal(kind, payload, NOW, 10.0)
    try:
        found: PeerId | None = (READER.presence(value, NOW) if kind == "presence" else READER.progress(value, NOW)).peer
    except RemoteProtocolError as error:
        found = error.peer
    assert found == identity(1).peer


@given(st.text(max_size=80), st.text(max_size=60))
def test_any_key_gets_an_answer(key: str, subkey: str) -> None:
    assert verdict(SEALED_PRESENCE, key=key)
    assert verdict(SEALED_PRESENCE, subkey=subkey)
