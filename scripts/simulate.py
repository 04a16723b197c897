"""A swarm of a thousand averagers in one process, on virtual time: the real code, a simulated network, everything drawn from one seed.

    python -m scripts.simulate --peers 1000 --rounds 20 --crash-rate 0.01 --loss 0.01 --rtt-ms 20-200 --mbit 10-1000 --seed 7 --json
    python -m scripts.simulate --peers 200 --attackers 0.2 --crash-rate 0.02 --loss 0.01 --seed 7 --json

Members average one vector after the other along the grid, die in the middle of rounds and come back with the next epoch. The same command
gives the same `digest` in every process: it covers every outcome of every round of every member with its virtual time and result.

With attackers rounds are verified, and the simulation ends an epoch after the last of them is out, after `--rounds` at the latest.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from peers.attacks.protocol import PROTOCOL_ATTACKS
from peers.attacks.vectors import VECTOR_ATTACKS
from peers.simulation import run_simulated
from protocols.frames import MAX_MEMBERS
from protocols.messages import MAX_BLOCKS
from scripts.simulation.figures import Figures
from scripts.simulation.scenario import Scenario
from scripts.simulation.swarm import SimulatedSwarm

ATTACKS = (*PROTOCOL_ATTACKS, *VECTOR_ATTACKS)
"""Of `--attack`."""
UNPROVABLE = ("two_faced_unsigned", "selective_silence", "replay", "forge")
"""What these do is seen by those alone to whom it is done. In a grid that is a few of a group, whose word proves nothing to the others:
what such attackers send is not used, and they stay. Attackers do all others by default."""
PROVABLE = tuple(name for name in ATTACKS if name not in UNPROVABLE)
MOST = 1e6
"""Milliseconds, or Mbit/s."""
MOST_PEERS = 100_000
MOST_KIB = 2**20
_ROUNDS, _ROUNDS_WITH_ATTACKERS = 20, 60


@contextmanager
def few_garbage_collections() -> Iterator[None]:
    """Collect cycles only when there are very many: a simulation holds millions of objects, and looking at all of them is half the work."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(5_000_000, 50, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def simulate(scenario: Scenario, console: Console) -> dict[str, Any]:
    """Run it, with a progress bar.

    Returns:
        What `--json` prints.
    """
    began_s = time.perf_counter()
    torch.set_num_threads(1)  # tensors are small
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with few_garbage_collections(), Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("rounds of members", total=scenario.peers * scenario.epochs * len(scenario.grid.sides))

        async def run() -> Figures:
            return await SimulatedSwarm(scenario, lambda done: progress.advance(task, done)).run()

        figures = run_simulated(run(), scenario.seed)
    epochs = figures.epochs or scenario.epochs
    about: dict[str, Any] = {
        "peers": scenario.peers,
        "rounds": epochs * len(scenario.grid.sides),
        "d": len(scenario.grid.sides),
        "sides": list(scenario.grid.sides),
        "max_group": scenario.max_group,
        "vector_bytes": 4 * scenario.elems,
        "blocks": scenario.blocks,
        "seed": scenario.seed,
    }
    if scenario.auditors:
        about |= {"epochs": epochs, "attackers": scenario.attackers, "auditors": scenario.auditors}
    return {**figures.summary(), "wall_s": round(time.perf_counter() - began_s, 1), **about}


def show(found: dict[str, Any], console: Console) -> None:
    """The same for people."""
    sides = " x ".join(map(str, found["sides"]))
    shown = Table(title=f"{found['peers']} members, {found['rounds']} rounds on a grid of {sides}, seed {found['seed']}")
    shown.add_column("figure")
    shown.add_column("value", justify="right")
    shown.add_row("member rounds that ended well", f"{100 * found['success']:.3f} % of {found['member_rounds']}")
    shown.add_row("members stuck", str(found["stuck"]))
    shown.add_row("members that died", str(found["crashed"]))
    shown.add_row("epochs that members could not close", ", ".join(f"{n} {name}" for name, n in found["failures"].items()) or "0")
    shown.add_row("epochs closed without the member's part", str(found["late"]))
    shown.add_row("virtual seconds of a round, p50 and p99", f"{found['round_s_p50']:.2f}, {found['round_s_p99']:.2f}")
    for index in range(found["d"]):
        errors = found["rel_error"][index :: found["d"]]
        shown.add_row(f"relative error after round {index + 1} of {found['d']}, worst epoch", f"{max(errors):.1e}")
    if "bans" in found:
        shown.add_row("attackers left", f"{found['attackers_left']} of {found['attackers']}")
        shown.add_row("honest members banned", str(found["honest_banned"]))
        shown.add_row("bans", ", ".join(f"{n} {name}" for name, n in found["bans"].items()) or "0")
        shown.add_row("epochs to the last ban", str(found["epochs_to_last_ban"]))
    shown.add_row("wall clock", f"{found['wall_s']:.1f} s")
    shown.add_row("digest", found["digest"][:16])
    console.print(shown)


