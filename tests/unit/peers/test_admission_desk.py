from __future__ import annotations

import asyncio
import stat
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from peers.admission_desk import AdmissionService, spec_handler
from peers.credentials import MemberCredentials
from peers.interfaces import CallHandler
from peers.joining import admit_self, fetch_run, join_run, request_admission
from protocols.admission import AdmissionDesk, Admitted, make_request
from protocols.errors import (
    ExitCode,
    InviteError,
    NetworkSetupError,
    RemoteProtocolError,
    RemoteRefusal,
    RemoteTimeout,
    StateDirError,
    UserError,
)
from protocols.ids import PeerId, SwarmTime
from protocols.invite import Invite, seal_invite
from protocols.issuing import Issuer
from tests.helpers.run_world import ADDRESS, DAY_S, NOW, FixedClock, RunWorld, identity, tls_key

T = TypeVar("T")
WORLD = RunWorld()
OPEN = RunWorld(mode="open")
OTHER = RunWorld(number=2)
ELSEWHERE = ADDRESS.replace("4001", "4002")
NOWHERE = ADDRESS.replace("4001", "4003")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@dataclass
class Network:
    """Handlers by address and name; the caller is proven, as libp2p would."""

    caller: PeerId
    served: dict[tuple[str, str], CallHandler] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def call(self, to: str, name: str, request: bytes, *, timeout_s: float) -> bytes:
        assert timeout_s > 0
        self.asked.append((to, name))
        if not any(address == to for address, _ in self.served):
            raise RemoteTimeout(None, "nobody answers there")
        if (to, name) not in self.served:
            raise RemoteRefusal(None, "unknown-method", f"{name} is not served here")
        return await self.served[to, name](self.caller, request)


def service(state_dir: Path, world: RunWorld = WORLD, issuer: Issuer | None = None) -> AdmissionService:
    desk = AdmissionDesk(world.run, world.authority_key, world.run_ca, issuer or world.authority)
    return AdmissionService(desk, state_dir, FixedClock())


def network(tmp_path: Path, number: int = 1, world: RunWorld = WORLD, address: str = ADDRESS) -> Network:
    served = {
        (address, "spec"): spec_handler(world.signed_spec, world.run_ca, FixedClock()),
        (address, "admit"): service(tmp_path / "desk", world).admit,
    }
    return Network(identity(number).peer, served)


def private_invite(**changes: object) -> Invite:
    return WORLD.received(WORLD.invite(**changes))


def join(net: Network, invite: Invite, state_dir: Path, number: int = 1) -> MemberCredentials:
    return run(join_run(net.call, invite, identity(number), state_dir, FixedClock()))[1]


@pytest.mark.parametrize("issuer", [WORLD.authority, WORLD.delegate()])
def test_a_private_run_lets_a_joiner_in(tmp_path: Path, issuer: Issuer) -> None:
    net = network(tmp_path)
    net.served[ADDRESS, "admit"] = service(tmp_path / "desk2", issuer=issuer).admit
    document, credentials = run(join_run(net.call, private_invite(), identity(1), tmp_path / "me", FixedClock()))
    assert document.signed_spec == WORLD.signed_spec
    assert credentials.peer == identity(1).peer
    assert credentials.usable(identity(1), NOW)


def test_an_open_run_is_joined_without_asking_for_admission(tmp_path: Path) -> None:
    net = network(tmp_path, world=OPEN)
    credentials = join(net, OPEN.received(OPEN.open_run_invite()), tmp_path / "me")
    assert credentials.peer == identity(1).peer
    assert len(credentials.chain.certificates) == 2
    assert net.asked == [(ADDRESS, "spec")]


def test_a_second_start_needs_no_second_admission(tmp_path: Path) -> None:
    net = network(tmp_path)
    first = join(net, private_invite(), tmp_path / "me")
    again = join(net, private_invite(), tmp_path / "me")
    assert again.chain == first.chain
    assert [name for _, name in net.asked].count("admit") == 1


def test_another_identity_in_the_directory_is_admitted_anew(tmp_path: Path) -> None:
    join(network(tmp_path), private_invite(), tmp_path / "me")
    assert join(network(tmp_path, 2), private_invite(), tmp_path / "me", 2).peer == identity(2).peer


def test_addresses_are_tried_in_turn(tmp_path: Path) -> None:
    net = network(tmp_path, address=ELSEWHERE)
    net.served[ADDRESS, "spec"] = net.served[ELSEWHERE, "spec"]  # a member that may not admit
    invite = private_invite(addresses=(NOWHERE, ADDRESS, ELSEWHERE))
    assert join(net, invite, tmp_path / "me").peer == identity(1).peer
    assert net.asked == [
        (NOWHERE, "spec"),
        (ADDRESS, "spec"),
        (NOWHERE, "admit"),
        (ADDRESS, "admit"),
        (ELSEWHERE, "admit"),
    ]


