"""Hours in minutes: members killed and added every few seconds, links cut, rounds going on all the time.

    python scripts/soak.py --minutes 20 --plot docs/soak.svg --json

Real members on loopback as volunteers have them (libp2p daemon, DHT, mutual TLS) with a made-up trainer, `scripts.bench.member`: some
elders that live through it all, and some that are killed with SIGKILL and replaced by newcomers, which join by an invite and fetch the
state. Now and then a member, elders included, is stopped together with its daemon for some seconds: its connections stay open and nothing
answers. Every few seconds each process is asked and looked at: memory, file descriptors, asyncio tasks, threads, rounds.

`scripts/soaking/verdict.py` says what counts as flat and as stuck. The exit code is 0 only if nothing is complained about.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

REPOSITORY = Path(__file__).resolve().parents[1]
if str(REPOSITORY) not in sys.path:  # run as a file, Python looks for modules beside it only
    sys.path.insert(0, str(REPOSITORY))

from scripts.bench.fleet import BenchmarkError  # noqa: E402
from scripts.soaking.plot import svg  # noqa: E402
from scripts.soaking.swarm import SoakSwarm  # noqa: E402
from scripts.soaking.verdict import Record, summary  # noqa: E402

TICK_S = 0.2
SAY_EVERY_S = 30.0


def soak(options: argparse.Namespace, directory: Path, console: Console) -> Record:
    """Run it to its end; every process is gone afterwards.

    Raises:
        BenchmarkError: the members do not come up.
    """
    swarm = SoakSwarm(directory, options.elders, options.members - options.elders, options.seed)
    try:
        console.print(f"starting {options.members} members, {options.elders} of them elders")
        swarm.open()
        _befall(swarm, options, console)
    except KeyboardInterrupt:
        console.print("interrupted: judging what there is")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        swarm.close()
    swarm.finish()
    return swarm.record


def _befall(swarm: SoakSwarm, options: argparse.Namespace, console: Console) -> None:
    chance = swarm.chance()
    kill_at_s = cut_at_s = sample_at_s = say_at_s = 0.0
    while swarm.at_s < 60 * options.minutes:
        swarm.tick()
        now_s = swarm.at_s
        if now_s >= kill_at_s:
            if kill_at_s:
                swarm.kill_one()
            kill_at_s = now_s + chance.uniform(0.5, 1.5) * options.kill_every_s
        if now_s >= cut_at_s:
            if cut_at_s:
                swarm.cut_one(chance.uniform(1.0, options.longest_cut_s))
            cut_at_s = now_s + chance.uniform(0.5, 1.5) * options.cut_every_s
        if now_s >= sample_at_s:
            swarm.sample()
            sample_at_s = swarm.at_s + options.sample_every_s
        if now_s >= say_at_s:
            console.print(swarm.line())
            say_at_s = now_s + SAY_EVERY_S
        time.sleep(TICK_S)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/soak.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long, once all members are up")
    parser.add_argument("--members", type=int, default=7, help="members at any time")
    parser.add_argument("--elders", type=int, default=3, help="those among them that are never killed")
    parser.add_argument("--kill-every-s", type=float, default=10.0, help="mean seconds between two kills; a newcomer follows each")
    parser.add_argument("--cut-every-s", type=float, default=20.0, help="mean seconds between two cut links")
    parser.add_argument("--longest-cut-s", type=float, default=8.0, help="a link is cut for 1 s up to this")
    parser.add_argument("--sample-every-s", type=float, default=5.0, help="seconds between two looks at all processes")
    parser.add_argument("--seed", type=int, default=1, help="of what befalls whom")
    parser.add_argument("--plot", type=Path, help="write an SVG picture here")
    parser.add_argument("--keep", type=Path, help="keep members' logs and state directories in this new directory")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    if not 1 <= options.elders < options.members:
        parser.error("--elders needs at least 1, and --members more than --elders.")
    if min(options.minutes, options.kill_every_s, options.cut_every_s, options.longest_cut_s - 1, options.sample_every_s) <= 0:
        parser.error("--minutes and all the seconds must be positive, --longest-cut-s more than 1.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        Process exit code: 0 nothing to complain about, 1 something, 2 wrong arguments.
    """
    options = parse_arguments(arguments)
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as name:
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
            record = soak(options, options.keep or Path(name), console)
    except BenchmarkError as error:
        console.print(f"soak: {error}", markup=False)
        return 1
    found = summary(record)
    if options.plot:
        kills, cuts = record.count("kill"), record.count("cut")
        title = f"{found['minutes']} minutes, {options.members} members, {kills} killed and replaced, {cuts} cut off for a while"
        options.plot.write_text(svg(record, title), encoding="utf-8")
    console.print_json(json.dumps(found))
    if options.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        settings = {name: getattr(options, name) for name in ("members", "elders", "kill_every_s", "cut_every_s", "longest_cut_s", "seed")}
        sys.stdout.write(json.dumps({**found, **settings, "machine": machine}) + "\n")
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
