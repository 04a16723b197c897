"""What a peer needs before it can take part in a run: the run's signed spec, its own credentials, and whom to ask first."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from peers.admission_desk import ADMIT_CALL, SPEC_CALL, AdmissionService, spec_handler
from peers.ban_file import load_ledger
from peers.credentials import MemberCredentials, TlsKey
from peers.expulsion import Expelled, ban_sentence
from peers.identity import Identity
from peers.interfaces import Clock
from peers.joining import join_run
from peers.libp2p_node import Libp2pNode
from peers.private_files import PUBLIC_MODE, read_bounded, write_atomic
from protocols.admission import MEMBER_LIFETIME_S, AdmissionDesk
from protocols.canonical import pack_time
from protocols.certificate import MAX_VALIDITY_LEAD_S
from protocols.errors import ExitCode, NetworkSetupError, RemoteError, UserError
from protocols.ids import PeerId, RunId, SwarmTime
from protocols.invite import MAX_ADDRESSES, read_invite
from protocols.issuing import Issuer, issue_member_certificate, serial_for
from protocols.runspec import SignedRunSpec
from protocols.trust.ledger import Ban, Ledger
from swarm.runfile import load_spec, new_invite, save_spec

log = logging.getLogger(__name__)

INVITE_LIFETIME_S = 7 * 86_400.0
INVITE_USES = 1000
_KNOWN_FILE = "run/addresses.json"
_KNOWN_LIMIT = 64
_MAX_KNOWN_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Membership:
    """A member's papers.

    Args:
        signed: the run.
        credentials: ours.
        initial_peers: libp2p addresses to enter the DHT by; empty for the first member.
        founder: we hold the run's authority.
        ledger: bans known so far; whoever learns of others puts them in.
        ban: called with each new ban: our admission desk, if we have one, lets its member in no more.
    """

    signed: SignedRunSpec
    credentials: MemberCredentials
    initial_peers: tuple[str, ...]
    founder: bool
    ledger: Ledger
    ban: Callable[[Ban], None] = lambda _ban: None


class VolunteerEntrance:
    """Gets in by an invite, or, where it has been before, by its own papers and the addresses it remembers.

    Args:
        link: the invite.
        state_dir: keeps spec, credentials and addresses.

    Raises:
        InviteError: unreadable, altered or expired.
        UserError: the state directory belongs to another run (exit code WRONG_RUN).
    """

    def __init__(self, link: str, state_dir: Path, clock: Clock) -> None:
        self._invite = read_invite(link, clock.now())
        self._state_dir = state_dir
        self._clock = clock
        if (state_dir / "run").exists():
            kept = load_spec(state_dir)
            if kept.run_id != self._invite.run:
                raise UserError(
                    f"{state_dir} belongs to the run {kept.spec.run.name} ({kept.run_id.short}), the invite to {self._invite.run_name} "
                    f"({self._invite.run.short}): choose another --state-dir.",
                    ExitCode.WRONG_RUN,
                )

    async def enter(self, node: Libp2pNode, identity: Identity) -> Membership:
        """Become a member.

        Raises:
            UserError: we are not let in, or nobody can be reached; one sentence.
        """
        ledger = recall_bans(self._state_dir, self._invite.run, self._invite.authority_key, self._clock, identity)
        addresses = tuple(dict.fromkeys((*self._invite.addresses, *remembered_addresses(self._state_dir))))
        invite = dataclasses.replace(self._invite, addresses=addresses)
        document, credentials = await join_run(node.call, invite, identity, self._state_dir, self._clock)
        if document.signed_spec.run_id != self._invite.run:
            raise NetworkSetupError(
                "The members at the invite's addresses belong to another run: ask for a new invite.", ExitCode.WRONG_RUN
            )
        save_spec(self._state_dir, document.signed_spec)
        await node.serve(SPEC_CALL, spec_handler(document.signed_spec, document.run_ca, self._clock, why_banned_by(ledger)))
        return Membership(document.signed_spec, credentials, addresses, founder=False, ledger=ledger)

    def now_online(self, addresses: tuple[str, ...]) -> None:
        """Nothing to do: others read our presence."""


class AuthorityEntrance:
    """Gets in by holding the run's authority key; admits others.

    Args:
        signed, authority: of the run.
        state_dir: keeps credentials and the ledger of admissions.
        clock: ours.
        invite_sink: called once with an invite when others can join.
    """

    def __init__(self, signed: SignedRunSpec, authority: Issuer, state_dir: Path, clock: Clock, invite_sink: Callable[[str], None]) -> None:
        self._signed = signed
        self._authority = authority
        self._state_dir = state_dir
        self._clock = clock
        self._invite_sink = invite_sink

    async def enter(self, node: Libp2pNode, identity: Identity) -> Membership:
        """Certify ourselves and open the desk."""
        signed, authority, now = self._signed, self._authority, self._clock.now()
        ledger = recall_bans(self._state_dir, signed.run_id, signed.authority_key, self._clock, identity)
        credentials = MemberCredentials.load(self._state_dir, signed.run_id, signed.authority_key)
        if credentials is None or not credentials.usable(identity, now):
            credentials = self._certify(identity, now)
            credentials.save(self._state_dir)
        desk = AdmissionDesk(signed.run_id, signed.authority_key, authority.certificate, authority)
        for ban in ledger.bans:
            desk.ban(ban.accused, ban_sentence(ban))
        await node.serve(ADMIT_CALL, AdmissionService(desk, self._state_dir, self._clock).admit)
        await node.serve(SPEC_CALL, spec_handler(signed, authority.certificate, self._clock, why_banned_by(ledger)))
        there = await self._still_there(node)
        return Membership(signed, credentials, there, founder=True, ledger=ledger, ban=lambda ban: desk.ban(ban.accused, ban_sentence(ban)))

    async def _still_there(self, node: Libp2pNode) -> tuple[str, ...]:
        """After a restart: members of old that answer. Nobody answering is no error here, since somebody has to be the first."""

        async def answers(address: str) -> bool:
            try:
                await node.call(address, SPEC_CALL, b"", timeout_s=2.0)
            except (RemoteError, NetworkSetupError) as error:
                log.info("a member of old does not answer: address=%s reason=%s", address, error)
                return False
            return True

        async with asyncio.TaskGroup() as tasks:
            asked = {address: tasks.create_task(answers(address)) for address in remembered_addresses(self._state_dir)}
        return tuple(address for address, task in asked.items() if task.result())

    def _certify(self, identity: Identity, now: SwarmTime) -> MemberCredentials:
        signed = self._signed
        tls_key = TlsKey.load_or_create(self._state_dir)
        key = tls_key.claimed_by(identity, signed.run_id)
        serial = serial_for(self._authority.public_key, identity.public_key, key.tls_public_key, pack_time(now))
        begins, ends = SwarmTime(now - MAX_VALIDITY_LEAD_S), SwarmTime(now + MEMBER_LIFETIME_S)
        chain = issue_member_certificate(self._authority, key, signed.run_id, serial, begins, ends)
        return MemberCredentials.verified(signed.run_id, signed.authority_key, tls_key, chain, self._authority.certificate)

    def now_online(self, addresses: tuple[str, ...]) -> None:
        """Make an invite and hand it out."""
        addresses = addresses[:MAX_ADDRESSES]
        uses = 0 if self._signed.spec.admission.mode == "open" else INVITE_USES
        now = self._clock.now()
        self._invite_sink(new_invite(self._signed, self._authority, addresses, now=now, lifetime_s=INVITE_LIFETIME_S, max_uses=uses))


def recall_bans(state_dir: Path, run: RunId, authority_key: bytes, clock: Clock, identity: Identity) -> Ledger:
    """The bans known the last time: they hold from the first moment.

    Raises:
        Expelled: we are banned ourselves.
        StateDirError: the file is damaged.
    """
    ledger = load_ledger(state_dir, run, authority_key, clock)
    if own := ledger.of(identity.peer):
        raise Expelled(ban_sentence(own))
    return ledger


def why_banned_by(ledger: Ledger) -> Callable[[PeerId], str | None]:
    """What a peer that a ledger names is told at the door; None for others."""

    def why(peer: PeerId) -> str | None:
        ban = ledger.of(peer)
        return ban_sentence(ban) if ban else None

    return why


def remembered_addresses(state_dir: Path) -> tuple[str, ...]:
    """Addresses of members seen the last time, in case the invite's are gone; a damaged file is as good as none."""
    raw = read_bounded(state_dir / _KNOWN_FILE, _MAX_KNOWN_BYTES, private=False)
    try:
        known = json.loads(raw) if raw else []
    except ValueError:
        return ()
    return tuple(text for text in known if isinstance(text, str)) if isinstance(known, list) else ()


def remember_addresses(state_dir: Path, addresses: dict[PeerId, tuple[str, ...]]) -> None:
    """Keep members' addresses for the next start.

    Raises:
        StateDirError: not writable.
    """
    flat = [text for peer in sorted(addresses) for text in addresses[peer]][:_KNOWN_LIMIT]
    if flat and tuple(flat) != remembered_addresses(state_dir):
        write_atomic(state_dir / _KNOWN_FILE, json.dumps(flat).encode(), PUBLIC_MODE)