def test_when_nobody_helps_every_address_says_why(tmp_path: Path) -> None:
    net = network(tmp_path)
    del net.served[ADDRESS, "admit"]
    with pytest.raises(NetworkSetupError) as caught:
        join(net, private_invite(addresses=(ADDRESS, NOWHERE)), tmp_path / "me")
    assert f"{ADDRESS.partition('/p2p/')[0]}: admit is not served here" in str(caught.value)
    assert f"{NOWHERE.partition('/p2p/')[0]}: nobody answers there" in str(caught.value)
    assert caught.value.exit_code is ExitCode.NETWORK


def test_members_of_another_run_are_not_believed(tmp_path: Path) -> None:
    net = network(tmp_path, world=OTHER)
    with pytest.raises(UserError, match=f"takes part in the run {OTHER.run.short}") as caught:
        run(fetch_run(net.call, private_invite(), FixedClock()))
    assert caught.value.exit_code is ExitCode.WRONG_RUN


def lying(reply: bytes) -> CallHandler:
    async def answer(caller: PeerId, request: bytes) -> bytes:
        return reply

    return answer


def test_a_liar_costs_one_address_only(tmp_path: Path) -> None:
    net = network(tmp_path)
    forged = replace(WORLD.signed_spec, signature=bytes(64))
    net.served[NOWHERE, "spec"] = spec_handler(forged, WORLD.run_ca, FixedClock())
    net.served[NOWHERE, "admit"] = lying(b"\xff\xff")
    assert join(net, private_invite(addresses=(NOWHERE, ADDRESS)), tmp_path / "me").peer == identity(1).peer


def test_certificates_that_are_not_ours_are_not_taken(tmp_path: Path) -> None:
    for number, (chain, run_ca) in enumerate(
        [
            (WORLD.chain(2), WORLD.run_ca),
            (OTHER.chain(1), OTHER.run_ca),
            (WORLD.chain(1), OTHER.run_ca),
            (WORLD.chain(1, not_after=NOW - 1000), WORLD.run_ca),
        ]
    ):
        net = network(tmp_path / str(number))
        net.served[ADDRESS, "admit"] = lying(Admitted(chain, run_ca, NOW).encode())
        with pytest.raises(NetworkSetupError):
            run(request_admission(net.call, private_invite(), identity(1), tls_key(1), FixedClock()))


@pytest.mark.parametrize(
    ("offset_s", "answer_takes_s", "words"),
    [
        (2.0, 0.0, None),
        (-2.0, 0.0, None),
        (0.0, 8.0, None),
        (60.0, 0.0, "60 s ahead of"),
        (-60.0, 0.0, "60 s behind"),
        (-60.0, 20.0, "40 s behind"),
    ],
)
def test_a_clock_that_is_off_is_noticed(tmp_path: Path, offset_s: float, answer_takes_s: float, words: str | None) -> None:
    mine = FixedClock(SwarmTime(NOW + offset_s))
    net = network(tmp_path)
    honest = net.served[ADDRESS, "spec"]

    async def slow(caller: PeerId, request: bytes) -> bytes:
        mine.time = SwarmTime(mine.time + answer_takes_s)
        return await honest(caller, request)

    net.served[ADDRESS, "spec"] = slow
    fetching = fetch_run(net.call, private_invite(), mine)
    if words is None:
        assert run(fetching).run_ca == WORLD.run_ca
    else:
        with pytest.raises(UserError, match=words) as caught:
            run(fetching)
        assert caught.value.exit_code is ExitCode.REFUSED


def test_refusals_reach_the_person_who_asked(tmp_path: Path) -> None:
    net = network(tmp_path)
    one = WORLD.received(WORLD.invite(max_uses=1))
    join(net, one, tmp_path / "first")
    late = replace(net, caller=identity(2).peer, asked=[])
    with pytest.raises(InviteError, match="1 peers that it was made for") as caught:
        join(late, one, tmp_path / "second", 2)
    assert caught.value.exit_code is ExitCode.INVITE


def test_a_ban_is_final(tmp_path: Path) -> None:
    desk = AdmissionDesk(WORLD.run, WORLD.authority_key, WORLD.run_ca, WORLD.authority)
    desk.ban(identity(1).peer)
    net = network(tmp_path)
    net.served[ADDRESS, "admit"] = AdmissionService(desk, tmp_path / "d", FixedClock()).admit
    with pytest.raises(UserError, match="banned") as caught:
        join(net, private_invite(addresses=(ADDRESS, ELSEWHERE)), tmp_path / "me")
    assert caught.value.exit_code is ExitCode.REFUSED


# The desk's side


