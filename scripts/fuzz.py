"""Fuzz everything that reads bytes from others: for any bytes a reader gives a value or its documented refusal, soon, in little memory.

    python -m scripts.fuzz                                       ten minutes over all targets
    python -m scripts.fuzz --seconds 60 --target plan            one of them (give --target again for more)
    python -m scripts.fuzz --engine mutate --seed 7 --json       another engine; figures as JSON in the last line
    python -m scripts.fuzz --replay build/fuzz/plan/crash-0123   one input again, with its traceback
    python -m scripts.fuzz --list                                all targets

Engines: atheris (libFuzzer; `pip install atheris`), hypothesis, and mutate, our own; auto takes atheris where it is installed and mutate
elsewhere, and hypothesis for a tenth of the time. What reaches new lines is kept in tests/fuzz/corpus, which `make test` replays; inputs
that show a fault are in build/fuzz. Ctrl-C ends it early and keeps both. Exit code 0: no fault; 1: some; 130: interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from scripts.fuzzing import corpus
from scripts.fuzzing.engines import ENGINES, atheris_installed
from scripts.fuzzing.target import check
from scripts.fuzzing.targets import TARGETS
from scripts.fuzzing.watch import Tally, fuzz

_HYPOTHESIS_SHARE = 0.1
_INTERRUPTED = 130


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="in all, shared by the targets (default 600)")
    parser.add_argument("--target", action="append", metavar="NAME", help="only this one; may be given again")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--seed", type=int, default=None, help="of all randomness (default: the time)")
    parser.add_argument("--corpus", type=Path, default=corpus.CORPUS, help="folder with a folder for each target")
    parser.add_argument("--findings", type=Path, default=corpus.FINDINGS, help="where inputs that show a fault go")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="try one input; its folder names the target, unless --target does")
    parser.add_argument("--list", action="store_true", help="name all targets")
    parser.add_argument("--json", action="store_true", help="figures as JSON in the last line of standard output")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.target or () if name not in TARGETS]
    if unknown:
        parser.error(f"no target is called {', '.join(unknown)}; --list names them")
    if options.seconds <= 0:
        parser.error("--seconds must be above 0")
    if options.engine == "atheris" and not atheris_installed():
        parser.error("atheris is not installed: pip install atheris, or choose --engine mutate")
    return options


def shares(engine: str, seconds: float) -> list[tuple[str, float]]:
    """Which engines work on a target, and for how long each."""
    if engine != "auto":
        return [(engine, seconds)]
    first = "atheris" if atheris_installed() else "mutate"
    return [("hypothesis", seconds * _HYPOTHESIS_SHARE), (first, seconds * (1 - _HYPOTHESIS_SHARE))]  # libFuzzer does not return


def run(options: argparse.Namespace, console: Console, tallies: list[Tally]) -> bool:
    """Fuzz target after target; `tallies` fills up. Returns whether all had their time."""
    names = options.target or list(TARGETS)
    seed = int(time.time()) if options.seed is None else options.seed
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task("fuzzing", total=options.seconds, figures="")
            for name in names:
                tallies.append(Tally(name))
                try:
                    _one(options, tallies, seed, lambda: _show(progress, bar, tallies))
                finally:
                    _report(console, options.findings, tallies[-1])
    except KeyboardInterrupt:
        console.print("interrupted: what was found so far is kept")
        return False
    return True


def _one(options: argparse.Namespace, tallies: list[Tally], seed: int, tell: Callable[[], None]) -> None:
    tally, began_s = tallies[-1], time.monotonic()
    folder = options.corpus / tally.name

    def timed() -> None:
        tally.seconds = time.monotonic() - began_s
        tell()

    fuzz(tally, shares(options.engine, options.seconds / len(options.target or TARGETS)), seed, folder, timed)
    timed()


def _show(progress: Progress, bar: TaskID, tallies: Sequence[Tally]) -> None:
    tally, found = tallies[-1], sum(len(each.findings) for each in tallies)
    figures = f"{tally.executions:,} runs, {tally.lines} lines; {found} faults in all"
    progress.update(bar, completed=sum(each.seconds for each in tallies), description=f"{len(tallies)} {tally.name}", figures=figures)


def _report(console: Console, folder: Path, tally: Tally) -> None:
    for finding, data in tally.findings:
        path = folder / tally.name / f"{finding.kind}-{corpus.file_name(data)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        console.print(f"[red]{tally.name}[/red]: {finding.kind}, {escape(finding.summary)} {finding.place}\n    {path}")


def _summary(tallies: Sequence[Tally]) -> dict[str, object]:
    targets = [tally.as_json() for tally in tallies]
    words = ("executions", "seconds", "crashes", "hangs", "over_memory")
    return {"targets": targets, **{word: round(sum(target[word] for target in targets), 1) for word in words}}


def _table(tallies: Sequence[Tally]) -> Table:
    table = Table("target", "runs", "seconds", "lines", "corpus", "crashes", "hangs", "over memory")
    for tally in tallies:
        numbers = (f"{tally.executions:,}", f"{tally.seconds:.1f}", tally.lines, tally.corpus)
        table.add_row(tally.name, *map(str, numbers), *(str(tally.count(word)) for word in ("crashes", "hangs", "over_memory")))
    return table


def replay(path: Path, name: str, console: Console) -> int:
    """Try one input again, here; returns an exit code."""
    seen = check(TARGETS[name], path.read_bytes())
    if seen.finding is not None:
        console.print(f"{seen.finding.kind}: {escape(seen.finding.summary)}\n{escape(seen.finding.trace)}")
        return 1
    console.print(escape(f"refused: {seen.refusal}" if seen.refusal else f"accepted: {seen.value!r}"[:2000]))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns an exit code."""
    options = _options(arguments)
    console = Console(stderr=True)
    if options.list:
        print("\n".join(TARGETS))
        return 0
    if options.replay:
        return replay(options.replay, (options.target or [options.replay.parent.name])[0], console)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    tallies: list[Tally] = []
    whole = run(options, console, tallies)
    console.print(_table(tallies))
    if options.json:
        print(json.dumps(_summary(tallies)))
    if not whole:
        return _INTERRUPTED
    return 1 if any(tally.findings for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
