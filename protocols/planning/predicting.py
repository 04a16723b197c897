"""From a machine, a link and settings to seconds, bytes and utilisation. Read `predict`.

without overlap   epoch = computing + rounds + update; members that are ready wait for the last micro-batch
with overlap      epoch = max(computing, rounds + closing) + update; samples computed meanwhile count for the next epoch, and are told
                  when the round is over, so that the next one closes a while after it
"""

from __future__ import annotations

from protocols.layout import Blocks
from protocols.planning.memory import Activations, Saving, Trained, device_memory, host_memory
from protocols.planning.traffic import GroupTraffic, Line, audit_bytes, group_traffic, lines_of
from protocols.planning.values import Link, Machine, Members, Prediction, Settings, Workload

CLOSING_S = 1.0
"""Until everybody has heard that the target is reached: members announce their progress once a second."""

_ROUND_TRIPS = 3
"""Joining, exchanging, settling."""
_VERIFIED_ROUND_TRIPS = 5


def predict(members: Members, machine: Machine, link: Link, workload: Workload, settings: Settings) -> Prediction:
    """What one epoch will be like in a swarm of equal members.

    Raises:
        ValueError: unknown codec, or a group size below 2.
    """
    blocks = blocks_of(workload, settings)
    lines = lines_of(members.peers - members.clients, members.clients, settings.max_group, members.helpers)
    traffics = [
        {line: group_traffic(line, settings.codec, blocks, verify=settings.verify, first=not number) for line in axis}
        for number, axis in enumerate(lines)
    ]
    sample_s = workload.flops_per_sample / machine.flops_per_s
    step_samples = step_samples_of(members, machine, settings)
    computing = members.computing(sample_s)
    closing_s = computed_closing_s(members, settings)
    auditing = 1 + min(settings.auditing / max(line.members for line in lines[0]), 1.0) * (members.peers > 1)
    compute_s = settings.target_samples / computing * sample_s * auditing + closing_s
    rounds_s = () if members.peers == 1 else tuple(round_s(max_bytes(axis), blocks, machine, link, settings) for axis in traffics)
    update_s = workload.parameters * machine.update_s_per_elem  # the whole state is hashed, also where a fragment is stepped
    waiting_s = CLOSING_S - closing_s
    if not settings.overlap and members.peers > 1:
        waiting_s += min(step_samples, machine.micro_batch_samples) * sample_s / 2
    averaging_s = sum(rounds_s)
    busy_s = max(compute_s, averaging_s + closing_s) if settings.overlap and members.peers > 1 else compute_s
    epoch_s = busy_s + update_s + waiting_s + (0.0 if settings.overlap else averaging_s)
    epoch_samples = busy_s / auditing / sample_s * computing
    up_bytes, down_bytes = mean_bytes(lines, traffics, members.peers)
    audits_bytes = sum(audit_bytes(line, settings.codec, blocks, settings.auditing) * line.members * n for line, n in lines[0].items())
    return Prediction(
        sample_s=sample_s,
        step_s=step_samples * sample_s,
        inner_steps=busy_s / auditing / sample_s / step_samples,
        compute_s=compute_s,
        rounds_s=rounds_s,
        update_s=update_s,
        epoch_s=epoch_s,
        utilisation=busy_s / epoch_s,
        up_bytes=up_bytes + audits_bytes / members.peers,
        down_bytes=down_bytes + audits_bytes / members.peers,
        busiest_bytes=sum(max_bytes(axis) for axis in traffics),
        group=max(line.members for axis in lines for line in axis),
        epoch_samples=epoch_samples,
        samples_per_s=epoch_samples / epoch_s,
        device_bytes=device_bytes(workload, settings),
        host_bytes=host_bytes(workload, settings),
    )


def computed_closing_s(members: Members, settings: Settings) -> float:
    """How long a member still computes when the target is reached: until it hears of it, half of the time that it takes all to hear.

    Without overlap it then waits for the others.
    """
    return CLOSING_S if settings.overlap or members.peers == 1 else CLOSING_S / 2


def blocks_of(workload: Workload, settings: Settings) -> Blocks:
    """The vector that one epoch averages: all of the model, or by the outer rule a fragment, on average."""
    fragments = settings.fragments if settings.rule == "outer" else 1
    return Blocks(max(-(-workload.parameters // fragments), 1), settings.block_elems)


def step_samples_of(members: Members, machine: Machine, settings: Settings) -> int:
    """Samples of a micro-batch (no larger than the trainer makes it) or, by the outer rule, of an inner step."""
    if settings.rule == "outer":
        return settings.inner_batch_samples
    return max(1, min(machine.micro_batch_samples, settings.target_samples // 4))


def round_s(busiest_bytes: float, blocks: Blocks, machine: Machine, link: Link, settings: Settings) -> float:
    """One round: the busiest link, or where links are fast the processors, and the round trips of agreeing.

    Args:
        busiest_bytes: of the member and direction that has most to carry.
        blocks: of the vector.
        machine, link: of every member.
        settings: whether rounds are verified.
    """
    carrying_s = busiest_bytes / (link.bytes_per_s * link.share)
    trips = _VERIFIED_ROUND_TRIPS if settings.verify else _ROUND_TRIPS
    return max(carrying_s, blocks.size_elems * machine.processing_s_per_elem) + trips * link.rtt_s


def max_bytes(axis: dict[Line, GroupTraffic]) -> float:
    """What the busiest link of a round carries."""
    return max(traffic.busiest_bytes for traffic in axis.values())


def mean_bytes(lines: tuple[dict[Line, int], ...], traffics: list[dict[Line, GroupTraffic]], peers: int) -> tuple[float, float]:
    """Bytes up and down of an epoch, mean over all members."""
    up_bytes = sum(
        sum(traffic[line].up_bytes) * number for axis, traffic in zip(lines, traffics, strict=True) for line, number in axis.items()
    )
    down_bytes = sum(
        sum(traffic[line].down_bytes) * number for axis, traffic in zip(lines, traffics, strict=True) for line, number in axis.items()
    )
    return up_bytes / peers, down_bytes / peers


def device_bytes(workload: Workload, settings: Settings) -> float:
    """Memory of the device that computes, with a pass of one sample and nothing saved: an estimate."""
    found = Activations(workload.activation_bytes, workload.activation_bytes_per_sample)
    return device_memory(_trained(workload), found, settings, Saving(), 1).total


def host_bytes(workload: Workload, settings: Settings) -> float:
    """Memory beside it, on the CPU: an estimate."""
    return host_memory(_trained(workload), settings, Saving(), blocks_of(workload, settings).size_elems).total


def _trained(workload: Workload) -> Trained:
    return Trained(parameters=workload.parameters, moments=workload.moments, outer_moments=workload.outer_moments)
