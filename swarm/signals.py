"""What Ctrl-C, SIGTERM and a closed terminal do to a peer: it leaves within five seconds, whatever it is doing.

The first signal interrupts at once where nothing can be lost (imports, joining, building the model), and lets the trainer finish its
step and its last checkpoint where something can. A second signal, or a trainer that stays busy, ends the process without waiting.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from peers import emergency
from protocols.errors import ExitCode
from swarm.network import NetworkThread

log = logging.getLogger(__name__)

PATIENCE_S = 4.0
"""How long after the first signal the process is ended in any case."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Leaving:
    """Whether and how this process has been asked to leave. Made by `leaving_on_signals`."""

    def __init__(self) -> None:
        self._network: NetworkThread | None = None
        self._asked = False
        self._watchdog = threading.Timer(PATIENCE_S, self._give_up)
        self._watchdog.daemon = True

    @contextmanager
    def patiently(self, network: NetworkThread) -> Iterator[None]:
        """While this is open, the first signal interrupts nothing: it asks the network to leave, which stops the trainer.

        Raises:
            KeyboardInterrupt: at the end, if a signal came.
        """
        self._network = network
        try:
            yield
        finally:
            self._network = None
        if self._asked:
            raise KeyboardInterrupt

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self._asked:
            end_process()
        self._asked = True
        self._watchdog.start()
        if self._network is None:
            raise KeyboardInterrupt
        self._network.request_stop()

    def done(self) -> None:
        """Everything has ended in time."""
        self._watchdog.cancel()

    def _give_up(self) -> None:
        log.warning("the trainer is still busy: leaving without its last checkpoint")
        if self._network is not None:
            self._network.stop(0.3)
        end_process()


@contextmanager
def leaving_on_signals() -> Iterator[Leaving]:
    """Leave on SIGINT, SIGTERM and SIGHUP while this is open; in other threads than the main one, where Python has no handlers, on none.

    Raises:
        KeyboardInterrupt: from wherever the first signal finds the main thread, but see `Leaving.patiently`.
    """
    leaving = Leaving()
    if threading.current_thread() is not threading.main_thread():
        yield leaving
        return
    wanted = [number for number in _SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]  # nohup stays nohup
    before = {number: signal.signal(number, leaving.on_signal) for number in wanted}
    try:
        yield leaving
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        leaving.done()


def end_process() -> None:
    """End at once, but leave no process and no file behind."""
    emergency.run()
    os._exit(ExitCode.INTERRUPTED)
