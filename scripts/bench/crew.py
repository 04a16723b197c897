"""The member processes of one made-up run, as whoever measures them sees it: `scripts.bench.member` is their side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.identity import Identity
from peers.private_files import PUBLIC_MODE, make_private_dir, write_atomic
from protocols.certificate_chain import pem_from_der
from protocols.ids import SwarmTime
from protocols.invite import MAX_ADDRESSES
from protocols.issuing import Issuer, make_run_ca, serial_for
from protocols.runspec import RunSpec, SignedRunSpec
from scripts.bench import processes
from scripts.bench.fleet import BenchmarkError, Worker
from swarm.runfile import AUTHORITY_KEY, RUN_CA, new_invite, save_spec

MODULE = "scripts.bench.member"
READY_TIMEOUT_S = 180.0
CLOSE_TIMEOUT_S = 8.0
RUN_LIFETIME_S = 86_400.0
NEVER = 10**8
"""Samples that are never reached: whoever measures says when an epoch closes."""


def made_up_run(name: str, averaging: Mapping[str, object], target_samples: int = NEVER) -> RunSpec:
    """What the members of a benchmark share; its model is never built."""
    settings = {
        "run": {"name": name},
        "model": {"preset": "tiny"},
        "optimizer": {"target_batch_samples": target_samples},
        "averaging": dict(averaging),
    }
    return RunSpec.from_settings(settings)


@dataclass(slots=True)
class CrewMember:
    """One member process.

    Args:
        rank: which.
        worker: the process.
        peer: its name; empty until it is ready.
        addresses: its libp2p addresses.
        started_s: monotonic.
    """

    rank: int
    worker: Worker
    peer: str = ""
    addresses: tuple[str, ...] = ()
    started_s: float = field(default_factory=time.monotonic)

    def await_ready(self) -> dict[str, Any]:
        """Wait until others can reach it; returns what it says about itself.

        Raises:
            BenchmarkError: it does not come up.
        """
        ready = self.worker.expect("ready", READY_TIMEOUT_S)
        self.peer, self.addresses = ready["peer"], tuple(ready["addresses"])
        about: dict[str, Any] = ready["about"]
        return about


class Crew:
    """The run's authority, and all member processes that were started.

    Args:
        directory: scratch; state directories and logs lie in it.
        spec: the run.
        elems: D, length of the vectors.
        seed: determines them.
    """

    def __init__(self, directory: Path, spec: RunSpec, elems: int, seed: int) -> None:
        self._directory = directory
        self._elems = elems
        self._seed = seed
        self._authority_key = Identity.generate()
        self._signed = SignedRunSpec.sign(spec, self._authority_key)
        now = time.time()
        name, serial = spec.run.name, serial_for(self._signed.run_id.digest)
        ca = make_run_ca(self._authority_key.private_key, name, serial, SwarmTime(now - 3600), SwarmTime(now + RUN_LIFETIME_S))
        self._authority = Issuer(self._authority_key.private_key, ca)
        self.members: dict[int, CrewMember] = {}

    def start(self, rank: int, weight: float, invite: str | None, *, role: str = "trainer", expected: Path | None = None) -> CrewMember:
        """Start one member; `await_ready` says when it is up. Without an invite it founds the run.

        Args:
            rank: of a member that was never started before.
            weight: samples that its vector stands for.
            invite: how it gets in.
            role: "trainer", "helper" or "client".
            expected: file with the exact mean of an epoch; None: results are not judged.
        """
        state_dir = self._directory / f"member-{rank}"
        if invite is None:
            self._write_run(state_dir)
        member = CrewMember(rank, Worker(MODULE, rank, self._directory / f"member-{rank}.log", []))
        self.members[rank] = member
        member.worker.send(
            "open",
            rank=rank,
            state_dir=str(state_dir),
            invite=invite,
            elems=self._elems,
            seed=self._seed,
            weight=weight,
            role=role,
            expected=str(expected) if expected else None,
        )
        return member

    def invite(self, members: Sequence[CrewMember]) -> str:
        """A fresh invite that leads to these members."""
        addresses = [address for member in members for address in member.addresses][:MAX_ADDRESSES]
        return new_invite(self._signed, self._authority, addresses, now=SwarmTime(time.time()), lifetime_s=RUN_LIFETIME_S / 2)

    def _write_run(self, state_dir: Path) -> None:
        make_private_dir(state_dir)
        save_spec(state_dir, self._signed)
        write_atomic(state_dir / "run" / AUTHORITY_KEY, self._authority_key.seed)
        write_atomic(state_dir / "run" / RUN_CA, pem_from_der(self._authority.certificate), PUBLIC_MODE)

    def found(self, weights: Sequence[float], expected: Path | None = None) -> dict[str, Any]:
        """Start a member for each weight, rank 0 founding the run, and wait for all; returns versions.

        Raises:
            BenchmarkError: one does not come up.
        """
        founder = self.start(0, weights[0], None, expected=expected)
        about = founder.await_ready()
        invite = self.invite([founder])
        others = [self.start(rank, weight, invite, expected=expected) for rank, weight in enumerate(weights) if rank]
        for member in others:
            member.await_ready()
        return about

    def ask(self, op: str, event: str, timeout_s: float, **fields: object) -> dict[int, dict[str, Any]]:
        """Give all members one order; returns their answers by rank.

        Raises:
            BenchmarkError: one did not answer.
        """
        for member in self.members.values():
            member.worker.send(op, **fields)
        return {rank: member.worker.expect(event, timeout_s) for rank, member in self.members.items()}

    def meet(self, timeout_s: float) -> None:
        """Wait until everybody knows everybody.

        Raises:
            BenchmarkError: they do not find each other in time.
        """
        count = len(self.members)
        answers = self.ask("meet", "met", timeout_s + 30, members=count, within_s=timeout_s)
        known = sorted(answer["members"] for answer in answers.values())
        if known[0] < count:
            raise BenchmarkError(f"After {timeout_s:.0f} s the members know {known} of {count}.")

    @property
    def sessions(self) -> set[int]:
        """Session ids of the workers; their libp2p daemons have their own."""
        return {member.worker.session for member in self.members.values()}

    def close(self) -> None:
        """End every process, by process id, whatever state it is in. Daemons end with their members."""
        daemons = processes.descendants(self.sessions) - self.sessions
        for member in self.members.values():
            member.worker.hang_up()
        processes.end(self.sessions, grace_s=CLOSE_TIMEOUT_S)
        for member in self.members.values():
            member.worker.reap()
        processes.await_end(daemons, timeout_s=CLOSE_TIMEOUT_S)
