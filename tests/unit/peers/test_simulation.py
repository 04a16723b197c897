"""The virtual-time loop and the clocks that follow it."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peers.clock import SIMULATION_START, SimulatedClock, SystemClock
from peers.simulation import SimulatedLoop, SimulationError, run_simulated
from tests.helpers.transport_worlds import loop_time, pass_time

ROOT = Path(__file__).resolve().parents[3]


def test_an_hour_passes_in_no_time() -> None:
    async def main() -> float:
        await pass_time(3600.0)
        return loop_time()

    start_s = time.monotonic()
    assert run_simulated(main()) == 3600.0
    assert time.monotonic() - start_s < 5.0


def test_timers_fire_in_order_and_exactly_when_due() -> None:
    async def main() -> list[tuple[str, float]]:
        fired: list[tuple[str, float]] = []

        async def after(name: str, delay_s: float) -> None:
            await pass_time(delay_s)
            fired.append((name, loop_time()))

        async with asyncio.TaskGroup() as group:
            for name, delay_s in (("c", 0.3), ("a", 0.1), ("b", 0.2), ("far", 1e6)):
                group.create_task(after(name, delay_s))
        return fired

    assert run_simulated(main()) == [("a", 0.1), ("b", 0.2), ("c", 0.3), ("far", 1e6)]


def test_timeouts_work_on_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30.0):
                await asyncio.Event().wait()
        return loop_time()

    assert run_simulated(main()) == 30.0


def test_deadlock_is_an_error_that_names_who_waits() -> None:
    async def waits_for_nothing() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(waits_for_nothing(), name="poor fellow")

    with pytest.raises(SimulationError, match=r"deadlock at 0\.0+ s: .*2 waiting.*poor fellow"):
        run_simulated(main())


def test_running_past_the_limit_is_an_error() -> None:
    async def main() -> None:
        for _ in range(1000):
            await pass_time(1.0)

    with pytest.raises(SimulationError, match="limit of 50"):
        run_simulated(main(), limit_s=50.0)


def test_executors_run_inline() -> None:
    def fails() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        assert await asyncio.to_thread(sum, [1, 2, 3]) == 6
        with pytest.raises(ZeroDivisionError):
            await asyncio.get_running_loop().run_in_executor(None, fails)
        assert loop_time() == 0.0

    run_simulated(main())


def test_exceptions_and_results_come_out_and_leftovers_are_cancelled() -> None:
    cleaned: list[str] = []

    async def forever() -> None:
        try:
            await pass_time(1e9)
        finally:
            await pass_time(1.0)
            cleaned.append("left over")

    async def main() -> None:
        left_over = asyncio.get_running_loop().create_task(forever())
        await pass_time(0)
        assert not left_over.done()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_simulated(main())
    assert cleaned == ["left over"]


def test_the_seed_decides_the_random_module_and_nothing_leaks_out() -> None:
    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        return random.random(), loop.random.random()

    before = random.getstate()
    assert run_simulated(main(), 5) == run_simulated(main(), 5)
    assert run_simulated(main(), 5) != run_simulated(main(), 6)
    assert random.getstate() == before


ORDER_OF_CANCELLATION = """
import asyncio
from peers.simulation import run_simulated
from tests.helpers.transport_worlds import pass_time

async def main():
    order = []
    async def worker(i):
        try:
            await pass_time(10)
        finally:
            order.append(i)
    async def fail():
        await pass_time(1)
        raise KeyError
    try:
        async with asyncio.TaskGroup() as group:
            for i in range(100):
                group.create_task(worker(i))
            group.create_task(fail())
    except* KeyError:
        pass
    padding = [object() for _ in range(1000)]
    return order

print(run_simulated(main()))
"""


def test_a_task_group_cancels_in_the_same_order_in_every_process() -> None:
    def order(hash_seed: str) -> str:
        command = [sys.executable, "-c", ORDER_OF_CANCELLATION]
        return subprocess.run(command, cwd=ROOT, env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True).stdout

    first = order("1")
    assert sorted(map(int, first.strip("[]\n").split(", "))) == list(range(100))
    assert first == order("2")


def test_clocks() -> None:
    async def main() -> None:
        right, fast = SimulatedClock(), SimulatedClock(error_s=2.5)
        await pass_time(10.0)
        assert right.now() == SIMULATION_START + 10.0
        assert fast.now() - right.now() == 2.5

    run_simulated(main())
    assert abs(SystemClock().now() - time.time()) < 5.0
