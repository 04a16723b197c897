"""The demonstration's main path: start the peers, watch them, kill one, let one join, stop all, compare, export, sample."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import RenderableType

from swarm.demo.plan import Action, Decision, Plan, Seen, bans_seen, common_hashes, decide, held_out_loss, swarm_epoch, takes_part
from swarm.demo.processes import PeerProcess, run_command, start_peer, stop_all
from swarm.demo.report import BannedMember, DemoError, DemoReport
from swarm.monitoring.status import BannedStatus, PeerStatus
from swarm.monitoring.table import Row, ban_line, own_row, render, summary_of

RUN_FILE = Path(__file__).with_name("run.toml")
COORDINATOR = "coordinator"
LOOK_EVERY_S = 0.5
START_S = 60.0
COMMAND_S = 60.0
SAMPLE_BYTES = 200
_LOOPBACK = ("--listen", "127.0.0.1:0", "--announce", "127.0.0.1", "--set", "libp2p_listen=/ip4/127.0.0.1/tcp/0")


@dataclass(slots=True)
class Demo:
    """One demonstration.

    Args:
        plan: its limits.
        folder: empty or new; gets state directories, logs and the export.
        say: shows one sentence.
        show: shows the table, about twice a second.
    """

    plan: Plan
    folder: Path
    say: Callable[[str], None]
    show: Callable[[RenderableType], None]
    peers: list[PeerProcess] = field(default_factory=list)
    loss_start: float | None = None
    joined_epoch: int | None = None
    bans: dict[str, BannedStatus] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def run(self) -> DemoReport:
        """Do everything; whatever happens, no process of ours is left.

        Raises:
            DemoError: a process died or the swarm did not start; says which log to read and how it ends.
        """
        try:
            self._start()
            while (decision := self._look()).action is not Action.STOP:
                self._follow(decision)
                time.sleep(LOOK_EVERY_S)
            self.say(f"Stopping everybody: {decision.reason}.")
            return self._conclude()
        finally:
            stop_all(self.peers)

    @property
    def elapsed_s(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "init.log"
        code, _ = run_command(["init", str(RUN_FILE), "--state-dir", str(self.folder / COORDINATOR)], log, timeout_s=COMMAND_S)
        if code != 0:
            raise DemoError(f"The run could not be made (exit code {code}), see {log}:\n{_end_of(log)}")
        invite = self.folder / "invite.txt"
        self._launch(COORDINATOR, "coordinate", "--invite-file", str(invite))
        self.say("The coordinator starts and writes an invite ...")
        while not invite.exists():
            if self.peers[0].exit_code() is not None:
                raise self._failure(f"{COORDINATOR} ended by itself with exit code {self.peers[0].exit_code()}", self.peers[0])
            if self.elapsed_s > START_S:
                raise self._failure(f"{COORDINATOR} wrote no invite within {START_S:.0f} s", self.peers[0])
            self._draw([], None)
            time.sleep(LOOK_EVERY_S / 5)
        cast = self.plan.cast
        self.say(f"{cast.volunteers} volunteers join by the invite ...")
        for name, attack in cast.attackers.items():
            self.say(f"{name} will attack: {attack}.")
        for name in cast.names:
            self._join(name, cast.attackers.get(name))

    def _join(self, name: str, attack: str | None = None) -> None:
        extra = ("--attack", attack) if attack else ()
        self._launch(name, "join", f"@{self.folder / 'invite.txt'}", "--device", "cpu", "--set", "threads=1", *extra)

    def _launch(self, name: str, command: str, *arguments: str) -> None:
        self.peers.append(start_peer(name, [command, *arguments, *_LOOPBACK], self.folder, threads=1))

    def _running(self) -> list[PeerProcess]:
        return [peer for peer in self.peers if not peer.killed and not (peer.name in self.bans and peer.exit_code() is not None)]

    def _state_of(self, peer: PeerProcess) -> str | None:
        """What the table says of a peer instead of its own word."""
        return "killed" if peer.killed else "banned" if peer.name in self.bans else None

    def _look(self) -> Decision:
        """See what everybody reports, show it, and decide."""
        statuses = {peer.name: peer.status() for peer in self._running()}
        codes = {peer.name: peer.exit_code() for peer in self._running()}
        loss = held_out_loss(statuses.values())
        if self.loss_start is None and loss is not None:
            self.loss_start = loss
        self._note_bans(statuses)
        cast = self.plan.cast
        newcomer = statuses.get(cast.newcomer)
        if self.joined_epoch is None and newcomer is not None and takes_part(newcomer):
            self.joined_epoch = newcomer.epoch
            self.say(f"{cast.newcomer} trains along since epoch {newcomer.epoch}.")
        seen = Seen(
            elapsed_s=self.elapsed_s,
            statuses=statuses,
            exited={name: code for name, code in codes.items() if code is not None},
            killed=any(peer.killed for peer in self.peers),
            newcomer=cast.newcomer if cast.newcomer in statuses else "",
            joined_epoch=self.joined_epoch,
            bans=self.bans,
        )
        decision = decide(seen, self.plan)
        self._draw(list(statuses.values()), decision)
        return decision

    def _note_bans(self, statuses: Mapping[str, PeerStatus | None]) -> None:
        """Say aloud who has been banned since we last looked. Attackers are not asked."""
        self.names.update({status.peer: name for name, status in statuses.items() if status is not None})
        honest = {name: status for name, status in statuses.items() if name not in self.plan.cast.attackers}
        for name, ban in bans_seen(honest, self.names).items():
            if name not in self.bans:
                self.bans[name] = ban
                self.say(f"{ban_line(name, ban)}.")

    def _follow(self, decision: Decision) -> None:
        if decision.action is Action.KILL:
            victim = next(peer for peer in self.peers if peer.name == self.plan.cast.victim)
            victim.kill()
            self.say(f"{victim.name} is killed with SIGKILL: {decision.reason}.")
        elif decision.action is Action.JOIN:
            self.say(f"{self.plan.cast.newcomer} starts: {decision.reason}.")
            self._join(self.plan.cast.newcomer)
        elif decision.action is Action.FAIL:
            guilty = next((peer for peer in self._running() if peer.exit_code() is not None), self.peers[0])
            raise self._failure(decision.reason, guilty)

    def _draw(self, statuses: Sequence[PeerStatus | None], decision: Decision | None) -> None:
        rows: list[Row] = [own_row(peer.name, peer.status(), self._state_of(peer)) for peer in self.peers]
        known = [status for status in statuses if status is not None]
        if not known:
            self.show(render(rows, None))
            return
        front = max((status for status in known if self.names.get(status.peer) not in self.bans), key=lambda status: status.epoch)
        note = f"{self.elapsed_s:.0f} s: {decision.reason}" if decision else ""
        self.show(render(rows, summary_of(front, note, self.names)))

    def _conclude(self) -> DemoReport:
        """Stop everybody, compare what they hold, export it, load it and sample from it."""
        members = [peer for peer in self._running() if peer.name not in self.bans]
        forced = stop_all(self._running())
        if forced:
            self.say(f"Had to be forced to stop: {', '.join(forced)}.")
        final = {peer.name: peer.status() for peer in members}
        agreed = common_hashes(final)
        export = self._export(members)
        attackers = self.plan.cast.attackers
        return DemoReport(
            loss_start=self.loss_start,
            loss_end=held_out_loss(final.values()),
            epochs=swarm_epoch(final.values()),
            members=len(members),
            killed=sum(peer.killed for peer in self.peers),
            joined=int(self.joined_epoch is not None),
            anchors_equal=agreed is not None and len(set(agreed[1].values())) == 1 and not forced,
            export=export,
            hash_epoch=agreed[0] if agreed else None,
            hashes=agreed[1] if agreed else {},
            sample=self._sample(export) if export else "",
            attackers=len(attackers),
            banned=tuple(BannedMember(name, attackers.get(name, ""), ban.reason, ban.epoch) for name, ban in self.bans.items()),
            seconds=self.elapsed_s,
        )

    def _export(self, members: Sequence[PeerProcess]) -> str:
        """Write the newest checkpoint any member has on its disk as a Hugging Face folder; "" on failure."""
        holders = [peer for peer in members if any((peer.state_dir / "checkpoints").glob("*"))]
        if not holders:
            self.say("Nobody wrote a checkpoint.")
            return ""
        holder = max(holders, key=lambda peer: status.epoch if (status := peer.status()) else -1)
        target = self.folder / "export"
        shutil.rmtree(target, ignore_errors=True)
        log = self.folder / "export.log"
        code, _ = run_command(["export", str(target), "--state-dir", str(holder.state_dir)], log, timeout_s=COMMAND_S)
        if code != 0:
            self.say(f"The export failed (exit code {code}), see {log}:\n{_end_of(log)}")
            return ""
        return str(target)

    def _sample(self, export: str) -> str:
        """Text from the exported folder, loaded by transformers in a process of its own; "" on failure."""
        log = self.folder / "generate.log"
        code, output = run_command(
            ["generate", export, "--bytes", str(SAMPLE_BYTES), "--prompt", "def ", "--json"], log, timeout_s=COMMAND_S
        )
        if code != 0:
            self.say(f"Sampling failed (exit code {code}), see {log}:\n{_end_of(log)}")
            return ""
        return str(json.loads(output.strip().splitlines()[-1])["text"])

    def _failure(self, reason: str, peer: PeerProcess) -> DemoError:
        return DemoError(f"The demonstration failed: {reason}. Read {peer.log}; it ends so:\n{peer.tail()}")


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
