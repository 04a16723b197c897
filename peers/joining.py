"""Being let into a run: from a verified invite to membership credentials.

The addresses in the invite are asked in turn. In an open run a joiner then certifies itself with the key that the invite gives away; in a
private run it asks for admission (`peers.admission_desk`). Whoever answers is believed only as far as the authority has signed it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from peers.admission_desk import ADMIT_CALL, SPEC_CALL
from peers.credentials import MemberCredentials, TlsKey
from peers.identity import Identity
from peers.interfaces import Clock
from peers.transport.handling import BANNED
from protocols.admission import MEMBER_LIFETIME_S, Admitted, make_request
from protocols.canonical import pack_time
from protocols.certificate import MAX_VALIDITY_LEAD_S
from protocols.errors import ExitCode, InviteError, NetworkSetupError, RemoteError, RemoteRefusal, UserError
from protocols.ids import SwarmTime
from protocols.invite import Invite
from protocols.issuing import issue_member_certificate, serial_for
from protocols.run_document import RunDocument
from protocols.signing import CLOCK_SKEW_S

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 10.0
"""For each address, dialling included."""

_FINAL_CODES = {
    "bad-invite": ExitCode.INVITE,
    "invite-used-up": ExitCode.INVITE,
    "wrong-run": ExitCode.WRONG_RUN,
    "clock-off": ExitCode.REFUSED,
    "bad-identity": ExitCode.REFUSED,
    BANNED: ExitCode.REFUSED,
    "protocol-version": ExitCode.REFUSED,
}
"""Refusals that any other desk would repeat."""

T = TypeVar("T")


class Call(Protocol):
    """How to reach somebody by libp2p address (`Libp2pNode.call`). Raises RemoteTimeout, RemoteRefusal, RemoteProtocolError."""

    def __call__(self, to: str, name: str, request: bytes, *, timeout_s: float) -> Awaitable[bytes]:
        """One request, one reply."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why one address did not help; `code` if that is the joiner's own matter, `told` if somebody there has said all of it."""

    address: str
    reason: str
    code: ExitCode | None = None
    told: bool = False


async def fetch_run(call: Call, invite: Invite, clock: Clock, timeout_s: float = CALL_TIMEOUT_S) -> RunDocument:
    """Ask the addresses of an invite, in turn, for the run's document.

    Args:
        call: how to reach them.
        invite: verified.
        clock: ours; compared with theirs.
        timeout_s: for each address.

    Raises:
        NetworkSetupError: none answered usefully; says what happened at each.
        UserError: they answer for another run, or our clock is off.
    """

    async def ask(address: str) -> RunDocument | _Failure:
        asked_at = clock.now()
        try:
            reply = await call(address, SPEC_CALL, b"", timeout_s=timeout_s)
        except RemoteRefusal as refusal:  # one member's word is not enough: the others are asked as well
            return _Failure(address, refusal.reason, _FINAL_CODES.get(refusal.code), told=True)
        document = RunDocument.decode(reply, None)
        found = document.signed_spec.run_id
        if found != invite.run:
            reason = f"it takes part in the run {found.short}, and the invite is for {invite.run.short}"
            return _Failure(address, reason, ExitCode.WRONG_RUN)
        return _clock_failure(address, document.time, asked_at, clock.now()) or document

    return await _first_answer(ask, invite)


async def request_admission(
    call: Call, invite: Invite, identity: Identity, tls_key: TlsKey, clock: Clock, timeout_s: float = CALL_TIMEOUT_S
) -> MemberCredentials:
    """Ask the addresses of an invite, in turn, to be let in.

    Args:
        call: how to reach them.
        invite: verified, as read from a link.
        identity: who we are.
        tls_key: the key to be certified.
        clock: ours.
        timeout_s: for each address.

    Raises:
        InviteError: the invite is not accepted.
        UserError: we are not accepted.
        NetworkSetupError: nobody decided; says what happened at each address.
    """
    key = tls_key.claimed_by(identity, invite.run)

    async def ask(address: str) -> MemberCredentials | _Failure:
        asked_at = clock.now()
        request = make_request(identity, key, invite.sealed, asked_at).encode()
        try:
            reply = await call(address, ADMIT_CALL, request, timeout_s=timeout_s)
        except RemoteRefusal as refusal:
            code = _FINAL_CODES.get(refusal.code)
            if code is None:
                return _Failure(address, refusal.reason)
            if code is ExitCode.INVITE:
                raise InviteError(refusal.reason) from refusal
            raise UserError(refusal.reason, code) from refusal
        admitted = Admitted.decode(reply, None)
        credentials = MemberCredentials.verified(invite.run, invite.authority_key, tls_key, admitted.chain, admitted.run_ca)
        if credentials.peer != identity.peer or not credentials.usable(identity, clock.now()):
            return _Failure(address, "it sent a certificate that is not ours or not valid now")
        return credentials

    return await _first_answer(ask, invite)