def request_of(number: int, **changes: object) -> bytes:
    key = tls_key(number).claimed_by(identity(number), WORLD.run)
    return make_request(identity(number), key, seal_invite(WORLD.invite(**changes), WORLD.authority), NOW).encode()


def test_uses_are_on_disk_before_the_answer(tmp_path: Path) -> None:
    run(service(tmp_path).admit(identity(1).peer, request_of(1, max_uses=1)))
    assert stat.S_IMODE((tmp_path / "run" / "admissions").stat().st_mode) == 0o600
    restarted = service(tmp_path)
    with pytest.raises(RemoteRefusal) as caught:
        run(restarted.admit(identity(2).peer, request_of(2, max_uses=1)))
    assert caught.value.code == "invite-used-up"
    assert run(restarted.admit(identity(1).peer, request_of(1, max_uses=1)))


def test_at_once_is_counted_like_one_after_the_other(tmp_path: Path) -> None:
    async def all_at_once() -> list[object]:
        desk = service(tmp_path)
        wishes = [desk.admit(identity(number).peer, request_of(number, max_uses=3)) for number in range(6)]
        return list(await asyncio.gather(*wishes, return_exceptions=True))

    answers = run(all_at_once())
    assert sum(isinstance(answer, bytes) for answer in answers) == 3
    assert sum(isinstance(answer, RemoteRefusal) for answer in answers) == 3


def test_a_ledger_that_cannot_be_saved_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = service(tmp_path)

    def full(path: Path, data: bytes) -> None:
        raise StateDirError("disk full")

    monkeypatch.setattr("peers.admission_desk.write_atomic", full)
    with pytest.raises(RemoteRefusal) as caught:
        run(desk.admit(identity(1).peer, request_of(1, max_uses=1)))
    assert caught.value.code == "not-admitting"


def test_the_caller_must_be_the_one_who_is_admitted(tmp_path: Path) -> None:
    with pytest.raises(RemoteRefusal) as caught:
        run(service(tmp_path).admit(identity(2).peer, request_of(1)))
    assert caught.value.code == "bad-identity"
    with pytest.raises(RemoteProtocolError) as garbage:
        run(service(tmp_path).admit(identity(2).peer, b"\xff"))
    assert garbage.value.peer == identity(2).peer


@pytest.mark.parametrize("content", [b"\xff\xff", b""])
def test_a_damaged_ledger_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "admissions"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StateDirError, match="restore it from a copy"):
        service(tmp_path)
    assert path.read_bytes() == content


# Certifying oneself


def test_a_private_invite_gives_no_key_away() -> None:
    with pytest.raises(InviteError, match="private run"):
        admit_self(private_invite(), identity(1), tls_key(1), WORLD.run_ca, NOW)


def test_an_admission_key_that_ran_out(tmp_path: Path) -> None:
    delegate = OPEN.delegate(not_after=NOW + 100)
    seed = delegate.private_key.private_bytes_raw()
    invite = OPEN.received(OPEN.invite(delegate_certificate=delegate.certificate, delegate_seed=seed, expires_at=SwarmTime(NOW + DAY_S)))
    assert admit_self(invite, identity(1), tls_key(1), OPEN.run_ca, NOW).peer == identity(1).peer
    with pytest.raises(InviteError, match="out of date"):
        admit_self(invite, identity(1), tls_key(1), OPEN.run_ca, SwarmTime(NOW + 200))


BANNED = "This peer is banned from the run since epoch 12: it returned a false mean of its blocks."


def a_door_that_shuts_out(number: int) -> CallHandler:
    return spec_handler(OPEN.signed_spec, OPEN.run_ca, FixedClock(), lambda peer: BANNED if peer == identity(number).peer else None)


def test_whoever_is_banned_is_told_why_at_the_door_of_an_open_run_as_well(tmp_path: Path) -> None:
    net = network(tmp_path, world=OPEN)
    invite = OPEN.received(OPEN.open_run_invite())
    join(net, invite, tmp_path / "me")
    net.served[ADDRESS, "spec"] = a_door_that_shuts_out(1)
    with pytest.raises(UserError) as refused:
        join(net, invite, tmp_path / "me")
    assert refused.value.exit_code is ExitCode.REFUSED
    assert str(refused.value) == BANNED
    net.caller = identity(2).peer
    assert join(net, invite, tmp_path / "other", 2).peer == identity(2).peer


def test_one_member_cannot_keep_anybody_out_by_saying_that_it_is_banned(tmp_path: Path) -> None:
    net = network(tmp_path, world=OPEN, address=ELSEWHERE)
    net.served[ADDRESS, "spec"] = a_door_that_shuts_out(1)
    invite = OPEN.received(OPEN.open_run_invite(addresses=(ADDRESS, ELSEWHERE)))
    assert join(net, invite, tmp_path / "me").peer == identity(1).peer
