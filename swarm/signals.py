"""What Ctrl-C, SIGTERM and a closed terminal do: whoever runs leaves soon, whatever it is doing, and leaves nothing behind.

The first signal interrupts at once where nothing can be lost (imports, joining, building the model), and lets the trainer finish its
step and its last checkpoint where something can. A second signal, or running out of patience, ends the process without waiting.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from peers import emergency
from protocols.errors import ExitCode

log = logging.getLogger(__name__)

PATIENCE_S = 4.0
"""How long after the first signal a process is ended in any case, unless it says otherwise."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asks us to leave. Not a KeyboardInterrupt: one that passes through a C extension's import would spoil the exit code."""


class Leaving:
    """Whether this process has been asked to leave, and what that does. Made by `leaving_on_signals`."""

    def __init__(self, patience_s: float) -> None:
        self.asked = False
        """Whether a signal came."""
        self._stop: Callable[[], None] | None = None
        self._watchdog = threading.Timer(patience_s, self._give_up, [patience_s])

    @contextmanager
    def by(self, stop: Callable[[], None]) -> Iterator[None]:
        """While this is open, the first signal interrupts nothing but calls `stop`, which makes the body end soon by itself.

        Raises:
            Interrupted: at the end, if a signal came.
        """
        self._stop = stop
        try:
            yield
        finally:
            self._stop = None
        if self.asked:
            raise Interrupted

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.asked:
            end_process(ExitCode.INTERRUPTED)
        self.asked = True
        self._watchdog.daemon = True
        self._watchdog.start()
        if self._stop is None:
            raise Interrupted
        self._stop()

    def done(self) -> None:
        """Everything has ended in time."""
        self._watchdog.cancel()

    @staticmethod
    def _give_up(patience_s: float) -> None:
        log.warning("still busy after %g s: ending without a last checkpoint", patience_s)
        end_process(ExitCode.INTERRUPTED)


_open: list[Leaving] = []
"""Those that are open in the main thread, outermost first."""


def asked_to_leave() -> bool:
    """Whether a signal came since the outermost `leaving_on_signals` began: a library being imported may swallow what it raised."""
    return any(leaving.asked for leaving in _open)


@contextmanager
def leaving_on_signals(patience_s: float = PATIENCE_S) -> Iterator[Leaving]:
    """Leave on SIGINT, SIGTERM and SIGHUP while this is open; in other threads than the main one, where Python has no handlers, on none.

    Args:
        patience_s: after that long the process is ended in any case.

    Raises:
        KeyboardInterrupt: a signal came; raised wherever it finds the main thread, but see `Leaving.by`.
    """
    leaving = Leaving(patience_s)
    if threading.current_thread() is not threading.main_thread():
        yield leaving
        return
    wanted = [number for number in _SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]  # nohup stays nohup
    before = {number: signal.signal(number, leaving.on_signal) for number in wanted}
    _open.append(leaving)
    try:
        if asked_to_leave():
            raise Interrupted
        yield leaving
    except (Interrupted, Exception) as error:  # an import that is interrupted may raise anything
        if not asked_to_leave():
            raise
        raise KeyboardInterrupt from error
    finally:
        _open.remove(leaving)
        for number, handler in before.items():
            signal.signal(number, handler)
        leaving.done()


def end_process(code: int) -> NoReturn:
    """End at once, leaving no process and no file behind. Skips the interpreter's own tidying up, which takes seconds after torch."""
    emergency.run()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
