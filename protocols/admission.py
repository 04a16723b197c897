"""Admission: a pure desk that turns an invite and a proof of identity into a membership certificate, or says why not.

    joiner                                     desk (the authority, or a delegate it appointed)
    AdmissionRequest{peer, invite, TLS key,    ──►  same protocol? same run? clocks agree? identity proven? invite genuine, not expired,
      binding, time, proof}                         not used up? not banned?
                                               ◄──  certificate chain and the run's root, or a code and a sentence

The desk remembers which peers each token has let in (its ledger), so that a peer that asks again costs the token nothing. Each desk counts
for itself: with several desks a token can be used `max_uses` times at each of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from protocols.canonical import from_milliseconds, pack_fields, pack_time, to_milliseconds
from protocols.certificate import MAX_VALIDITY_LEAD_S, MemberKey, binding_holds
from protocols.certificate_chain import CertificateChain
from protocols.errors import InviteError, LocalProtocolError, RemoteProtocolError
from protocols.ids import PeerId, RunId, SwarmTime
from protocols.invite import TOKEN_BYTES, Invite, open_invite
from protocols.issuing import Issuer, issue_member_certificate, serial_for
from protocols.messages import parse, require
from protocols.proto.swarm.v1 import admission_pb2 as pb
from protocols.signing import CLOCK_SKEW_S, Signer, verify_signature

PROTOCOL_VERSION = 3  # raise it with every change of SPEC.md that older members would take for a breach
MAX_REQUEST_BYTES = 16 * 1024
MAX_LEDGER_BYTES = 64 * 2**20
MEMBER_LIFETIME_S = 30 * 86400.0
"""How long a membership certificate lasts."""

REQUEST_TRAVEL_S = 15.0
"""How old a request may be on top of the clock skew: connections through a relay take their time."""

_PROOF_DOMAIN = b"swarm.v1.admission"


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """A stranger's wish to be let in.

    Args:
        key: who asks, its TLS key, and its signature over that key and the run.
        invite: the sealed invite it was given.
        time: its clock when it asked, to the millisecond.
        proof: its signature over all of this, so that nobody can spend somebody else's invite in its name.
        protocol_version: the protocol it speaks.
    """

    key: MemberKey
    invite: bytes
    time: SwarmTime
    proof: bytes
    protocol_version: int = PROTOCOL_VERSION

    def encode(self) -> bytes:
        """Wire bytes."""
        return pb.AdmissionRequest(
            protocol_version=self.protocol_version,
            peer=self.key.peer.public_key,
            invite=self.invite,
            tls_public_key=self.key.tls_public_key,
            binding=self.key.binding,
            time_ms=to_milliseconds(self.time),
            proof=self.proof,
        ).SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes, sender: PeerId | None) -> AdmissionRequest:
        """Read; signatures are the desk's to check.

        Raises:
            RemoteProtocolError: not a request.
        """
        require(len(data) <= MAX_REQUEST_BYTES, sender, f"an admission request of {len(data)} bytes is too large")
        m = parse(pb.AdmissionRequest, data, sender)
        try:
            key = MemberKey(PeerId(m.peer), m.tls_public_key, m.binding)
            return cls(key, m.invite, from_milliseconds(m.time_ms), m.proof, m.protocol_version)
        except ValueError as error:
            raise RemoteProtocolError(sender, f"a malformed admission request: {error}") from error


def make_request(signer: Signer, key: MemberKey, invite: bytes, now: SwarmTime) -> AdmissionRequest:
    """Ask for admission.

    Args:
        signer: the identity key of `key.peer`.
        key: the TLS key to be certified.
        invite: sealed.
        now: our clock.
    """
    time = from_milliseconds(to_milliseconds(now))
    return AdmissionRequest(key, invite, time, signer.sign(_proof_statement(PROTOCOL_VERSION, key, invite, time)))


def _proof_statement(version: int, key: MemberKey, invite: bytes, time: SwarmTime) -> bytes:
    fields = (version.to_bytes(4, "little"), key.peer.public_key, key.tls_public_key, key.binding, invite, pack_time(time))
    return pack_fields(_PROOF_DOMAIN, *fields)


@dataclass(frozen=True, slots=True)
class Admitted:
    """Let in.

    Args:
        chain: the new member's certificate, and the delegate's that issued it if one did.
        run_ca: the run's root, DER.
        time: the desk's clock.
    """

    chain: CertificateChain
    run_ca: bytes
    time: SwarmTime

    def encode(self) -> bytes:
        """Wire bytes."""
        reply = pb.AdmissionReply(certificates=self.chain.certificates, run_ca=self.run_ca, time_ms=to_milliseconds(self.time))
        return reply.SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes, sender: PeerId | None) -> Admitted:
        """Read; certificates are the reader's to verify.

        Raises:
            RemoteProtocolError: not a reply.
        """
        require(len(data) <= MAX_REQUEST_BYTES, sender, f"an admission reply of {len(data)} bytes is too large")
        m = parse(pb.AdmissionReply, data, sender)
        try:
            return cls(CertificateChain(tuple(m.certificates)), m.run_ca, from_milliseconds(m.time_ms))
        except ValueError as error:
            raise RemoteProtocolError(sender, f"a malformed admission reply: {error}") from error


@dataclass(frozen=True, slots=True)
class Refusal:
    """Not let in.

    Args:
        code: short stable word: protocol-version, wrong-run, clock-off, bad-identity, banned, bad-invite, invite-used-up.
        sentence: for the person who asked.
    """

    code: str
    sentence: str


@dataclass(slots=True)
class _Uses:
    expires_at: SwarmTime
    peers: set[bytes] = field(default_factory=set)


class AdmissionDesk:
    """Decides who gets in. One per process that may admit.

    Args:
        run: whose members it admits.
        authority_key: 32 raw bytes.
        run_ca: the run's root, DER.
        issuer: what it signs with.
    """

    def __init__(self, run: RunId, authority_key: bytes, run_ca: bytes, issuer: Issuer) -> None:
        self._run = run
        self._authority_key = authority_key
        self._run_ca = run_ca
        self._issuer = issuer
        self._uses: dict[bytes, _Uses] = {}
        self._banned: dict[PeerId, str] = {}

    def ban(self, peer: PeerId, sentence: str = "This identity is banned from the run.") -> None:
        """Let a peer in no more, nor anybody new by the invite that let it in; `sentence` tells its owner why."""
        self._banned[peer] = sentence

    def handle(self, request: AdmissionRequest, now: SwarmTime) -> Admitted | Refusal:
        """Decide on one request.

        Args:
            request: as decoded; nothing in it is trusted.
            now: the desk's clock.

        Returns:
            Admitted only after the use was counted: save `export_ledger` before answering.
        """
        refusal = self._refuse_stranger(request, now)
        if refusal:
            return refusal
        try:
            invite = open_invite(request.invite, now)
        except InviteError as error:
            return Refusal("bad-invite", str(error))
        refusal = self._refuse_invite(request.key.peer, invite)
        if refusal:
            return refusal
        self._count(request.key.peer, invite, now)
        serial = serial_for(self._issuer.public_key, request.key.peer.public_key, request.key.tls_public_key, pack_time(now))
        begins, ends = SwarmTime(now - MAX_VALIDITY_LEAD_S), SwarmTime(now + MEMBER_LIFETIME_S)
        chain = issue_member_certificate(self._issuer, request.key, self._run, serial, begins, ends)
        return Admitted(chain, self._run_ca, now)

    def _refuse_stranger(self, request: AdmissionRequest, now: SwarmTime) -> Refusal | None:
        """What is wrong with whoever asks, whatever its invite."""
        version, key = request.protocol_version, request.key
        if version != PROTOCOL_VERSION:
            advice = "install the version that the run uses"
            return Refusal("protocol-version", f"You speak protocol version {version} and this run speaks {PROTOCOL_VERSION}: {advice}.")
        ahead_s = request.time - now
        if ahead_s > CLOCK_SKEW_S or ahead_s < -CLOCK_SKEW_S - REQUEST_TRAVEL_S:
            return Refusal(
                "clock-off", f"Your clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the run's: set it by NTP."
            )
        if not verify_signature(key.peer.public_key, request.proof, _proof_statement(version, key, request.invite, request.time)):
            return Refusal("bad-identity", "The request is not signed by the identity that it names.")
        if not binding_holds(key, self._run):
            return Refusal("bad-identity", "The TLS key in the request is not a P-256 key that its identity signed for this run.")
        if key.peer in self._banned:
            return Refusal("banned", self._banned[key.peer])
        return None

    def _refuse_invite(self, peer: PeerId, invite: Invite) -> Refusal | None:
        if invite.run != self._run or invite.authority_key != self._authority_key:
            return Refusal("wrong-run", f"The invite is for run {invite.run.short} and this is run {self._run.short}.")
        uses = self._uses.get(invite.token)
        known = uses is not None and peer.public_key in uses.peers
        if uses and not known and any(PeerId(used) in self._banned for used in uses.peers):
            return Refusal(
                "invite-used-up", "The invite has let in a peer that is banned, and is worth nothing any more: ask for a new one."
            )
        if invite.max_uses and uses and not known and len(uses.peers) >= invite.max_uses:
            return Refusal("invite-used-up", f"The invite has let in the {invite.max_uses} peers that it was made for: ask for a new one.")
        return None

    def _count(self, peer: PeerId, invite: Invite, now: SwarmTime) -> None:
        """Note a use. Tokens that have expired let nobody in, so there is no need to remember them."""
        self._uses = {token: uses for token, uses in self._uses.items() if uses.expires_at + CLOCK_SKEW_S >= now}
        if invite.max_uses:
            uses = self._uses.setdefault(invite.token, _Uses(invite.expires_at))
            uses.expires_at = max(uses.expires_at, invite.expires_at)
            uses.peers.add(peer.public_key)

    def export_ledger(self) -> bytes:
        """What must outlive the process: the same uses always give the same bytes."""
        tokens = [
            pb.TokenUses(token=token, expires_at_ms=to_milliseconds(uses.expires_at), peers=sorted(uses.peers))
            for token, uses in sorted(self._uses.items())
        ]
        return pb.AdmissionLedger(run=self._run.digest, tokens=tokens).SerializeToString(deterministic=True)

    def import_ledger(self, data: bytes) -> None:
        """Take over what `export_ledger` wrote.

        Raises:
            LocalProtocolError: it is damaged or of another run; nothing was taken over.
        """
        try:
            ledger = pb.AdmissionLedger.FromString(data)
            read = {entry.token: _Uses(from_milliseconds(entry.expires_at_ms), set(entry.peers)) for entry in ledger.tokens}
            sound = all(len(token) == TOKEN_BYTES for token in read) and all(len(p) == 32 for uses in read.values() for p in uses.peers)
        except (DecodeError, ValueError) as error:
            raise LocalProtocolError(f"the admission ledger is damaged: {error}") from error
        if not sound or len(read) != len(ledger.tokens):
            raise LocalProtocolError("the admission ledger is damaged")
        if ledger.run != self._run.digest:
            raise LocalProtocolError("the admission ledger is another run's")
        self._uses = read
