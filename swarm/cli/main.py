"""The program `swarm-peer`: what happens before and after any command runs."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

from protocols.errors import ExitCode


def main() -> NoReturn:
    """Entry point of the console script. From here on a signal ends every command with exit code 130 and without a traceback."""
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        _run()
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # we are leaving already; the interpreter needs a moment more


def _run() -> NoReturn:
    from swarm import environment
    from swarm.cli.app import app
    from swarm.cli.common import explain

    environment.prepare_libraries()
    try:
        environment.settings()
    except Exception as error:  # noqa: BLE001  the process's last owner
        sys.exit(explain(error))
    app()
    sys.exit(ExitCode.OK)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
