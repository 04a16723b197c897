"""What the swarm's progress records add up to. Every number in them is a claim, so nothing follows from one of them alone.

Words: a *holder* is a member whose record is fresh, that is not leaving, and that names a state (`state_hash`).

Rules, and why:

1. **Fresh.** A record older than `stale_after_s`, or from the future by more than the clock skew, does not count: its member is gone or its
   clock is off.
2. **Epoch.** The swarm's epoch is the highest that a strict majority of the other holders have reached, or, where that is higher, that
   a strict majority of all holders, me included, have reached. A maximum would let one liar send everybody off to a state that does not
   exist. The majority is counted without me because in a swarm of two the other one must count; the second clause keeps one liar in a
   swarm of three, who claims to be at the beginning, from holding the two others back. Nobody else at all: my own epoch.
3. **Samples.** The sum over holders *at* that epoch, mine as I know them. Another's claim grows with its speed until its next record, and
   is capped by what that speed can have produced since the epoch began and by the whole target: one absurd number cannot outweigh the
   rest by more than one target. A liar can thereby close an epoch early; that costs batch size in one update and nothing else, since the
   weights of an update are those of the contributions that really come.
4. **State.** The state of the swarm is the one that most holders at that epoch name. Ties: more accepted samples (the lower median of
   what its holders claim, so that one of several cannot raise it), then the smaller hash, so that everybody breaks them alike.
5. **Behind.** I am behind if others hold a state and I hold none, if my epoch is smaller than the swarm's, or if I am at it and a strict
   majority of all holders, me included, name one state that is not mine.
6. **Donors** are the others that name the swarm's state; what they send is checked against its hash anyway.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median_low

from protocols.ids import Epoch, PeerId, SwarmTime
from protocols.records import Progress
from protocols.signing import CLOCK_SKEW_S

STALE_AFTER_S = 15.0
"""Members announce their progress every few seconds; three announcements in a row may get lost."""

_SPEED_MARGIN = 2.0
_AGE_MARGIN_S = 60.0
"""Speeds are averages and I may have seen the epoch begin later than others: a claim may exceed speed x age by this much."""


TargetSamples = int | Callable[[Epoch], int]
"""Samples of the whole swarm that close an epoch: always as many, or by the number of the epoch."""


def target_at(target: TargetSamples, epoch: Epoch) -> int:
    """Samples that close this epoch."""
    return target if isinstance(target, int) else target(epoch)


@dataclass(frozen=True, slots=True)
class SwarmProgress:
    """How far the swarm is.

    Args:
        epoch: swarm-wide; compare it with one's own before using the rest.
        samples: computed towards the next epoch by members at `epoch`.
        samples_per_s: what they compute together.
        eta_s: seconds until the target is reached; 0 if it is, infinite if nobody computes.
        behind: we must fetch the state before we can go on.
        state_hash: the state of `epoch`; empty if nobody holds one.
        donors: others that hold it, sorted.
    """

    epoch: Epoch
    samples: int
    samples_per_s: float
    eta_s: float
    behind: bool
    state_hash: bytes
    donors: tuple[PeerId, ...]


def estimate(
    me: PeerId,
    own: Progress,
    others: Mapping[PeerId, Progress],
    now: SwarmTime,
    target_samples: int,
    *,
    epoch_age_s: float = math.inf,
    stale_after_s: float = STALE_AFTER_S,
) -> SwarmProgress:
    """Add up what members say (rules above).

    Args:
        me: ourselves; a record of ours among `others` is ignored.
        own: what we know about ourselves.
        others: verified records, by signer.
        now: our clock.
        target_samples: samples that close an epoch.
        epoch_age_s: seconds since we saw this epoch begin; infinite if unknown, then only the target caps claims.
        stale_after_s: see rule 1.
    """
    holders = _holders(me, others, now, stale_after_s)
    epoch = _swarm_epoch(own, holders)
    here = {peer: progress for peer, progress in holders.items() if progress.epoch == epoch}
    i_am_here = bool(own.state_hash) and own.epoch == epoch
    claims = [_claim(progress, now, target_samples, epoch_age_s) for progress in here.values()]
    samples = math.floor(math.fsum(claims)) + (own.samples if i_am_here else 0)
    working = [*here.values(), *([own] if i_am_here else [])]
    samples_per_s = math.fsum(progress.samples_per_s for progress in working)  # in any order the same
    state_hash, votes = _majority(working)
    return SwarmProgress(
        epoch=epoch,
        samples=samples,
        samples_per_s=samples_per_s,
        eta_s=_eta_s(target_samples - samples, samples_per_s),
        behind=_is_behind(own, epoch, state_hash, votes, len(holders)),
        state_hash=state_hash,
        donors=tuple(sorted(peer for peer, progress in here.items() if progress.state_hash == state_hash)),
    )


def _holders(me: PeerId, others: Mapping[PeerId, Progress], now: SwarmTime, stale_after_s: float) -> dict[PeerId, Progress]:
    """Rule 1."""
    return {
        peer: progress
        for peer, progress in others.items()
        if peer != me and progress.state_hash and progress.phase != "leaving" and -CLOCK_SKEW_S <= now - progress.time <= stale_after_s
    }


def _swarm_epoch(own: Progress, holders: Mapping[PeerId, Progress]) -> Epoch:
    """Rule 2."""
    if not holders:
        return own.epoch
    epochs = [progress.epoch for progress in holders.values()]
    among_others = _reached_by_majority(epochs)
    return max(among_others, _reached_by_majority([*epochs, own.epoch])) if own.state_hash else among_others


def _reached_by_majority(epochs: Iterable[Epoch]) -> Epoch:
    descending = sorted(epochs, reverse=True)
    return descending[len(descending) // 2]  # the smallest strict majority has n // 2 + 1 members


def _claim(progress: Progress, now: SwarmTime, target_samples: int, epoch_age_s: float) -> float:
    """Rule 3: samples of one other member, believed as far as possible."""
    since_s = max(now - progress.time, 0.0) if progress.phase == "training" else 0.0
    claimed = progress.samples + progress.samples_per_s * since_s
    producible = progress.samples_per_s * (_SPEED_MARGIN * epoch_age_s + _AGE_MARGIN_S) if progress.samples_per_s else 0.0
    return min(claimed, producible, target_samples)


def _majority(holders: Iterable[Progress]) -> tuple[bytes, int]:
    """Rule 4: (state hash, how many hold it); (b"", 0) without holders."""
    accepted: dict[bytes, list[int]] = defaultdict(list)
    for progress in holders:
        accepted[progress.state_hash].append(progress.accepted_samples)
    if not accepted:
        return b"", 0
    best = min(accepted, key=lambda state: (-len(accepted[state]), -median_low(accepted[state]), state))
    return best, len(accepted[best])


def _is_behind(own: Progress, epoch: Epoch, state_hash: bytes, votes: int, others: int) -> bool:
    """Rule 5. Counting all holders, not only those at this epoch, keeps a few liars from outvoting me while others are in between."""
    if not own.state_hash:
        return others > 0
    if own.epoch != epoch:
        return own.epoch < epoch
    return own.state_hash != state_hash and 2 * votes > others + 1


def _eta_s(missing_samples: int, samples_per_s: float) -> float:
    if missing_samples <= 0:
        return 0.0
    return missing_samples / samples_per_s if samples_per_s > 0 else math.inf
