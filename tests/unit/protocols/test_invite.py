from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ExitCode, InviteError, LocalProtocolError
from protocols.ids import RunId, SwarmTime
from protocols.invite import LINK_PREFIX, Invite, invite_link, make_invite, open_invite, read_invite, seal_invite, sealed_from_link
from protocols.proto.swarm.v1 import admission_pb2 as pb
from protocols.signing import CLOCK_SKEW_S, SIGNATURE_BYTES
from tests.helpers.run_world import ADDRESS, DAY_S, NOW, RunWorld

WORLD = RunWorld()
OTHER = RunWorld(number=2)
PRIVATE = WORLD.invite(addresses=(ADDRESS, ADDRESS.replace("4001", "4002")), max_uses=3)
OPEN = WORLD.open_run_invite()
BY_DELEGATE = WORLD.invite(delegate_certificate=WORLD.delegate().certificate, signed_by_delegate=True)
SIGNED_BY = [(PRIVATE, WORLD.authority), (OPEN, WORLD.authority), (BY_DELEGATE, WORLD.delegate())]
LINK = make_invite(PRIVATE, WORLD.authority)


@pytest.mark.parametrize(("invite", "signer"), SIGNED_BY)
def test_a_link_reads_back(invite: Invite, signer: object) -> None:
    link = make_invite(invite, signer)  # type: ignore[arg-type]
    assert link.startswith("swarm://join/")
    assert len(link) < 2000, "people paste it"
    read = read_invite(link, NOW)
    assert read == invite
    assert invite_link(read.sealed) == link


def test_only_an_open_runs_invite_gives_an_admission_key_away() -> None:
    assert not PRIVATE.is_open
    assert PRIVATE.delegate is None
    delegate = OPEN.delegate
    assert delegate is not None
    assert delegate.public_key == WORLD.delegate().public_key
    assert OPEN.delegate_seed.hex() not in repr(OPEN)


def test_blanks_and_line_breaks_of_a_mail_program_are_forgiven() -> None:
    wrapped = "\n  ".join(LINK[i : i + 60] for i in range(0, len(LINK), 60))
    assert read_invite(f" {wrapped}\r\n", NOW) == PRIVATE


def fails(link: str, words: str, now: float = NOW) -> None:
    with pytest.raises(InviteError, match=words) as caught:
        read_invite(link, SwarmTime(now))
    assert caught.value.exit_code is ExitCode.INVITE
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("text", ["", "hello", "http://join/abc", LINK[5:], LINK.upper()])
def test_other_text_is_not_an_invite(text: str) -> None:
    fails(text, "This is not an invite")


@pytest.mark.parametrize("text", [LINK_PREFIX, LINK_PREFIX + "a+b/", LINK + "é", LINK + "!", LINK_PREFIX + "a" * 20_000])
def test_unreadable_links_say_so(text: str) -> None:
    fails(text, "cannot be read")


def test_a_link_cut_anywhere_is_called_cut_short() -> None:
    for length in range(len(LINK_PREFIX) + 1, len(LINK)):
        fails(LINK[:length], "is cut short")


def test_one_mistyped_character_is_called_damage() -> None:
    for position in range(len(LINK_PREFIX) + 8, len(LINK) - 1):
        changed = "A" if LINK[position] != "A" else "B"
        fails(LINK[:position] + changed + LINK[position + 1 :], "was damaged")
    fails(LINK + "AAAA", "was damaged")


def test_a_newer_version_is_named() -> None:
    framed = bytearray(base64.urlsafe_b64decode(LINK.removeprefix(LINK_PREFIX) + "=="))
    framed[0] = 9
    fails(LINK_PREFIX + base64.urlsafe_b64encode(framed).decode().rstrip("="), "version 9 and this program reads version 1")


def test_expiry() -> None:
    assert read_invite(LINK, SwarmTime(PRIVATE.expires_at + CLOCK_SKEW_S)) == PRIVATE
    fails(LINK, "expired 10 seconds ago", PRIVATE.expires_at + 10)
    fails(LINK, "expired 2 hours ago", PRIVATE.expires_at + 7300)
    fails(make_invite(OPEN, WORLD.authority), "expired 3 days ago", OPEN.expires_at + 3 * DAY_S)


CHANGES = {
    "run": b"\7" * 32,
    "run_name": "other",
    "authority_key": OTHER.authority_key,
    "token": b"u" * 16,
    "expires_at_ms": 1_900_000_000_000,
    "max_uses": 4,
    "delegate_certificate": WORLD.delegate(2).certificate,
    "delegate_seed": WORLD.delegate(2).private_key.private_bytes_raw(),
    "signed_by_delegate": True,
    "addresses": "/ip4/198.51.100.9/tcp/1/p2p/12D3KooWBBBB",
}


