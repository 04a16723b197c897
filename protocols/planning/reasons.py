"""One sentence for each recommended setting, and one for whatever cannot work."""

from __future__ import annotations

import math

from protocols.planning.values import Advice, Machine, Members, Prediction, Settings, Workload
from protocols.runspec import MAX_TARGET_SAMPLES

_GIB = 2**30

SPARSE_LOSS = (
    "in our tests, short and of small models, held-out loss was within 1.6 % of fp32's with rd50, and with topk32-152, topk64 and a step"
    ' ahead; 3.8 to 8.1 % higher with topk64 without (docs/benchmarks.md, "Few bytes, and what they cost")'
)
"""The caveat of sparse codecs."""

_QUALITY = {
    "int8": "within fp32's",
    "int4": "within fp32's in published runs",
    "rd50": "within 0.5 % in a short test",
    "topk32-152": "within 1.5 % in short tests, with a step ahead",
    "topk64": "within 1.6 % in short tests, with a step ahead",
}
_SPARSE_RATE, _RATED_RATE = 2.5, 2.0
_HIGHEST_RATE = {"topk64": 10.0, "topk128": 10.0, "topk32-152": 13.0}

_CODEC_REASONS = {
    "fp16": "two bytes a number lose nothing that a gradient's noise would not hide, and the link carries them.",
    "int8": "a quarter of fp32's bytes, and an error far below the differences between members.",
    "rd50": "half a bit a number, as denser codecs would have devices wait most of the time; {loss}.",
    "topk32-152": "a tenth of a bit a number up and a third back, as denser codecs would have devices wait most of the time; {loss}.",
    "topk64": "a sixth of a bit a number, as denser codecs would have devices wait most of the time; {loss}.",
    "int4": "an eighth of fp32's bytes; published runs of the outer rule lost nothing by 4 bits.",
}


def is_sparse(codec: str) -> bool:
    """Whether a codec leaves much of a vector out, to be sent later."""
    return codec.startswith(("topk", "rd"))


def steps_ahead(codec: str) -> bool:
    """Whether so much that members had better hold a part of it in their own models."""
    return codec in _HIGHEST_RATE


def sparse_rate(codec: str, group: int) -> float:
    """Outer learning rate of a sparse codec in a group of so many.

    With a step ahead: few members send the same elements, and a mean of N vectors that have little in common is shorter by about the root
    of N. At twice the highest rate sixty-four members diverge.
    """
    return round(min(_SPARSE_RATE * math.sqrt(group), _HIGHEST_RATE[codec]), 2) if steps_ahead(codec) else _RATED_RATE


def quality_of(codec: str) -> str:
    """What is known of the loss with a codec, by the outer rule."""
    return _QUALITY[codec]


def advice_on(members: Members, given: Settings, chosen: Settings, found: Prediction) -> tuple[Advice, ...]:
    """Every key that planning decides, in the order of a run file.

    Args:
        members: of the swarm.
        given: what the run file says.
        chosen: what is recommended.
        found: what that leads to.
    """
    outer = chosen.rule == "outer"
    advice = [
        Advice("optimizer", "rule", chosen.rule, _rule_reason(chosen, found)),
        Advice("optimizer", "target_batch_samples", chosen.target_samples, _target_reason(given, chosen, found)),
    ]
    if outer:
        advice += [
            Advice(
                "outer", "inner_batch_samples", chosen.inner_batch_samples, "as the run file has it: the batch that one member steps on."
            ),
            Advice("outer", "fragments", chosen.fragments, _fragments_reason(chosen)),
        ]
    if is_sparse(chosen.codec):
        advice += _sparse_recipe(chosen.codec, found.group)
    advice.append(Advice("averaging", "codec", chosen.codec, _CODEC_REASONS[chosen.codec].format(loss=SPARSE_LOSS)))
    if (given.error_feedback, given.step_ahead) != (chosen.error_feedback, chosen.step_ahead) or is_sparse(chosen.codec):
        advice.append(Advice("averaging", "error_feedback", chosen.error_feedback, _feedback_reason(chosen)))
        advice.append(Advice("averaging", "step_ahead", chosen.step_ahead, _ahead_reason(chosen)))
    advice += [
        Advice("averaging", "block_elems", chosen.block_elems, "so many blocks that every reducer of a group gets an equal share of them."),
        Advice("averaging", "max_group", chosen.max_group, _group_reason(members, chosen, found)),
        Advice("averaging", "overlap", chosen.overlap, _overlap_reason(chosen, found)),
    ]
    return tuple(advice)


