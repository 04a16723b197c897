"""What the commands share: their options, the terminal, and how an error becomes one sentence and an exit code."""

from __future__ import annotations

import functools
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, ParamSpec

import typer
from rich.console import Console

from protocols.errors import ExitCode, RemoteError, RemoteRefusal, StateDirError, UserError
from swarm.signals import Interrupted, asked_to_leave

if TYPE_CHECKING:
    from swarm.config import PeerConfig

P = ParamSpec("P")

out = Console(highlight=False)
"""Results: standard output."""

err = Console(stderr=True, highlight=False)
"""Everything else: standard error."""

StateDir = Annotated[Path | None, typer.Option("--state-dir", help="Where identity, checkpoints and status live [~/.swarm-peer].")]
Listen = Annotated[str | None, typer.Option("--listen", metavar="HOST:PORT", help="Address of our server; port 0 takes any [0.0.0.0:0].")]
Announce = Annotated[str | None, typer.Option("--announce", metavar="HOST", help="Name or address under which others reach us.")]
DeviceName = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda [auto].")]
RoleName = Annotated[str | None, typer.Option("--role", help="trainer, helper (does not compute) or client (cannot be dialled) [trainer].")]
OptimizerStates = Annotated[
    str | None,
    typer.Option(
        "--optimizer-states", metavar="fp32|8bit", help="8bit: the inner optimizer takes a quarter of the memory (bitsandbytes) [fp32]."
    ),
]
OffloadOptimizer = Annotated[
    bool | None, typer.Option("--offload-optimizer", help="Keep the inner optimizer in main memory, off the device; steps take longer.")
]
RecomputeActivations = Annotated[
    bool | None,
    typer.Option("--recompute-activations", help="Compute layers again instead of keeping them: less memory, a third more time."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of this peer, e.g. threads=2, niceness=0, max_epochs=100."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command so that every error ends as one sentence on standard error and a numbered exit code, never as a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.BadParameter):
            raise
        except (KeyboardInterrupt, Interrupted):
            raise typer.Exit(_stopped()) from None
        except Exception as error:  # noqa: BLE001  the process's last owner: whatever arrives here ends it
            raise typer.Exit(_stopped() if asked_to_leave() else explain(error)) from None

    return run


def _stopped() -> ExitCode:
    err.print("Stopped.")
    return ExitCode.INTERRUPTED


def explain(error: Exception) -> ExitCode:
    """Say on standard error what went wrong, and choose the exit code. Unknown errors are our bug: their traceback goes to a file."""
    cause = next(_known(error), error)
    if isinstance(cause, UserError):
        _complain(str(cause))
        return cause.exit_code
    if isinstance(cause, RemoteRefusal):
        _complain(f"A member of the swarm refused: {cause.reason}")
        return ExitCode.WRONG_RUN if cause.code == "wrong-run" else ExitCode.REFUSED
    if isinstance(cause, RemoteError):
        _complain(f"No member of the swarm could be talked to: {cause}")
        return ExitCode.NETWORK
    _complain(f"This is a bug of swarm-peer ({type(error).__name__}); please report it with the traceback in {_write_traceback(error)}.")
    return ExitCode.INTERNAL


def _known(error: BaseException) -> Iterator[Exception]:
    """The error itself, or those inside a group, whose kind says whose fault it is; the user's own come first."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [error]
    while pending:
        current = pending.pop(0)
        if isinstance(current, BaseExceptionGroup):
            pending.extend(current.exceptions)
        else:
            leaves.append(current)
    if all(isinstance(leaf, UserError | RemoteError) for leaf in leaves):
        yield from sorted((leaf for leaf in leaves if isinstance(leaf, Exception)), key=lambda leaf: not isinstance(leaf, UserError))


def _complain(sentence: str) -> None:
    err.print(sentence, style="bold red", markup=False, soft_wrap=True)


def _write_traceback(error: BaseException) -> str:
    try:
        handle, path = tempfile.mkstemp(prefix="swarm-peer-crash-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return "(nowhere: the temporary directory is not writable)"
    return path


def fail(sentence: str, code: ExitCode) -> NoReturn:
    """End the command with a sentence and an exit code, where no exception fits (a finding, not an error)."""
    _complain(sentence)
    raise typer.Exit(code)


def print_json(text: str) -> None:
    """One JSON value on one line of standard output, exactly as given."""
    out.print(text, markup=False, soft_wrap=True, no_wrap=True, overflow="ignore", crop=False)


def printable(text: str) -> str:
    """Text from a model as a terminal can show it: control characters become dots, so that none of them steers the terminal."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "·" for letter in text)


def configure(flags: Mapping[str, object], settings: list[str] | None) -> PeerConfig:
    """The configuration from flags, `--set` and `SWARM_*`.

    Raises:
        ConfigError: one of them is wrong.
    """
    from swarm import environment
    from swarm.config import peer_config

    return peer_config(flags, environment.settings(), settings or ())


def _log_file(state_dir: Path) -> logging.Handler:
    from peers.private_files import make_private_dir

    make_private_dir(state_dir)
    try:
        return logging.FileHandler(state_dir / "peer.log", encoding="utf-8")
    except OSError as error:
        raise StateDirError(f"{state_dir / 'peer.log'} cannot be written ({error.strerror}): change its owner or remove it.") from error


def start_logging(config: PeerConfig) -> None:
    """Send our own packages' events to standard error, or, where that is a terminal that shows the table, to `<state_dir>/peer.log`."""
    handler = _log_file(config.state_dir) if err.is_terminal else logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    for package in ("swarm", "peers", "protocols"):
        logger = logging.getLogger(package)
        logger.handlers[:] = [handler]
        logger.setLevel(config.log_level.upper())
        logger.propagate = False
