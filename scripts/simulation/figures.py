"""What is noted of every round of every member, and the digest of all of it in the order in which it happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from peers.averaging.averager import Averaged, RoundDone
from scripts.simulation.bans import Bans

Vector = NDArray[np.float32]


class Trace:
    """Events in the order in which they happened. Two runs are the same if their digests are."""

    def __init__(self) -> None:
        self._hash = blake3()

    def note(self, now_s: float, event: str, member: int, *values: object) -> None:
        """Take down one event.

        Args:
            now_s: virtual time.
            event, member: what happened, and to whom.
            values: bytes, numbers and text that describe it.
        """
        texts = (value.hex() if isinstance(value, float | bytes) else str(value) for value in values)
        self._hash.update(f"{now_s.hex()} {event} {member} {' '.join(texts)}\n".encode())

    @property
    def digest(self) -> str:
        """Hexadecimal."""
        return self._hash.hexdigest()


@dataclass
class _RoundResults:
    """What members hold after one round: the vectors, by hash, and who holds which."""

    vectors: dict[bytes, Vector] = field(default_factory=dict)
    weights: dict[bytes, float] = field(default_factory=dict)
    held: dict[int, bytes] = field(default_factory=dict)


class EpochFigures:
    """One epoch as it happens.

    Args:
        rounds: of it.
    """

    def __init__(self, rounds: int) -> None:
        self._results = [_RoundResults() for _ in range(rounds)]

    def hold(self, member: int, index: int, vector_D: Vector, weight: float) -> bytes:
        """A member has come out of a round with this; returns its hash."""
        results, name = self._results[index], blake3(vector_D.tobytes()).digest()
        results.vectors.setdefault(name, vector_D)
        results.weights.setdefault(name, weight)
        results.held[member] = name
        return name

    def relative_errors(self, members: Mapping[int, Vector]) -> list[float]:
        """After each round, how far members are from the mean of everything that the first round took in.

        Args:
            members: contributions of those who count: who lived through the epoch.

        Returns:
            Root mean square over these members (who came out of the round), as a share of how far the contributions were from their mean.
        """
        first = self._results[0]
        if not first.vectors or not members:
            return [float("nan")] * len(self._results)
        total = sum(first.weights.values())
        mean_D = sum(vector.astype(np.float64) * (first.weights[name] / total) for name, vector in first.vectors.items())
        start = np.sqrt(np.mean([_square_distance(vector, mean_D) for vector in members.values()]))
        errors = []
        for results in self._results:
            squares = {name: _square_distance(vector, mean_D) for name, vector in results.vectors.items()}
            held = [squares[name] for member, name in results.held.items() if member in members]
            errors.append(float(np.sqrt(np.mean(held)) / start) if held else float("nan"))
        return errors


def _square_distance(vector: NDArray[Any], mean_D: NDArray[np.float64] | int) -> float:
    return float(np.square(vector - mean_D).sum())


class Figures:
    """The whole run.

    Args:
        bans: of a swarm that verifies.
    """

    def __init__(self, bans: Bans | None = None) -> None:
        self.bans = bans
        self.epochs = 0
        self.trace = Trace()
        self.expected_rounds = 0
        self.completed_rounds = 0
        self.crashed = 0
        self.stuck = 0
        self.late = 0
        self.failures: Counter[str] = Counter()
        self.round_s: list[float] = []
        self.plan_s: list[float] = []
        self.relative_errors: list[float] = []
        self.virtual_s = 0.0

    def round_done(self, now_s: float, member: int, done: RoundDone, name: bytes) -> None:
        """A member has come out of a round."""
        self.round_s.append(done.plan_s + done.exchange_s)
        self.plan_s.append(done.plan_s)
        self.trace.note(
            now_s, "round", member, done.round_id.epoch, done.round_id.index, name, done.commit.weight, done.plan_s, done.exchange_s,
            *(peer.public_key for peer in done.members),
        )  # fmt: skip

    def epoch_done(self, now_s: float, member: int, rounds: int, outcome: Averaged | Exception) -> None:
        """A member has come out of an epoch."""
        self.expected_rounds += rounds
        if isinstance(outcome, Averaged):
            self.completed_rounds += rounds - outcome.missed
            self.late += not outcome.included_us
            self.trace.note(now_s, "epoch", member, outcome.epoch, outcome.missed, outcome.included_us, outcome.weight)
        else:
            self.failures[type(outcome).__name__] += 1
            self.trace.note(now_s, "failed", member, type(outcome).__name__, outcome)

    def member_died(self, now_s: float, member: int, rounds_done: int) -> None:
        """A member was killed; of this epoch only the rounds that it had come out of count."""
        self.crashed += 1
        self.expected_rounds += rounds_done
        self.completed_rounds += rounds_done
        self.trace.note(now_s, "died", member, rounds_done)

    def member_stuck(self, now_s: float, member: int, rounds: int) -> None:
        """A member did not come to an end."""
        self.stuck += 1
        self.expected_rounds += rounds
        self.trace.note(now_s, "stuck", member)

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        p50, p99 = np.percentile(self.round_s, [50, 99]) if self.round_s else (float("nan"), float("nan"))
        return {
            "success": round(self.completed_rounds / max(1, self.expected_rounds), 6),
            "stuck": self.stuck,
            "rel_error": [float(f"{error:.3g}") for error in self.relative_errors],
            "rel_error_last": float(f"{self.relative_errors[-1]:.3g}") if self.relative_errors else None,
            "round_s_p50": round(float(p50), 4),
            "round_s_p99": round(float(p99), 4),
            "plan_s_p50": round(float(np.median(self.plan_s)), 4) if self.plan_s else None,
            "virtual_s": round(self.virtual_s, 3),
            "member_rounds": self.expected_rounds,
            "crashed": self.crashed,
            "late": self.late,
            "failures": dict(sorted(self.failures.items())),
            "digest": self.trace.digest,
            **(self.bans.summary() if self.bans else {}),
        }