def positive_range(text: str) -> tuple[float, float]:
    """Read "20-200" or "50".

    Raises:
        argparse.ArgumentTypeError: it is no such range, or beyond all measure.
    """
    found = re.fullmatch(r"([0-9.]+)(?:-([0-9.]+))?", text)
    try:
        low, high = (float(found[1]), float(found[2] or found[1])) if found else (0.0, 0.0)
    except ValueError:
        low, high = 0.0, 0.0
    if not 1e-3 <= low <= high <= MOST:
        raise argparse.ArgumentTypeError(f"'{text}' is no range of positive numbers such as 20-200")
    return low, high


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.simulate", description="Many averagers in one process on virtual time; a seed gives the same digest always."
    )
    parser.add_argument("--peers", type=int, default=1000, help="members")
    parser.add_argument(
        "--rounds", type=int, default=None, help="averaging rounds, made up to whole epochs; 20, or with attackers at most 60"
    )
    parser.add_argument("--crash-rate", type=float, default=0.01, help="probability that a member dies in a round")
    parser.add_argument("--loss", type=float, default=0.01, help="probability that a message has to be sent again")
    parser.add_argument("--rtt-ms", type=positive_range, default=(20.0, 200.0), help="round-trip times of members, ms: least-largest")
    parser.add_argument("--mbit", type=positive_range, default=(10.0, 1000.0), help="speeds of members' links, Mbit/s: least-largest")
    parser.add_argument("--clients", type=float, default=0.0, help="share of members that nobody can dial")
    parser.add_argument("--max-group", type=int, default=16, help="most members of a group")
    parser.add_argument("--kib", type=int, default=64, help="size of everybody's fp32 vector, KiB")
    parser.add_argument("--blocks", type=int, default=4, help="blocks that a vector is cut into")
    parser.add_argument("--seed", type=int, default=7, help="of everything random")
    parser.add_argument("--attackers", type=float, default=0.0, help="members that attack: a share below 1, or a number")
    parser.add_argument("--attack", action="append", choices=ATTACKS, help="what they do, in turn; all that can be proved by default")
    parser.add_argument("--auditors", type=int, default=8, help="members of each first group that replay another's contribution")
    parser.add_argument("--verify", action=argparse.BooleanOptionalAction, default=None, help="verify rounds; by default with attackers")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    if options.verify is None:
        options.verify = options.attackers > 0
    if options.rounds is None:
        options.rounds = _ROUNDS_WITH_ATTACKERS if options.attackers else _ROUNDS
    if min(options.peers, options.rounds, options.kib, options.blocks) < 1 or options.seed < 0:
        parser.error("--peers, --rounds, --kib and --blocks need at least 1, --seed at least 0.")
    if not 2 <= options.max_group <= MAX_MEMBERS:
        parser.error(f"--max-group needs 2 to {MAX_MEMBERS} members.")
    if options.peers > MOST_PEERS or options.kib > MOST_KIB or options.blocks > MAX_BLOCKS:
        parser.error(f"at most {MOST_PEERS} --peers, {MOST_KIB} --kib and {MAX_BLOCKS} --blocks: more does not fit into memory.")
    if not all(0 <= share < 1 for share in (options.crash_rate, options.loss, options.clients)):
        parser.error("--crash-rate, --loss and --clients are probabilities below 1.")
    if not 0 <= options.attackers < options.peers or options.auditors < 1:
        parser.error("--attackers is at least 0 and leaves an honest member; --auditors needs at least 1.")
    return options


def scenario_of(options: argparse.Namespace) -> Scenario:
    """What the command line asks for."""
    attackers = round(options.attackers * options.peers) if options.attackers < 1 else int(options.attackers)
    auditors = options.auditors if options.verify else 0
    return Scenario(
        options.peers, options.rounds, options.crash_rate, options.loss, options.rtt_ms, options.mbit, options.clients, options.max_group,
        options.kib * 256, options.blocks, options.seed, attackers, tuple(options.attack or PROVABLE), auditors,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, show, and say in JSON; see `--help`.

    Returns:
        Process exit code: 0, 2 wrong arguments, 130 interrupted.
    """
    options = parse_arguments(arguments)
    scenario = scenario_of(options)
    console = Console(stderr=True)
    try:
        found = simulate(scenario, console)
    except KeyboardInterrupt:
        console.print("simulation: interrupted")
        return 130
    show(found, console)
    if options.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
