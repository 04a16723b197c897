"""Invites: everything a stranger needs to find a run and ask to be let in, as one link.

    swarm://join/<base64url of: version u8 | length u32 | body | signature 64 | checksum 4>

The body is `swarm.v1.InviteBody`; the signature is the authority's, or that of a delegate whose certificate is inside. The checksum tells a
link that was cut or mistyped from one that somebody changed. An invite carries no address that is trusted and no spec: whoever answers at
its addresses must show a spec with exactly its fingerprint.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from dataclasses import dataclass, field

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError

from protocols.canonical import from_milliseconds, pack_fields, to_milliseconds
from protocols.certificate import verify_delegate
from protocols.errors import InviteError, LocalProtocolError, RemoteProtocolError
from protocols.ids import PUBLIC_KEY_BYTES, RunId, SwarmTime
from protocols.issuing import Issuer
from protocols.proto.swarm.v1 import admission_pb2 as pb
from protocols.signing import CLOCK_SKEW_S, SIGNATURE_BYTES, Signer, verify_signature

LINK_PREFIX = "swarm://join/"
TOKEN_BYTES = 16
MAX_LINK_CHARS = 16 * 1024
MAX_ADDRESSES = 16
MAX_ADDRESS_CHARS = 256

_VERSION = 1
_DOMAIN = b"swarm.v1.invite"
_HEADER = struct.Struct("<BI")
_CHECKSUM_BYTES = 4
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ADDRESS = re.compile(r"/[\x21-\x7e]+/p2p/[1-9A-HJ-NP-Za-km-z]+")
_LINK_BODY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Invite:
    """What an invite says.

    Args:
        run: fingerprint of the run.
        run_name: for people.
        authority_key: 32 raw bytes; the run's spec and certificates must be signed by it.
        addresses: libp2p addresses of members, each ending in /p2p/<id>; tried in turn.
        token: 16 bytes that name this invite where its uses are counted.
        expires_at: after that it lets nobody in.
        max_uses: how many peers it lets in; 0: any number.
        delegate_certificate: DER; empty if the authority signed and gives nothing away.
        delegate_seed: 32 bytes, the private key that goes with it; only in the invites of open runs.
        signed_by_delegate: whose signature it bears.
        sealed: the signed bytes it was read from, to be shown at the admission desk; empty for one that is being written.
    """

    run: RunId
    run_name: str
    authority_key: bytes
    addresses: tuple[str, ...]
    token: bytes
    expires_at: SwarmTime
    max_uses: int = 0
    delegate_certificate: bytes = b""
    delegate_seed: bytes = field(default=b"", repr=False)
    signed_by_delegate: bool = False
    sealed: bytes = field(default=b"", repr=False, compare=False)

    @property
    def is_open(self) -> bool:
        """Whoever holds it can certify itself."""
        return bool(self.delegate_seed)

    @property
    def delegate(self) -> Issuer | None:
        """The admission key of an open run."""
        if not self.delegate_seed:
            return None
        return Issuer(Ed25519PrivateKey.from_private_bytes(self.delegate_seed), self.delegate_certificate)


def seal_invite(invite: Invite, signer: Signer) -> bytes:
    """Sign an invite; these bytes are what a joiner shows at the admission desk.

    Args:
        invite: what it says.
        signer: the authority, or the delegate whose certificate is inside.

    Raises:
        LocalProtocolError: it would be refused.
    """
    try:
        message = pb.InviteBody(
            run=invite.run.digest,
            run_name=invite.run_name,
            authority_key=invite.authority_key,
            addresses=invite.addresses,
            token=invite.token,
            expires_at_ms=to_milliseconds(invite.expires_at),
            max_uses=invite.max_uses,
            delegate_certificate=invite.delegate_certificate,
            delegate_seed=invite.delegate_seed,
            signed_by_delegate=invite.signed_by_delegate,
        )
    except ValueError as error:
        raise LocalProtocolError(f"this invite would be refused: {error}") from error
    problem = _problem(message)
    if problem:
        raise LocalProtocolError(f"this invite would be refused: {problem}")
    body = message.SerializeToString(deterministic=True)
    return body + signer.sign(pack_fields(_DOMAIN, body))


def invite_link(sealed: bytes) -> str:
    """The link that people paste.

    Args:
        sealed: from `seal_invite`.
    """
    framed = _HEADER.pack(_VERSION, len(sealed)) + sealed
    return LINK_PREFIX + base64.urlsafe_b64encode(framed + _checksum(framed)).rstrip(b"=").decode()


def sealed_from_link(link: str) -> bytes:
    """Undo `invite_link`; checks that the link is whole, not that it is genuine.

    Args:
        link: as pasted; blanks and line breaks are forgiven anywhere.

    Raises:
        InviteError: unreadable, cut short, mistyped, or of another version.
    """
    text = "".join(link.split())
    if not text.startswith(LINK_PREFIX):
        raise InviteError(f"This is not an invite: an invite starts with {LINK_PREFIX}; ask for the link again.")
    text = text.removeprefix(LINK_PREFIX)
    if len(text) > MAX_LINK_CHARS or not _LINK_BODY.fullmatch(text):
        raise InviteError("This invite cannot be read: it holds characters that no invite has; copy the whole link again.")
    try:
        framed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        # A number of characters that no bytes encode to: at least one is missing.
        raise InviteError("This invite is cut short: copy the whole link again.") from None
    if len(framed) < _HEADER.size:
        raise InviteError("This invite is cut short: copy the whole link again.")
    version, length = _HEADER.unpack_from(framed)
    if version != _VERSION:
        raise InviteError(
            f"This invite is of version {version} and this program reads version {_VERSION}: install the version that the run uses."
        )
    end = _HEADER.size + length
    if len(framed) < end + _CHECKSUM_BYTES:
        raise InviteError("This invite is cut short: copy the whole link again.")
    if framed[end:] != _checksum(framed[:end]):
        raise InviteError("This invite was damaged on its way: copy the whole link again.")
    return framed[_HEADER.size : end]


def open_invite(sealed: bytes, now: SwarmTime) -> Invite:
    """Read and verify an invite.

    Args:
        sealed: from `seal_invite` or `sealed_from_link`.
        now: our clock.

    Raises:
        InviteError: altered, expired, or not an invite.
    """
    body, signature = sealed[:-SIGNATURE_BYTES], sealed[-SIGNATURE_BYTES:]
    try:
        message = pb.InviteBody.FromString(body)
    except DecodeError:
        raise InviteError("This invite cannot be read: ask whoever sent it for a new one.") from None
    problem = _problem(message)
    if problem:
        raise InviteError(f"This invite cannot be used, {problem}: ask whoever sent it for a new one.")
    expires_at = from_milliseconds(message.expires_at_ms)
    signer = message.authority_key
    expired = now > expires_at + CLOCK_SKEW_S
    if message.delegate_certificate:
        try:
            # At the time of the invite's own end if that is over, so that an old invite is called expired and not altered.
            delegate = verify_delegate(message.delegate_certificate, message.authority_key, expires_at if expired else now)
        except RemoteProtocolError as error:
            raise InviteError(f"This invite was altered or is out of date ({error.reason}): ask whoever sent it for a new one.") from None
        if message.delegate_seed and _public_key(message.delegate_seed) != delegate:
            raise InviteError("This invite was altered, its admission key is another one's: ask whoever sent it for a new one.")
        signer = delegate if message.signed_by_delegate else signer
    if not verify_signature(signer, signature, pack_fields(_DOMAIN, body)):
        raise InviteError("This invite was altered, its signature does not hold: ask whoever sent it for a new one.")
    if expired:
        raise InviteError(f"This invite expired {_ago(now - expires_at)} ago: ask whoever sent it for a new one.")
    return Invite(
        RunId(message.run),
        message.run_name,
        message.authority_key,
        tuple(message.addresses),
        message.token,
        expires_at,
        message.max_uses,
        message.delegate_certificate,
        message.delegate_seed,
        message.signed_by_delegate,
        sealed,
    )


def make_invite(invite: Invite, signer: Signer) -> str:
    """The link of a new invite: `seal_invite` and `invite_link`."""
    return invite_link(seal_invite(invite, signer))


def read_invite(link: str, now: SwarmTime) -> Invite:
    """What a link says: `sealed_from_link` and `open_invite`.

    Raises:
        InviteError: one sentence.
    """
    return open_invite(sealed_from_link(link), now)


def _problem(message: pb.InviteBody) -> str | None:
    """What no honest invite has, in half a sentence."""
    try:
        from_milliseconds(message.expires_at_ms)
    except ValueError:
        return "it has no valid end"
    checks = (
        (len(message.run) == 32 and bool(_RUN_NAME.fullmatch(message.run_name)), "it names no run"),
        (len(message.authority_key) == PUBLIC_KEY_BYTES, "it names no authority"),
        (0 < len(message.addresses) <= MAX_ADDRESSES, f"it has {len(message.addresses)} addresses and may have 1 to {MAX_ADDRESSES}"),
        (
            all(len(a) <= MAX_ADDRESS_CHARS and _ADDRESS.fullmatch(a) for a in message.addresses),
            "one of its addresses is not a libp2p address",
        ),
        (len(message.token) == TOKEN_BYTES, "it has no token"),
        (len(message.delegate_seed) in (0, 32), "its admission key is malformed"),
        (
            bool(message.delegate_certificate) or not (message.delegate_seed or message.signed_by_delegate),
            "its delegate has no certificate",
        ),
    )
    return next((sentence for holds, sentence in checks if not holds), None)


def _public_key(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def _checksum(data: bytes) -> bytes:
    return blake3(data).digest(_CHECKSUM_BYTES)


def _ago(seconds: float) -> str:
    for unit, size_s in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size_s:
            count = int(seconds // size_s)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{seconds:.0f} seconds"
