"""Whether a run suits a member's machine and link, in a sentence for its owner."""

from __future__ import annotations

from dataclasses import replace

from protocols.planning.predicting import predict
from protocols.planning.recommending import GOAL, MOST_STEPS, steps_between
from protocols.planning.values import MBIT_BYTES, Link, Machine, Members, Settings, Workload

_FASTEST_BYTES_PER_S = 10_000 * MBIT_BYTES
_HALVINGS = 20
_MUCH = 1.2
"""A link is what holds a member up if it would compute so many times as much on the fastest."""

_HARDLY = 1.5
"""With overlap: rounds that take so many times as long as computing an epoch's samples make epochs so many times longer."""


def link_for(members: Members, machine: Machine, link: Link, workload: Workload, settings: Settings, goal: float = GOAL) -> float | None:
    """Rate in bytes per second from which on devices compute so much of the time; None if no link is fast enough.

    Args:
        members, machine, link, workload, settings: as for `predict`; the link's own rate does not matter.
        goal: share of the time.

    Raises:
        ValueError: as `predict`.
    """

    def reached(bytes_per_s: float) -> bool:
        return predict(members, machine, replace(link, bytes_per_s=bytes_per_s), workload, settings).utilisation >= goal

    too_slow, enough = 1.0, float(_FASTEST_BYTES_PER_S)
    if not reached(enough):
        return None
    for _ in range(_HALVINGS):
        middle = (too_slow * enough) ** 0.5
        too_slow, enough = (too_slow, middle) if reached(middle) else (middle, enough)
    return enough


def how_it_suits(members: Members, machine: Machine, link: Link, workload: Workload, settings: Settings) -> str:
    """One sentence: what holds this member up, and what would help; or that nothing does.

    Raises:
        ValueError: as `predict`.
    """
    found = predict(members, machine, link, workload, settings)
    if members.peers == 1:
        return "Nobody else is there yet: nothing is averaged."
    if settings.overlap:
        computing_s = found.compute_s
        if found.averaging_s <= _HARDLY * computing_s:
            return "The run suits this machine: rounds are over before an epoch's samples are computed, or hardly later."
        told = f"The link is what is slow: a round takes {found.averaging_s:.1f} s, an epoch's samples {computing_s:.1f} s."
        if settings.rule == "outer" and steps_between(found, settings) > MOST_STEPS:
            return f"{told} Members drift apart meanwhile; a run with fewer bytes would suit it better."
        return f"{told} The device computes on, and what it computes meanwhile counts for the next epoch."
    if found.utilisation >= GOAL:
        return "The run suits this machine: hardly any time is spent waiting."
    needed = link_for(members, machine, link, workload, settings)
    best = predict(members, machine, replace(link, bytes_per_s=float(_FASTEST_BYTES_PER_S)), workload, settings)
    if found.update_s > found.averaging_s:
        return f"Updating the shared state holds this machine up: {found.update_s:.1f} s an epoch on its CPU."
    if needed is None and best.utilisation > _MUCH * found.utilisation:
        told = (
            f"The link holds this machine up: it computes {found.utilisation:.0%} of the time, and {best.utilisation:.0%} on the fastest."
        )
        return f"{told} A run with overlap or by the outer rule would suit it better."
    if needed is None:
        return f"Waiting costs {1 - found.utilisation:.0%} of the time, on any link; overlap or a larger target would suit it better."
    return (
        f"The link holds this machine up: with {needed / MBIT_BYTES:.3g} Mbit/s it would compute {GOAL:.0%} of the time."
        " A run with overlap or by the outer rule would suit it better."
    )
