"""Where inputs come from: our own mutations, hypothesis, or atheris (libFuzzer), where that is installed.

Each engine calls `session.run(data)` until `session.over`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from scripts.fuzzing.mutations import Mutator
from scripts.fuzzing.target import Target

ENGINES = ("auto", "atheris", "hypothesis", "mutate")
_HYPOTHESIS_BATCH = 100
_FROM_SEEDS = 0.3


class Session(Protocol):
    """What an engine drives."""

    target: Target
    seconds: float

    @property
    def over(self) -> bool:
        """Time is up."""

    @property
    def pool(self) -> Sequence[bytes]:
        """Inputs worth mutating; grows."""

    def run(self, data: bytes) -> None:
        """Try one input."""


def atheris_installed() -> bool:
    """Whether this interpreter has it."""
    return find_spec("atheris") is not None


def mutate(session: Session, seed: int, dictionary: Sequence[bytes], scratch: Path) -> None:
    """Ours: structure-aware mutations of inputs that reached something new."""
    chance, seeds = random.Random(seed), session.target.seeds()
    mutator = Mutator(chance, session.target.form, session.target.input_bytes, dictionary)
    while not session.over:  # most of the pool is refused early, and what is nearly valid gets further
        session.run(mutator.mutated(seeds if chance.random() < _FROM_SEEDS else session.pool))


def hypothesis(session: Session, seed: int, dictionary: Sequence[bytes], scratch: Path) -> None:
    """Any bytes, and edits of the pool, drawn by hypothesis."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    from scripts.fuzzing.strategies import inputs

    quiet = settings(
        max_examples=_HYPOTHESIS_BATCH, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    number = seed
    while not session.over:

        @seeded(number)
        @quiet
        @given(inputs(session.target, tuple(session.pool)))
        def batch(data: bytes) -> None:
            if not session.over:
                session.run(data)

        batch()
        number += 1


def atheris(session: Session, seed: int, dictionary: Sequence[bytes], scratch: Path) -> None:
    """LibFuzzer. Keeps what it finds in `scratch`. Does not return: it ends the process."""
    import atheris as fuzzer

    for number, data in enumerate(session.pool):
        (scratch / f"known-{number}").write_bytes(data)
    limits = [f"-max_total_time={max(1, round(session.seconds))}", f"-max_len={session.target.input_bytes}", f"-seed={seed % 2**31 + 1}"]
    fuzzer.Setup(
        [sys.argv[0], *limits, "-timeout=60", "-rss_limit_mb=0", "-verbosity=0", "-print_final_stats=0", str(scratch)], session.run
    )
    fuzzer.Fuzz()


DRIVERS: dict[str, Callable[[Session, int, Sequence[bytes], Path], None]] = {"mutate": mutate, "hypothesis": hypothesis, "atheris": atheris}