def test_the_changes_cover_every_field() -> None:
    assert set(CHANGES) == set(pb.InviteBody.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize(("invite", "signer"), SIGNED_BY)
@pytest.mark.parametrize("name", CHANGES)
def test_every_field_is_protected_although_the_checksum_is_right(invite: Invite, signer: object, name: str) -> None:
    sealed = seal_invite(invite, signer)  # type: ignore[arg-type]
    message = pb.InviteBody.FromString(sealed[:-SIGNATURE_BYTES])
    value = CHANGES[name]
    if name == "addresses":
        message.addresses[0] = str(value)
    elif name == "signed_by_delegate":
        message.signed_by_delegate = not message.signed_by_delegate
    else:
        setattr(message, name, value)
    tampered = message.SerializeToString(deterministic=True) + sealed[-SIGNATURE_BYTES:]
    assert tampered != sealed
    fails(invite_link(tampered), "was altered|cannot be used")


def test_an_unknown_field_is_protected_too() -> None:
    sealed = seal_invite(PRIVATE, WORLD.authority)
    fails(invite_link(sealed[:-SIGNATURE_BYTES] + b"\xa0\x06\x01" + sealed[-SIGNATURE_BYTES:]), "was altered")


def test_a_stranger_cannot_sign() -> None:
    fails(make_invite(PRIVATE, OTHER.authority), "its signature does not hold")
    fails(make_invite(PRIVATE, WORLD.delegate()), "its signature does not hold")
    fails(make_invite(BY_DELEGATE, WORLD.delegate(2)), "its signature does not hold")
    fails(
        make_invite(replace(BY_DELEGATE, delegate_certificate=OTHER.delegate().certificate), OTHER.delegate()),
        "was altered or is out of date",
    )


def test_a_delegates_invite_ends_with_the_delegate() -> None:
    short = replace(BY_DELEGATE, delegate_certificate=WORLD.delegate(not_after=NOW + 100).certificate)
    link = make_invite(short, WORLD.delegate())
    assert read_invite(link, NOW) == short
    fails(link, "out of date", NOW + 200)


@pytest.mark.parametrize(
    "changes",
    [
        {"addresses": ()},
        {"addresses": (ADDRESS,) * 17},
        {"addresses": ("192.0.2.1:80",)},
        {"addresses": ("/ip4/192.0.2.1/tcp/1",)},
        {"addresses": (ADDRESS + "A" * 300,)},
        {"addresses": ("/ip4/\x1b[31m/p2p/12D3KooWAAAA",)},
        {"token": b""},
        {"run_name": "a b"},
        {"run_name": ""},
        {"authority_key": b"k"},
        {"expires_at": SwarmTime(-1.0)},
        {"max_uses": -1},
        {"max_uses": 2**40},
        {"delegate_seed": b"s"},
        {"delegate_seed": b"s" * 32},
        {"signed_by_delegate": True},
    ],
)
def test_what_would_be_refused_is_not_made(changes: dict[str, object]) -> None:
    with pytest.raises(LocalProtocolError, match="would be refused"):
        make_invite(WORLD.invite(**changes), WORLD.authority)


def test_what_would_not_be_made_is_refused() -> None:
    message = pb.InviteBody(run=b"short")
    body = message.SerializeToString()
    fails(invite_link(body + WORLD.authority.sign(body)), "cannot be used, it names no run")


@given(st.binary(max_size=300))
def test_garbage_is_refused_as_garbage(data: bytes) -> None:
    for text in (LINK_PREFIX + base64.urlsafe_b64encode(data).decode(), invite_link(data), data.decode("latin-1")):
        with pytest.raises(InviteError):
            read_invite(text, NOW)
    with pytest.raises(InviteError):
        open_invite(data, NOW)


@given(st.text(max_size=60))
def test_any_text_is_an_invite_or_an_error(text: str) -> None:
    for link in (text, LINK_PREFIX + text):
        with pytest.raises(InviteError):
            sealed_from_link(link)


@given(st.data())
def test_mutated_bodies_are_refused(data: st.DataObject) -> None:
    sealed = bytearray(seal_invite(OPEN, WORLD.authority))
    position = data.draw(st.integers(0, len(sealed) - 1))
    sealed[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InviteError):
        open_invite(bytes(sealed), NOW)


@given(st.floats(1_600_000_000, 2_000_000_000), st.integers(0, 2**32 - 1), st.binary(min_size=32, max_size=32))
def test_numbers_survive(expires_at: float, max_uses: int, run: bytes) -> None:
    invite = WORLD.invite(expires_at=SwarmTime(round(expires_at, 3)), max_uses=max_uses, run=RunId(run))
    assert read_invite(make_invite(invite, WORLD.authority), SwarmTime(expires_at - 1)) == invite


def test_an_invite_of_one_key_is_nothing_under_another_checksum() -> None:
    """The checksum is no secret: recomputing it must not make a tampered link genuine."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    sealed = seal_invite(PRIVATE, WORLD.authority)
    body = sealed[:-SIGNATURE_BYTES]
    fails(invite_link(body + key.sign(body)), "its signature does not hold")