def warnings_about(
    machine: Machine, workload: Workload, chosen: Settings, found: Prediction, waiting: Prediction, most_steps: int
) -> tuple[str, ...]:
    """What cannot work, or only badly.

    Args:
        machine, workload: of every member.
        chosen: what is recommended.
        found: what that leads to.
        waiting: the same without overlap, with the most inner steps that were ever tried.
        most_steps: how many these are.
    """
    warnings = []
    if machine.memory_bytes is not None and found.device_bytes > machine.memory_bytes:
        warnings.append(
            f"The model does not fit: training takes about {found.device_bytes / _GIB:.1f} GiB on the device,"
            f" which has {machine.memory_bytes / _GIB:.1f} GiB. Members may save memory (see there), or choose a smaller model."
        )
    if chosen.rule == "outer" and found.inner_steps * chosen.fragments > most_steps * 1.1:
        warnings.append(
            f"The link is too slow even with {chosen.codec}: a round takes {found.averaging_s:.2g} s, and without waiting members would"
            f" make {found.inner_steps * chosen.fragments:.0f} inner steps between two averages where {most_steps} have been tried."
            f" Waiting after {most_steps} steps, devices would compute {waiting.utilisation:.0%} of the time."
        )
    if chosen.rule == "outer" and chosen.verify and waiting.utilisation < 0.5:
        warnings.append(
            f"Sparse codecs would fit such a link; a run that verifies refuses them, as what they leave out hides lies, and {SPARSE_LOSS}."
        )
    if is_sparse(chosen.codec):
        warnings.append(f"{chosen.codec} may cost quality, and the run believes everybody: {SPARSE_LOSS}.")
    if chosen.target_samples == MAX_TARGET_SAMPLES:
        warnings.append(f"An epoch may have {MAX_TARGET_SAMPLES} samples at most, fewer than would be needed for devices never to wait.")
    if chosen.verify and chosen.auditors and not chosen.auditing:
        warnings.append("What audits of the outer rule, and with overlap, take of time and links is not counted here.")
    if found.update_s > found.compute_s:
        warnings.append(f"Updating the shared state takes {found.update_s:.1f} s on the CPU, longer than computing an epoch.")
    return tuple(warnings)


def _rule_reason(chosen: Settings, found: Prediction) -> str:
    if chosen.rule == "gradient":
        return f"a round takes {found.averaging_s:.1f} s and an epoch's gradients {found.compute_s:.1f} s: every step is the whole swarm's."
    return f"a round takes {found.averaging_s:.1f} s, too long for every step: members take {found.inner_steps:.0f} of their own an epoch."


def _target_reason(given: Settings, chosen: Settings, found: Prediction) -> str:
    if chosen.rule == "outer":
        if chosen.target_samples == MAX_TARGET_SAMPLES:
            return f"the most that an epoch may have; it is over after {found.compute_s:.1f} s."
        return f"closes an epoch after {found.compute_s:.1f} s, the fewest inner steps with which devices keep computing."
    if chosen.target_samples == given.target_samples:
        return "as the run file has it."
    return f"larger than the run file's {given.target_samples}, so that computing takes most of an epoch: check the learning rate."


def _fragments_reason(chosen: Settings) -> str:
    if chosen.fragments == 1:
        return "the whole model in every epoch: smaller pieces would wait for round trips, or there is no overlap to profit from them."
    return (
        f"each epoch averages one of {chosen.fragments} parts, so that results are young when they are applied and links are used evenly."
    )


def _group_reason(members: Members, chosen: Settings, found: Prediction) -> str:
    rounds = len(found.rounds_s)
    if rounds <= 1:
        return f"all {members.peers} in one group: one round an epoch, and the bytes hardly grow with the group."
    return f"{members.peers} members average in {rounds} rounds, in groups of up to {found.group}; no other size is a tenth quicker."


def _sparse_recipe(codec: str, group: int) -> list[Advice]:
    """What contributions that leave much out were tried with, in a group of so many."""
    rate, why = sparse_rate(codec, group), "what is left out comes late, so steps were tried twice as long."
    if steps_ahead(codec):
        highest = _HIGHEST_RATE[codec]
        why = f"2.5 times the root of the group, at most {highest:g}: few of what members send coincides, and the mean divides by all."
    recipe = [
        Advice("outer", "optimizer", "fedavgm", "without momentum it is plain averaging: sparse contributions were tried with that."),
        Advice("outer", "momentum", 0.0, "momentum on top of error feedback made sparse runs worse."),
        Advice("outer", "learning_rate", rate, why),
    ]
    if steps_ahead(codec):
        recipe.append(Advice("outer", "mixing", 0.0, "a member's own model holds a part of its residual instead."))
    return recipe


def _ahead_reason(chosen: Settings) -> str:
    if chosen.step_ahead:
        return "a part of what is left out is in the member's own model already, and need not wait."
    return "too little is left out for a member to step ahead by."


def _feedback_reason(chosen: Settings) -> str:
    if is_sparse(chosen.codec):
        return "what a sparse codec leaves out comes later, or it would be lost."
    return f"{chosen.codec} leaves nothing out that would have to come later."


def _overlap_reason(chosen: Settings, found: Prediction) -> str:
    if chosen.overlap:
        return f"members compute while a round's {found.averaging_s:.1f} s pass, and apply its result when it is there."
    if chosen.rule == "gradient":
        return "gradients are then always of the newest parameters."
    return f"waiting costs {1 - found.utilisation:.0%} of the time, and results are applied at once."
