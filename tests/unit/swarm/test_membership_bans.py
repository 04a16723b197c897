"""Bans at the door: what an entrance makes of those that were known before the process started."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from peers.ban_file import save_proofs
from peers.expulsion import Expelled, ban_sentence
from peers.interfaces import CallHandler
from peers.libp2p_node import Libp2pNode
from protocols.admission import make_request
from protocols.errors import ExitCode, RemoteRefusal
from swarm.membership import AuthorityEntrance, Membership, recall_bans
from tests.helpers.node_swarm import world
from tests.helpers.proved_bans import LIAR, a_proved_ban
from tests.helpers.run_world import FixedClock, identity, tls_key

COORDINATOR = identity(50)


class Doors:
    """Stands for the libp2p node: remembers what is served."""

    def __init__(self) -> None:
        self.served: dict[str, CallHandler] = {}

    async def serve(self, name: str, handler: CallHandler) -> None:
        self.served[name] = handler

    def ask(self, name: str, number: int, request: bytes = b"") -> bytes:
        async def asked() -> bytes:
            return await self.served[name](identity(number).peer, request)

        return asyncio.run(asked())


def founded(state_dir: Path) -> tuple[Doors, Membership]:
    doors = Doors()
    entrance = AuthorityEntrance(world().signed_spec, world().authority, state_dir, FixedClock(), lambda invite: None)
    return doors, asyncio.run(entrance.enter(cast("Libp2pNode", doors), COORDINATOR))


def request_of(number: int) -> bytes:
    invite = world().received(world().invite(max_uses=5))
    key = tls_key(number).claimed_by(identity(number), world().run)
    return make_request(identity(number), key, invite.sealed, FixedClock().now()).encode()


def test_a_coordinator_that_starts_again_still_shuts_out_whom_it_knew_to_be_banned(tmp_path: Path) -> None:
    ban = a_proved_ban()
    save_proofs(tmp_path, [ban])
    doors, papers = founded(tmp_path)
    assert papers.ledger.bans == (ban,)
    for name, request in (("admit", request_of(LIAR)), ("spec", b"")):
        with pytest.raises(RemoteRefusal) as refused:
            doors.ask(name, LIAR, request)
        assert refused.value.code == "banned"
        assert refused.value.reason == ban_sentence(ban)
    assert doors.ask("spec", 1)
    assert doors.ask("admit", 1, request_of(1))


def test_a_ban_that_comes_later_shuts_both_doors_at_once(tmp_path: Path) -> None:
    ban = a_proved_ban()
    doors, papers = founded(tmp_path)
    assert doors.ask("admit", LIAR, request_of(LIAR))
    papers.ledger.add(ban)
    papers.ban(ban)
    for name, request in (("admit", request_of(LIAR)), ("spec", b"")):
        with pytest.raises(RemoteRefusal, match="it returned a false mean of its blocks"):
            doors.ask(name, LIAR, request)


def test_a_banned_member_that_starts_again_ends_before_it_asks_anybody(tmp_path: Path) -> None:
    ban = a_proved_ban()
    save_proofs(tmp_path, [ban])
    with pytest.raises(Expelled) as told:
        recall_bans(tmp_path, world().run, world().authority_key, FixedClock(), identity(LIAR))
    assert told.value.exit_code is ExitCode.REFUSED
    assert str(told.value) == ban_sentence(ban)
    assert recall_bans(tmp_path, world().run, world().authority_key, FixedClock(), identity(1)).bans == (ban,)