def admit_self(invite: Invite, identity: Identity, tls_key: TlsKey, run_ca: bytes, now: SwarmTime) -> MemberCredentials:
    """Certify ourselves with the admission key of an open run's invite.

    Args:
        invite: verified.
        identity: who we are.
        tls_key: the key to be certified.
        run_ca: the run's root, DER, from its document.
        now: our clock.

    Raises:
        InviteError: the invite gives no admission key away, or the key has run out.
        RemoteProtocolError: `run_ca` is not the run's.
    """
    delegate = invite.delegate
    if delegate is None:
        raise InviteError("This invite is for a private run: somebody who may admit has to be asked.")
    key = tls_key.claimed_by(identity, invite.run)
    serial = serial_for(delegate.public_key, identity.public_key, key.tls_public_key, pack_time(now))
    begins, ends = SwarmTime(now - MAX_VALIDITY_LEAD_S), SwarmTime(now + MEMBER_LIFETIME_S)
    chain = issue_member_certificate(delegate, key, invite.run, serial, begins, ends)
    credentials = MemberCredentials.verified(invite.run, invite.authority_key, tls_key, chain, run_ca)
    if not credentials.membership.not_before <= now <= credentials.membership.not_after:
        raise InviteError("This invite's admission key is out of date: ask whoever sent it for a new one.")
    return credentials


async def join_run(call: Call, invite: Invite, identity: Identity, state_dir: Path, clock: Clock) -> tuple[RunDocument, MemberCredentials]:
    """Everything between a verified invite and membership: the run's document, and credentials that are kept for the next start.

    Args:
        call: how to reach others.
        invite: verified.
        identity: who we are.
        state_dir: keeps the credentials.
        clock: ours.

    Raises:
        UserError: as `fetch_run`, `request_admission` and `admit_self`; or the state directory cannot be used.
    """
    document = await fetch_run(call, invite, clock)
    kept = MemberCredentials.load(state_dir, invite.run, invite.authority_key)
    if kept is not None and kept.usable(identity, clock.now()):
        return document, kept
    tls_key = TlsKey.load_or_create(state_dir)
    if invite.is_open:
        credentials = admit_self(invite, identity, tls_key, document.run_ca, clock.now())
    else:
        credentials = await request_admission(call, invite, identity, tls_key, clock)
    credentials.save(state_dir)
    return document, credentials


async def _first_answer(ask: Callable[[str], Awaitable[T | _Failure]], invite: Invite) -> T:
    """What the first helpful address answers."""
    failures: list[_Failure] = []
    for address in invite.addresses:
        try:
            answer = await ask(address)
        except RemoteError as error:
            answer = _Failure(address, error.reason)
        except NetworkSetupError as error:
            answer = _Failure(address, str(error))
        if not isinstance(answer, _Failure):
            return answer
        log.info("address did not help: address=%s reason=%s", answer.address, answer.reason)
        failures.append(answer)
    told = "; ".join(f"{failure.address.rpartition('/p2p/')[0]}: {failure.reason}" for failure in failures)
    ours = next((failure for failure in failures if failure.code is not None), None)
    if ours is not None and ours.told:
        raise UserError(ours.reason, ours.code)
    if ours is not None:
        raise UserError(f"The run {invite.run_name} cannot be joined ({told}).", ours.code)
    raise NetworkSetupError(
        f"No member of the run {invite.run_name} could be asked ({told}): is it running, and can this machine reach it?"
    )


def _clock_failure(address: str, theirs: SwarmTime, asked_at: SwarmTime, answered_at: SwarmTime) -> _Failure | None:
    """Their clock must lie between our question and our answer, give or take the skew; otherwise nothing we sign would be believed."""
    if asked_at - CLOCK_SKEW_S <= theirs <= answered_at + CLOCK_SKEW_S:
        return None
    ahead_s = asked_at - theirs if theirs < asked_at else answered_at - theirs
    direction = "ahead of" if ahead_s > 0 else "behind"
    return _Failure(address, f"this machine's clock is {abs(ahead_s):.0f} s {direction} its, set it by NTP", ExitCode.REFUSED)
