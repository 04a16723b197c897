"""Bad joins, reports and leaders: everybody else ends with the same bytes, in bounded time, and knows whom to blame."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from peers.simulation import run_simulated
from peers.testing import KeyNotary, make_key
from protocols.errors import RemoteRefusal, RoundError
from protocols.frames import HEARTBEAT
from protocols.ids import Epoch
from protocols.messages import Commit, Report, parse
from protocols.proto.swarm.v1 import control_pb2 as pb
from protocols.settlement import MAX_ATTEMPTS
from tests.helpers.averaging_swarm import STATE_HASH, SimulatedSwarm, averaged
from tests.helpers.swarm_liars import BAD_FRAMES, COUNT, LAST, LEADER, PART, SECOND, SIZE_ELEMS, SLOW_S, altered, offender_of, play
from tests.helpers.swarm_tampering import Tamper


def saying(where: str, change: Callable[[bytes], bytes]) -> Callable[[str, bytes], list[bytes]]:
    """Change the one message of a join or a settlement that says something."""

    def alter(method: str, message: bytes) -> list[bytes]:
        says_something = method == where and message != HEARTBEAT and len(message) != HEADER_BYTES
        return [change(message)] if says_something else [message]

    return alter


HEADER_BYTES = len(pb.ExchangeHeader(plan_digest=bytes(32)).SerializeToString())

# Joins


def sealed_by(number: int, weight: float = 1.0) -> bytes:
    return KeyNotary(make_key(number)).seal("join", pb.Join(state_hash=STATE_HASH, weight=weight).SerializeToString())


@pytest.mark.parametrize(
    "sealed",
    [sealed_by(SECOND), sealed_by(LAST, float("nan")), sealed_by(LAST, -1.0), b"junk" * 40, b"j" * 2**20],
    ids=["another's", "NaN", "negative", "junk", "huge"],
)
def test_a_bad_join_is_refused_and_its_sender_named(sealed: bytes) -> None:
    done, blamed = play(LAST, Tamper(dialled=saying("join", lambda _: sealed)))
    assert offender_of(LAST) in blamed
    assert len(done[0].contributors) == COUNT - 1


# Reports


def short_report(data: bytes) -> bytes:
    report = Report.decode(data, offender_of(LAST))
    return replace(report, block_hashes=report.block_hashes[:-1]).encode()


def lying_report(data: bytes) -> bytes:
    report = Report.decode(data, offender_of(LAST))
    return replace(report, block_hashes=(b"x" * 32,) * len(report.block_hashes)).encode()


@pytest.mark.parametrize("report", [short_report, lying_report, lambda _: b"junk"], ids=["short", "lying", "junk"])
def test_a_bad_report_does_not_stop_the_others(report: Callable[[bytes], bytes]) -> None:
    done, blamed = play(LAST, Tamper(dialled=saying("settle", report)), limit_s=SLOW_S)
    assert offender_of(LAST) in blamed
    assert done[0].weight == COUNT


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
FALSE_COMMIT = Commit(b"p" * 32, Epoch(0), (b"x" * 32,) * NUM_BLOCKS, 4.0, STATE_HASH)

BAD_ANSWERS_TO_A_JOIN: dict[str, Callable[[bytes], bytes]] = {
    "junk": lambda _: b"junk",
    "plan without us": join_reply(leave_us_out),
    "another reducer": join_reply(favour_itself),
    "another size": join_reply(lambda message: setattr(message.plan, "size_elems", 2 * SIZE_ELEMS)),
    "another codec": join_reply(lambda message: setattr(message.plan, "codec", "fp16")),
    "fewer counted than are in it": join_reply(lambda message: setattr(message.plan, "counted", COUNT - 1)),
    "too many counted": join_reply(lambda message: setattr(message.plan, "counted", 2 * COUNT)),
    "a later attempt": join_reply(lambda message: setattr(message.plan, "attempt", 1)),
    "a forged join": join_reply(lambda message: message.plan.sealed_joins.append(b"f" * 200)),
    "too many joins": join_reply(lambda message: message.plan.sealed_joins.extend([sealed_by(0)] * 65)),
    "commit of another epoch": join_reply(commit_reply(replace(FALSE_COMMIT, epoch=Epoch(9)))),
    "commit of another size": join_reply(commit_reply(replace(FALSE_COMMIT, block_hashes=(b"x" * 32,)))),
    "commit to nothing": join_reply(commit_reply(replace(FALSE_COMMIT, weight=0.0))),
}


@pytest.mark.parametrize("what", BAD_ANSWERS_TO_A_JOIN)
def test_a_leader_that_answers_joins_badly_is_passed_over_and_named(what: str) -> None:
    done, blamed = play(LEADER, Tamper(served=saying("join", BAD_ANSWERS_TO_A_JOIN[what])), limit_s=SLOW_S)
    assert offender_of(LEADER) in blamed
    assert done[0].weight >= COUNT - 1


def verdict(change: Callable[[pb.Verdict], None]) -> Callable[[bytes], bytes]:
    def apply(_answer: bytes) -> bytes:
        message = pb.Verdict()
        change(message)
        return message.SerializeToString()

    return apply


BAD_VERDICTS: dict[str, Callable[[bytes], bytes]] = {
    "junk": lambda _: b"junk",
    "another round": verdict(lambda message: message.commit.CopyFrom(FALSE_COMMIT.to_message())),
    "repair that counts fewer members": verdict(lambda message: message.repair.CopyFrom(pb.Plan(epoch=0, attempt=1, counted=1))),
    "repair of other members": verdict(lambda message: message.repair.sealed_joins.append(b"f" * 200)),
}


@pytest.mark.parametrize("what", BAD_VERDICTS)
def test_a_leader_that_judges_badly_is_passed_over_and_named(what: str) -> None:
    _, blamed = play(LEADER, Tamper(served=saying("settle", BAD_VERDICTS[what])), limit_s=SLOW_S)
    assert offender_of(LEADER) in blamed


def test_a_leader_that_orders_repairs_for_ever_is_passed_over() -> None:
    """Every repair is well formed and in turn, and there is nothing to repair."""
    plan = pb.Plan()
    asked = Counter[str]()

    def note_plan(answer: bytes) -> bytes:
        plan.CopyFrom(parse(pb.JoinReply, answer, None).plan)
        return answer

    def more_repairs(_answer: bytes) -> bytes:
        repair = pb.Verdict(repair=plan)
        repair.repair.attempt = 1 + asked["verdict"] // (COUNT - 1)
        repair.repair.ClearField("reduce")
        asked["verdict"] += 1
        return repair.SerializeToString()

    def served(method: str, message: bytes) -> list[bytes]:
        return saying("join", note_plan)(method, message) if method == "join" else saying("settle", more_repairs)(method, message)

    play(LEADER, Tamper(served=served), limit_s=SLOW_S)
    assert 0 < asked["verdict"] <= 2 * (COUNT - 1) * (MAX_ATTEMPTS + 1)


def test_a_leader_that_commits_to_made_up_blocks_cannot_keep_the_epoch_open() -> None:
    def false_commit(answer: bytes) -> bytes:
        message = parse(pb.Verdict, answer, None)
        if message.HasField("commit"):
            for number in range(len(message.commit.block_hashes)):
                message.commit.block_hashes[number] = b"x" * 32
        return message.SerializeToString()

    done, _ = play(LEADER, Tamper(served=saying("settle", false_commit)), limit_s=SLOW_S)
    assert done[0].weight >= COUNT - 1


def test_the_weight_of_a_round_is_not_the_leaders_word() -> None:
    def heavier(answer: bytes) -> bytes:
        message = parse(pb.Verdict, answer, None)
        message.commit.weight = 1e6
        return message.SerializeToString()

    done, _ = play(LEADER, Tamper(served=saying("settle", heavier)))
    assert [outcome.weight for outcome in done] == [COUNT] * 3


@pytest.mark.parametrize("code", ["no-quorum", "group-full", "behind", "state-differs", "ahead", "round-formed", "following"])
def test_one_leaders_refusal_is_not_the_swarms(code: str) -> None:
    def refuse(method: str, message: bytes) -> list[bytes]:
        if method == "join":
            raise RemoteRefusal(None, code, "go away")
        return [message]

    done, _ = play(LEADER, Tamper(served=refuse), limit_s=SLOW_S)
    assert done[0].weight >= COUNT - 1


@pytest.mark.parametrize("offender", [LEADER, SECOND])
def test_a_member_that_never_answers_calls_costs_one_deadline(offender: int) -> None:
    async def never(name: str, answer: bytes) -> bytes:
        if name == "closing":
            await asyncio.Event().wait()
        return answer

    play(offender, Tamper(reply=never), limit_s=SLOW_S)


FALSE_ANSWER = pb.ClosingReply(commit=replace(FALSE_COMMIT, epoch=Epoch(9)).to_message()).SerializeToString()


@pytest.mark.parametrize("answer", [b"junk", FALSE_ANSWER], ids=["junk", "commit"])
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


@pytest.mark.parametrize("where", ["join", "settle"])
@pytest.mark.parametrize("offender", [LEADER, SECOND])
def test_a_member_that_never_says_a_word_costs_one_deadline(where: str, offender: int) -> None:
    def nothing(method: str, message: bytes) -> list[bytes]:
        return [] if method == where else [message]

    play(offender, Tamper(served=nothing, dialled=nothing), limit_s=SLOW_S)
