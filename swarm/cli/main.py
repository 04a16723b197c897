"""The program `swarm-peer`: what happens before and after any command runs."""

from __future__ import annotations

import signal
from typing import NoReturn

from protocols.errors import ExitCode
from swarm.signals import end_process, leaving_on_signals


def main() -> NoReturn:
    """Entry point of the console script. From here on a signal ends every command with exit code 130 and without a traceback."""
    code: int = ExitCode.INTERRUPTED
    try:
        with leaving_on_signals(patience_s=None):
            code = _run()
    except KeyboardInterrupt:
        pass
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # we are leaving already
    end_process(code)


def _run() -> int:
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


if __name__ == "__main__":
    main()
