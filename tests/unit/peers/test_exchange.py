"""Liars and broken programs in a round: everybody else ends with the same bytes, in bounded time, and knows whom to blame."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import torch

from peers.averaging.averager import Averaged
from peers.simulation import run_simulated
from protocols.errors import LocalProtocolError, RemoteRefusal, RoundError
from protocols.frames import HEARTBEAT
from protocols.ids import BlockIndex, Epoch, PeerId, RoundId
from protocols.messages import BlocksRequest, Commit, Join, Report, parse
from protocols.proto.swarm.v1 import control_pb2 as pb
from protocols.rendezvous import rendezvous_order
from tests.helpers.averaging_swarm import RUN, STATE_HASH, KeyNotary, SimulatedSwarm, averaged, contribution, make_key, rules, same_bytes
from tests.helpers.swarm_tampering import Tamper

COUNT = 4
SIZE_ELEMS = 1000
HEADER = struct.Struct("<B3sIIIQ")
PART, RESULT = 1, 2
NAN = struct.pack("<f", float("nan"))

NUMBER_OF = {KeyNotary(make_key(number)).peer: number for number in range(COUNT)}
LEADER, SECOND, THIRD, LAST = (NUMBER_OF[peer] for peer in rendezvous_order(RoundId(RUN, Epoch(0)), NUMBER_OF))

Change = Callable[[str, bytes], list[bytes]]
Head = tuple[int, int, int, int, int]
"""kind, block, offset, total, contributors"""
QUICK_S, SLOW_S = 25.0, 120.0


def altered(kind: int, change: Callable[[Head, bytes], list[bytes]]) -> Change:
    """Change frames of one kind."""

    def alter(method: str, message: bytes) -> list[bytes]:
        if method != "exchange" or len(message) <= HEADER.size or message[0] != kind:
            return [message]
        found, _, block, offset, total, contributors = HEADER.unpack_from(message)
        return change((found, block, offset, total, contributors), message[HEADER.size :])

    return alter


def frame(head: Head, chunk: bytes, *, kind: int = 0, block: int = 0, offset: int = 0, total: int = 0, contributors: int = 0) -> bytes:
    """A frame as it was, but for what is added to its head."""
    return HEADER.pack(head[0] + kind, bytes(3), head[1] + block, head[2] + offset, head[3] + total, head[4] | contributors) + chunk


BAD_FRAMES: dict[str, Callable[[Head, bytes], list[bytes]]] = {
    "NaN": lambda head, chunk: [frame(head, NAN + chunk[4:])],
    "infinite": lambda head, chunk: [frame(head, chunk[:-4] + struct.pack("<f", float("inf")))],
    "short": lambda head, chunk: [frame(head, chunk[:-4], total=-4)],
    "long": lambda head, chunk: [frame(head, chunk + bytes(4))],
    "another's block": lambda head, chunk: [frame(head, chunk, block=1)],
    "no such block": lambda head, chunk: [frame(head, chunk, block=2**31)],
    "the other kind": lambda head, chunk: [frame(head, chunk, kind=3 - 2 * head[0])],
    "twice": lambda head, chunk: [frame(head, chunk)] * 2,
    "not from the beginning": lambda head, chunk: [frame(head, chunk[4:], offset=4)],
    "junk": lambda head, chunk: [b"junk"],
    "foreign contributors": lambda head, chunk: [frame(head, chunk, contributors=1 << 40)],
}


def play(
    offender: int,
    tamper: Tamper,
    *,
    limit_s: float = QUICK_S,
    weights: list[float] | None = None,
    rounds: int = 1,
    count: int = COUNT,
) -> tuple[list[Averaged], dict[PeerId, str]]:
    """A round in which everybody but the offender is honest: what the honest ones got, and whom they blame together."""

    async def main() -> tuple[list[Averaged], dict[PeerId, str]]:
        blamed: dict[PeerId, str] = {}
        async with SimulatedSwarm(count, tampers={offender: tamper}) as swarm:
            honest = [number for number in range(count) if number != offender]
            for epoch in range(rounds):
                theirs = asyncio.ensure_future(swarm.round(SIZE_ELEMS, epoch=epoch, who=[offender], weights=weights))
                outcomes = await swarm.round(SIZE_ELEMS, epoch=epoch, who=honest, weights=weights)
                theirs.cancel()
                done = averaged(outcomes)
                assert len(done) == len(honest), outcomes
                assert same_bytes(done)
                assert len({outcome.weight for outcome in done}) == 1
                assert all(bool(torch.isfinite(outcome.vector_D).all()) for outcome in done)
                for outcome in done:
                    blamed.update(outcome.blamed)
            assert asyncio.get_running_loop().time() < limit_s
            assert set(blamed) <= {swarm.members[offender].peer}, "somebody honest is blamed"
        return done, blamed

    return run_simulated(main(), seed=2, limit_s=10 * limit_s)


def offender_of(number: int) -> PeerId:
    return KeyNotary(make_key(number)).peer


@pytest.fixture(autouse=True)
def no_bug_of_ours(caplog: pytest.LogCaptureFixture) -> Callable[[], None]:
    """What a stranger sends must not be logged as an error of our own."""

    def check() -> None:
        assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []

    return check


# Blocks


@pytest.mark.parametrize("offender", [LEADER, LAST])
@pytest.mark.parametrize("what", BAD_FRAMES)
def test_a_sender_of_bad_parts_is_left_out_and_named(offender: int, what: str, no_bug_of_ours: Callable[[], None]) -> None:
    done, blamed = play(offender, Tamper(dialled=altered(PART, BAD_FRAMES[what])))
    assert offender_of(offender) in blamed
    assert len(done[0].contributors) >= COUNT - 1
    no_bug_of_ours()


@pytest.mark.parametrize("offender", [LEADER, LAST])
@pytest.mark.parametrize("what", BAD_FRAMES)
def test_a_reducer_of_bad_results_loses_its_blocks_and_is_named(offender: int, what: str, no_bug_of_ours: Callable[[], None]) -> None:
    done, blamed = play(offender, Tamper(served=altered(RESULT, BAD_FRAMES[what])))
    assert offender_of(offender) in blamed
    assert set(done[0].contributors) >= {peer for peer, number in NUMBER_OF.items() if number != offender}
    no_bug_of_ours()


def test_contributors_that_bring_nothing_are_foreign() -> None:
    helper = THIRD
    weights = [0.0 if number == helper else 1.0 for number in range(COUNT)]

    def name_the_helper(head: Head, chunk: bytes) -> list[bytes]:
        return [frame(head, chunk, contributors=1 << (LEADER, SECOND, THIRD, LAST).index(helper))]

    _, blamed = play(LAST, Tamper(served=altered(RESULT, name_the_helper)), weights=weights)
    assert "contributors" in blamed[offender_of(LAST)]


def test_a_reducer_that_tells_everybody_something_else_cannot_split_the_group() -> None:
    counter = Counter[str]()

    def another_number(head: Head, chunk: bytes) -> list[bytes]:
        counter["sent"] += 1
        return [frame(head, struct.pack("<f", counter["sent"]) + chunk[4:])]

    play(LAST, Tamper(served=altered(RESULT, another_number)))
    assert counter["sent"] > 3


def test_a_second_stream_is_refused_and_counts_nothing_twice(no_bug_of_ours: Callable[[], None]) -> None:
    done, blamed = play(LAST, Tamper(twice=True))
    assert "second stream" in blamed[offender_of(LAST)]
    vectors = torch.stack([contribution(number, SIZE_ELEMS) for number in range(COUNT)])
    torch.testing.assert_close(done[0].vector_D, vectors.mean(0))
    assert done[0].weight == COUNT
    no_bug_of_ours()


@pytest.mark.parametrize("kind", [PART, RESULT])
def test_heartbeats_alone_hold_the_others_up_for_a_bounded_time(kind: int) -> None:
    silent = altered(kind, lambda head, chunk: [HEARTBEAT])
    play(LAST, Tamper(dialled=silent, served=silent), limit_s=SLOW_S)


def test_after_a_few_rounds_heartbeats_alone_are_seen_through_quickly() -> None:
    broken = False

    async def main() -> None:
        nonlocal broken
        silent = altered(PART, lambda head, chunk: [HEARTBEAT] if broken else [frame(head, chunk)])
        async with SimulatedSwarm(COUNT, tampers={LAST: Tamper(dialled=silent)}) as swarm:
            for epoch in range(5):
                broken = epoch == 4
                began_s = asyncio.get_running_loop().time()
                done = averaged(await swarm.round(SIZE_ELEMS, epoch=epoch))
                assert same_bytes([outcome for number, outcome in enumerate(done) if number != LAST])
                assert (swarm.members[LAST].peer in done[0].contributors) != broken or done[0].weight < COUNT
        assert asyncio.get_running_loop().time() - began_s < 15  # not the 30 s of the longest exchange

    run_simulated(main(), limit_s=SLOW_S)


def test_a_contribution_that_is_not_finite_does_not_leave_the_house() -> None:
    async def main() -> None:
        async with SimulatedSwarm(1) as swarm:
            join = Join(Epoch(0), STATE_HASH, 1.0, 1000)
            with pytest.raises(LocalProtocolError, match="NaN or infinite"):
                await swarm.members[0].averager.run_round(join, torch.tensor([1.0, float("nan")]))

    run_simulated(main())


# Streams of strangers


def run_with_stranger(act: Callable[[SimulatedSwarm], Awaitable[None]]) -> list[Averaged]:
    """A round of members 0 to 2, while member 3, who is in no plan, does something."""

    async def main() -> list[Averaged]:
        async with SimulatedSwarm(COUNT) as swarm:
            for number in range(3):
                swarm.members[number].directory.suspect(swarm.members[3].peer)
            acting = asyncio.ensure_future(act(swarm))
            done = averaged(await swarm.round(SIZE_ELEMS, who=[0, 1, 2]))
            await acting
            assert len(done) == 3
            assert same_bytes(done)
            assert len(done[0].contributors) == 3
            assert asyncio.get_running_loop().time() < QUICK_S
            return done

    return run_simulated(main(), seed=2)


def test_streams_with_made_up_plans_push_nobody_out() -> None:
    async def act(swarm: SimulatedSwarm) -> None:
        async def one(victim: int, digest: bytes) -> str:
            stranger = swarm.members[3]
            endpoint = stranger.directory.endpoint(swarm.members[victim].peer)
            assert endpoint is not None
            async with stranger.transport.stream(endpoint, "exchange", timeout_s=20) as stream:
                await stream.send(pb.ExchangeHeader(plan_digest=digest).SerializeToString())
                try:
                    await stream.receive()
                except RemoteRefusal as error:
                    return error.code
            return "served"

        codes = await asyncio.gather(*(one(victim, bytes([n]) * 32) for victim in range(3) for n in range(30)))
        assert set(codes) == {"unknown-plan"}

    run_with_stranger(act)


def test_a_stranger_to_the_plan_is_refused_and_named() -> None:
    async def act(swarm: SimulatedSwarm) -> None:
        stranger, member = swarm.members[3], swarm.members[0]
        endpoint = stranger.directory.endpoint(member.peer)
        assert endpoint is not None
        while not member.averager._exchanges._known:
            await _moment()
        (digest,) = member.averager._exchanges._known
        async with stranger.transport.stream(endpoint, "exchange", timeout_s=20) as stream:
            await stream.send(pb.ExchangeHeader(plan_digest=digest).SerializeToString())
            with pytest.raises(RemoteRefusal, match="a plan that it is not in"):
                await stream.receive()

    done = run_with_stranger(act)
    assert any(offender_of(3) in outcome.blamed for outcome in done)


async def _moment() -> None:
    """A hundredth of a second passes."""
    never = asyncio.Event()
    try:
        async with asyncio.timeout(0.01):
            await never.wait()
    except TimeoutError:
        return


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (b"junk", "protocol-error"),
        (BlocksRequest(Epoch(7), ()).encode(), "unknown-round"),
        (BlocksRequest(Epoch(0), (BlockIndex(99),)).encode(), "missing-block"),
    ],
)
def test_odd_requests_for_blocks_are_refused(request_bytes: bytes, code: str) -> None:
    async def main() -> str:
        async with SimulatedSwarm(2) as swarm:
            await swarm.round(SIZE_ELEMS)
            if code == "unknown-round":
                swarm.members[0].averager._results.clear()
            endpoint = swarm.members[1].directory.endpoint(swarm.members[0].peer)
            assert endpoint is not None
            async with swarm.members[1].transport.stream(endpoint, "blocks", timeout_s=20) as stream:
                await stream.send(request_bytes)
                with pytest.raises(RemoteRefusal) as caught:
                    await stream.receive()
        return caught.value.code

    assert run_simulated(main()) == code


# Joins


def requests(method: str, change: Callable[[bytes], bytes]) -> Tamper:
    return Tamper(request=lambda name, message: change(message) if name == method else message)


def sealed_by(number: int, weight: float = 1.0) -> bytes:
    return KeyNotary(make_key(number)).seal("join", pb.Join(state_hash=STATE_HASH, weight=weight).SerializeToString())


@pytest.mark.parametrize(
    "sealed",
    [sealed_by(SECOND), sealed_by(LAST, float("nan")), sealed_by(LAST, -1.0), b"", b"junk" * 40, b"j" * 2**20],
    ids=["another's", "NaN", "negative", "empty", "junk", "huge"],
)
def test_a_bad_join_is_refused_and_its_sender_named(sealed: bytes, no_bug_of_ours: Callable[[], None]) -> None:
    done, blamed = play(LAST, requests("join", lambda _: sealed))
    assert offender_of(LAST) in blamed
    assert len(done[0].contributors) == COUNT - 1
    no_bug_of_ours()


# Reports


def short_report(data: bytes) -> bytes:
    report = Report.decode(data, offender_of(LAST))
    return replace(report, block_hashes=report.block_hashes[:-1]).encode()


def lying_report(data: bytes) -> bytes:
    report = Report.decode(data, offender_of(LAST))
    return replace(report, block_hashes=(b"x" * 32,) * len(report.block_hashes)).encode()


@pytest.mark.parametrize("report", [short_report, lying_report, lambda _: b"junk"], ids=["short", "lying", "junk"])
def test_a_bad_report_does_not_stop_the_others(report: Callable[[bytes], bytes], no_bug_of_ours: Callable[[], None]) -> None:
    done, blamed = play(LAST, requests("report", report), limit_s=SLOW_S)
    assert offender_of(LAST) in blamed
    assert done[0].weight == COUNT
    no_bug_of_ours()


# Leaders


def answers(method: str, change: Callable[[bytes], bytes]) -> Tamper:
    async def reply(name: str, answer: bytes) -> bytes:
        return change(answer) if name == method else answer

    return Tamper(reply=reply)


def join_reply(change: Callable[[pb.JoinReply], None]) -> Callable[[bytes], bytes]:
    def apply(answer: bytes) -> bytes:
        message = parse(pb.JoinReply, answer, None)
        change(message)
        return message.SerializeToString()

    return apply


def favour_itself(message: pb.JoinReply) -> None:
    for task in message.plan.reduce:
        task.member = 0


def leave_us_out(message: pb.JoinReply) -> None:
    for sealed in list(message.plan.sealed_joins)[1:]:
        message.plan.sealed_joins.remove(sealed)


def commit_reply(commit: Commit) -> Callable[[pb.JoinReply], None]:
    def change(message: pb.JoinReply) -> None:
        message.Clear()
        message.commit.CopyFrom(commit.to_message())

    return change


NUM_BLOCKS = 16
FALSE_COMMIT = Commit(b"p" * 32, Epoch(0), (b"x" * 32,) * NUM_BLOCKS, 4.0)

BAD_ANSWERS_TO_A_JOIN: dict[str, Callable[[bytes], bytes]] = {
    "junk": lambda _: b"junk",
    "empty": lambda _: b"",
    "plan without us": join_reply(leave_us_out),
    "another reducer": join_reply(favour_itself),
    "another size": join_reply(lambda message: setattr(message.plan, "size_elems", 2 * SIZE_ELEMS)),
    "another codec": join_reply(lambda message: setattr(message.plan, "codec", "fp16")),
    "a later attempt": join_reply(lambda message: setattr(message.plan, "attempt", 1)),
    "a forged join": join_reply(lambda message: message.plan.sealed_joins.append(b"f" * 200)),
    "too many joins": join_reply(lambda message: message.plan.sealed_joins.extend([sealed_by(0)] * 65)),
    "commit of another epoch": join_reply(commit_reply(replace(FALSE_COMMIT, epoch=Epoch(9)))),
    "commit of another size": join_reply(commit_reply(replace(FALSE_COMMIT, block_hashes=(b"x" * 32,)))),
    "commit to nothing": join_reply(commit_reply(replace(FALSE_COMMIT, weight=0.0))),
}


@pytest.mark.parametrize("what", BAD_ANSWERS_TO_A_JOIN)
def test_a_leader_that_answers_joins_badly_is_passed_over_and_named(what: str, no_bug_of_ours: Callable[[], None]) -> None:
    done, blamed = play(LEADER, answers("join", BAD_ANSWERS_TO_A_JOIN[what]), limit_s=SLOW_S)
    assert offender_of(LEADER) in blamed
    assert done[0].weight >= COUNT - 1
    no_bug_of_ours()


def verdict(change: Callable[[pb.Verdict], None]) -> Callable[[bytes], bytes]:
    def apply(_answer: bytes) -> bytes:
        message = pb.Verdict()
        change(message)
        return message.SerializeToString()

    return apply


BAD_VERDICTS: dict[str, Callable[[bytes], bytes]] = {
    "junk": lambda _: b"junk",
    "empty": lambda _: b"",
    "another round": verdict(lambda message: message.commit.CopyFrom(FALSE_COMMIT.to_message())),
    "repair of other members": verdict(lambda message: message.repair.sealed_joins.append(b"f" * 200)),
}


@pytest.mark.parametrize("what", BAD_VERDICTS)
def test_a_leader_that_judges_badly_is_passed_over_and_named(what: str, no_bug_of_ours: Callable[[], None]) -> None:
    _, blamed = play(LEADER, answers("report", BAD_VERDICTS[what]), limit_s=SLOW_S)
    assert offender_of(LEADER) in blamed
    no_bug_of_ours()


def test_a_leader_that_commits_to_made_up_blocks_cannot_keep_the_epoch_open() -> None:
    def false_commit(answer: bytes) -> bytes:
        message = parse(pb.Verdict, answer, None)
        if message.HasField("commit"):
            for number in range(len(message.commit.block_hashes)):
                message.commit.block_hashes[number] = b"x" * 32
        return message.SerializeToString()

    done, _ = play(LEADER, answers("report", false_commit), limit_s=SLOW_S)
    assert done[0].weight >= COUNT - 1


def test_the_weight_of_a_round_is_not_the_leaders_word() -> None:
    def heavier(answer: bytes) -> bytes:
        message = parse(pb.Verdict, answer, None)
        message.commit.weight = 1e6
        return message.SerializeToString()

    done, _ = play(LEADER, answers("report", heavier))
    assert [outcome.weight for outcome in done] == [COUNT] * 3


@pytest.mark.parametrize("code", ["no-quorum", "group-full", "behind", "state-differs", "ahead", "round-formed"])
def test_one_leaders_refusal_is_not_the_swarms(code: str) -> None:
    async def refuse(method: str, answer: bytes) -> bytes:
        if method == "join":
            raise RemoteRefusal(None, code, "go away")
        return answer

    done, _ = play(LEADER, Tamper(reply=refuse), limit_s=SLOW_S)
    assert done[0].weight >= COUNT - 1


@pytest.mark.parametrize("method", ["join", "report", "closing"])
@pytest.mark.parametrize("offender", [LEADER, SECOND])
def test_a_member_that_never_answers_costs_one_deadline(method: str, offender: int) -> None:
    async def never(name: str, answer: bytes) -> bytes:
        if name == method:
            await asyncio.Event().wait()
        return answer

    play(offender, Tamper(reply=never), limit_s=SLOW_S)


@pytest.mark.parametrize("answer", [b"junk", join_reply(commit_reply(replace(FALSE_COMMIT, epoch=Epoch(9))))(b"")], ids=["junk", "commit"])
def test_a_bad_answer_to_the_leaders_call_is_named(answer: bytes) -> None:
    _, blamed = play(LAST, answers("closing", lambda _: answer), limit_s=SLOW_S)
    assert offender_of(LAST) in blamed


def test_a_liar_in_every_round_does_not_stop_the_run() -> None:
    done, blamed = play(LAST, Tamper(dialled=altered(PART, BAD_FRAMES["NaN"])), rounds=6, limit_s=SLOW_S)
    assert offender_of(LAST) in blamed
    assert len(done[0].contributors) >= COUNT - 1


def test_nobody_who_could_reduce_is_a_failed_round() -> None:
    async def main() -> None:
        async with SimulatedSwarm(3, clients=range(3)) as swarm:
            outcomes = await swarm.round(SIZE_ELEMS, bandwidths=[0, 0, 0])
            assert all(isinstance(outcome, RoundError) for outcome in outcomes)

    run_simulated(main(), limit_s=SLOW_S)


def test_who_is_alone_reduces_for_itself_even_without_bandwidth() -> None:
    async def main() -> None:
        async with SimulatedSwarm(1) as swarm:
            (only,) = averaged(await swarm.round(SIZE_ELEMS, bandwidths=[0]))
            assert torch.equal(only.vector_D, swarm.vector(0, SIZE_ELEMS))

    run_simulated(main(), limit_s=SLOW_S)


def test_a_group_that_is_full_still_gives_its_result_to_the_others() -> None:
    async def main() -> None:
        async with SimulatedSwarm(3, averaging=rules(max_group=2)) as swarm:
            done = averaged(await swarm.round(SIZE_ELEMS))
            assert len(done) >= 2
            assert same_bytes(done)
            assert {len(outcome.members) for outcome in done if outcome.included_us} == {2}

    run_simulated(main(), limit_s=SLOW_S)
