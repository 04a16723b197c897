"""The two clocks of `peers.interfaces.Clock`: the machine's, and one that follows the simulator's virtual time."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from protocols.ids import SwarmTime

SIMULATION_START = SwarmTime(1_800_000_000.0)
"""Default wall-clock time at which a simulation begins (15 January 2027)."""


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The machine's wall clock."""

    def now(self) -> SwarmTime:
        """Seconds since the Unix epoch."""
        return SwarmTime(time.time())


@dataclass(frozen=True, slots=True)
class SimulatedClock:
    """Wall clock of one simulated host: start + virtual time + its own error.

    Args:
        start: seconds since the Unix epoch at virtual time 0.
        error_s: how far this host's clock is ahead of the true time, in seconds.
    """

    start: SwarmTime = SIMULATION_START
    error_s: float = 0.0

    def now(self) -> SwarmTime:
        """Seconds since the Unix epoch, as this host believes. Call it from within the running loop."""
        return SwarmTime(self.start + asyncio.get_running_loop().time() + self.error_s)
