"""Settings that keep the devices of a swarm computing, from those that change least about training to those that save most bytes.

    1. the gradient rule: every step is the swarm's, and work can be audited; a larger target if it stays one that training bears
    2. the outer rule without overlap, 8 bits
    3. the outer rule with overlap, 8 bits
    4. the same with 4 bits, and then with more inner steps
    5. sparse codecs with error feedback, in runs that do not verify, where 4 bits would leave devices idle more than half of the time

The first that lets devices compute `GOAL` of the time is taken. Bounds come from published runs (DiLoCo, arXiv 2311.08105, and Streaming
DiLoCo, arXiv 2501.18512): up to `USUAL_STEPS` inner steps cost hardly any loss, up to `MOST_STEPS` were tried, and 4 bits for what the
outer rule sends cost none. Sparse codecs were tried with small models and in short runs only (`reasons.SPARSE_LOSS`): they come last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from protocols.planning.predicting import blocks_of, computed_closing_s, predict
from protocols.planning.reasons import advice_on, is_sparse, quality_of, steps_ahead, warnings_about
from protocols.planning.values import Candidate, Link, Machine, Members, Prediction, Recommendation, Settings, Workload
from protocols.runspec import MAX_TARGET_SAMPLES

GOAL = 0.9
"""Share of the time that devices should compute."""

GRADIENT_GOAL = 0.8
"""The same by the gradient rule: that its steps are the swarm's own and can be audited is worth some waiting."""

LARGEST_BATCH_TOKENS = 2**19
"""Of one step by the gradient rule, unless the run file asks for more: the batch of released models of some 10^9 parameters."""

FEWEST_STEPS, USUAL_STEPS, MOST_STEPS = 30, 100, 500
"""Inner steps between two averages of the same parameter."""

SPARSE_BELOW = 0.5
"""Sparse codecs are for links on which dense ones would have devices compute less of the time than this."""

SPARSE_DECAY, SPARSE_AHEAD = 0.9, 0.4
"""Error feedback and step ahead with which they were tried."""

_CANDIDATES = ("int8", "int4", "rd50", "topk32-152", "topk64")
_GROUPS = (16, 32, 64)
_WORTH_A_LARGER_GROUP = 0.9
_BLOCKS_PER_REDUCER = 4
_BLOCK_ELEMS = (2**14, 2**20)
_FRAGMENTS = (8, 4, 2)
_BLOCKS_PER_FRAGMENT = 3
_WORTH_A_FRAGMENT = 50
"""A round of a fragment takes so many round trips; agreeing takes three to five of them."""


@dataclass(frozen=True, slots=True)
class _Scene:
    """What does not change."""

    members: Members
    machine: Machine
    link: Link
    workload: Workload

    @property
    def computing(self) -> float:
        """As how many such machines the swarm computes."""
        return self.members.computing(_sample_s(self))

    def predict(self, settings: Settings) -> Prediction:
        return predict(self.members, self.machine, self.link, self.workload, settings)


def recommend(members: Members, machine: Machine, link: Link, workload: Workload, given: Settings) -> Recommendation:
    """The least change to how the run trains with which devices compute `GOAL` of the time, or the best there is.

    Args:
        members, machine, link, workload: what is there.
        given: what the run file says; its inner batch and verification are kept.

    Raises:
        ValueError: as `predict`.
    """
    scene = _Scene(members, machine, link, workload)
    chosen = next(_ladder(scene, given))
    prediction = scene.predict(chosen)
    outer = chosen.rule == "outer"
    waiting = _waiting(scene, chosen) if outer else prediction
    candidates = tuple(_candidate(scene, given, codec) for codec in _CANDIDATES) if outer else ()
    return Recommendation(
        settings=chosen,
        prediction=prediction,
        advice=advice_on(members, given, chosen, prediction),
        warnings=warnings_about(machine, workload, chosen, prediction, waiting, MOST_STEPS),
        candidates=candidates,
    )


def steps_between(prediction: Prediction, settings: Settings) -> float:
    """Inner steps of one member between two averages of the same parameter."""
    return prediction.inner_steps * settings.fragments


