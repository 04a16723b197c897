"""A round in which one member lies or is broken, and what the others got."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from peers.averaging.averager import Averaged
from peers.simulation import run_simulated
from peers.testing import KeyNotary, make_key
from protocols.ids import Epoch, PeerId, RoundId
from protocols.rendezvous import rendezvous_order
from tests.helpers.averaging_swarm import RUN, SimulatedSwarm, averaged, same_bytes
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

    with no_bug_of_ours():
        return run_simulated(main(), seed=2, limit_s=10 * limit_s)


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


@contextmanager
def no_bug_of_ours() -> Iterator[None]:
    """What a stranger sends must not be logged as an error of our own."""
    errors = _Errors()
    logging.getLogger().addHandler(errors)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(errors)
    assert errors.seen == []


def offender_of(number: int) -> PeerId:
    """The identity of a member."""
    return KeyNotary(make_key(number)).peer
