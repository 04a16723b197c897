"""The program `swarm-peer`: what happens before and after any command runs. Imports nothing, so that Ctrl-C works from the first moment."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

_INTERRUPTED = 130


def main() -> NoReturn:
    """Entry point of the console script. From here on a signal ends every command with exit code 130 and without a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)  # nothing has begun yet
    from swarm.signals import end_process, leaving_on_signals

    code = _INTERRUPTED
    try:
        with leaving_on_signals():
            code = _run()
    except KeyboardInterrupt:
        pass
    end_process(code)


def _run() -> int:
    from protocols.errors import ExitCode
    from swarm import environment
    from swarm.cli.app import app
    from swarm.cli.common import explain

    environment.prepare_libraries()
    try:
        environment.settings()
        app()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else ExitCode.OK
    except Exception as error:  # noqa: BLE001  the process's last owner
        return explain(error)
    return ExitCode.OK


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