def _ladder(scene: _Scene, given: Settings) -> Iterator[Settings]:
    """What reaches the goal, the best first; at last what comes nearest."""
    largest_samples = min(max(given.target_samples, LARGEST_BATCH_TOKENS // scene.workload.tokens_per_sample), MAX_TARGET_SAMPLES)
    given = _without_sparse(given)
    for codec in ("fp16", "int8"):
        settings = _shaped(scene, replace(given, rule="gradient", codec=codec, step_ahead=0.0, overlap=False, fragments=1))
        target_samples = max(given.target_samples, _power_above(_needed_s(scene, settings) / _sample_s(scene) * scene.computing))
        if target_samples <= largest_samples:
            yield replace(settings, target_samples=target_samples)
    for codec, overlap, most_steps in (("int8", False, USUAL_STEPS), ("int8", True, USUAL_STEPS), ("int4", True, USUAL_STEPS)):
        settings = _outer(scene, given, codec, overlap=overlap)
        if steps_between(scene.predict(settings), settings) <= most_steps:
            yield settings
    last = _outer(scene, given, "int4", overlap=True)
    if steps_between(scene.predict(last), last) <= MOST_STEPS:
        yield last
    elif not given.verify and _waiting(scene, last).utilisation < SPARSE_BELOW:
        for codec in ("rd50", "topk32-152", "topk64"):
            sparse = _outer(scene, given, codec, overlap=True)
            if steps_between(scene.predict(sparse), sparse) <= MOST_STEPS:
                yield sparse
        yield _longest(scene, _outer(scene, given, "topk64", overlap=True))
    yield _longest(scene, last)


def _without_sparse(given: Settings) -> Settings:
    """Error feedback of a sparse codec says nothing about a dense one."""
    return replace(given, error_feedback=0.0, step_ahead=0.0) if is_sparse(given.codec) else given


def _candidate(scene: _Scene, given: Settings, codec: str) -> Candidate:
    """A codec as it would do by the outer rule, with overlap."""
    settings = _outer(scene, _without_sparse(given), codec, overlap=True)
    found = scene.predict(settings)
    return Candidate(
        codec=codec,
        round_s=found.averaging_s,
        up_bytes=found.up_bytes,
        steps=steps_between(found, settings),
        utilisation=_waiting(scene, settings).utilisation,
        quality=quality_of(codec),
        usable=not (given.verify and is_sparse(codec)),
    )


def _waiting(scene: _Scene, settings: Settings) -> Prediction:
    """The same, waiting for each round after as many inner steps as anybody has tried."""
    return scene.predict(_longest(scene, replace(settings, overlap=False)))


def _outer(scene: _Scene, given: Settings, codec: str, *, overlap: bool) -> Settings:
    """The outer rule with as few inner steps as keep devices computing."""
    settings = replace(given, rule="outer", codec=codec, overlap=overlap, fragments=1)
    if is_sparse(codec):
        settings = replace(settings, error_feedback=SPARSE_DECAY, step_ahead=SPARSE_AHEAD if steps_ahead(codec) else 0.0)
    settings = _shaped(scene, settings)
    if overlap:
        settings = _cut(scene, settings)
    step_s = settings.inner_batch_samples * _sample_s(scene)
    steps = max(math.ceil(FEWEST_STEPS / settings.fragments), math.ceil(_needed_s(scene, settings) / step_s))
    return _targeting(scene, settings, steps)


def _longest(scene: _Scene, settings: Settings) -> Settings:
    """With as many inner steps as anybody has tried."""
    return _targeting(scene, settings, max(MOST_STEPS // settings.fragments, 1))


def _targeting(scene: _Scene, settings: Settings, steps: int) -> Settings:
    """With so many inner steps of a member until the target is reached, as far as a run file may ask for."""
    target_samples = math.ceil(steps * settings.inner_batch_samples * scene.computing)
    return replace(settings, target_samples=min(target_samples, MAX_TARGET_SAMPLES))


def _needed_s(scene: _Scene, settings: Settings) -> float:
    """How long members must compute until the target is reached so that devices compute enough of the time; may be negative."""
    found = scene.predict(settings)
    idle_s = found.epoch_s - found.utilisation * found.epoch_s
    goal = GRADIENT_GOAL if settings.rule == "gradient" else GOAL
    busy_s = idle_s * goal / (1 - goal)
    closing_s = computed_closing_s(scene.members, settings)
    return max(busy_s, found.averaging_s + closing_s if settings.overlap else 0.0) - closing_s


def _sample_s(scene: _Scene) -> float:
    return scene.workload.flops_per_sample / scene.machine.flops_per_s


def _shaped(scene: _Scene, settings: Settings) -> Settings:
    """With the groups that average soonest, and blocks that can be dealt evenly among their members."""
    best = _dealt(scene, settings, _GROUPS[0])
    for max_group in _GROUPS[1:]:
        larger = _dealt(scene, settings, max_group)
        if scene.predict(larger).averaging_s < _WORTH_A_LARGER_GROUP * scene.predict(best).averaging_s:
            best = larger
    return best


def _dealt(scene: _Scene, settings: Settings, max_group: int) -> Settings:
    """With several blocks for every reducer, and a power of two of elements in each."""
    elems = blocks_of(scene.workload, settings).size_elems // (_BLOCKS_PER_REDUCER * min(scene.members.peers, max_group))
    smallest, largest = _BLOCK_ELEMS
    return replace(settings, max_group=max_group, block_elems=min(max(1 << max(elems, 1).bit_length() - 1, smallest), largest))


def _cut(scene: _Scene, settings: Settings) -> Settings:
    """In as many fragments as leave rounds much longer than their round trips: results are younger, and links are used evenly."""
    for fragments in _FRAGMENTS:
        candidate = _shaped(scene, replace(settings, fragments=fragments))
        found = scene.predict(candidate)
        trips_s = len(found.rounds_s) * scene.link.rtt_s
        if fragments * _BLOCKS_PER_FRAGMENT <= scene.workload.parts and found.averaging_s >= _WORTH_A_FRAGMENT * trips_s:
            return candidate
    return settings


def _power_above(samples: float) -> int:
    """The least power of two that is not smaller."""
    return 1 << max(math.ceil(samples) - 1, 0).bit_length()
