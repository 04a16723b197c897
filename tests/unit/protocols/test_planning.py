"""Predictions from plain numbers, and settings that fit them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.codecs import CODEC_NAMES, codec_named
from protocols.errors import ConfigError
from protocols.grid import grid_for
from protocols.ids import BlockIndex
from protocols.layout import Blocks
from protocols.partition import least_time_s
from protocols.planning import Link, Machine, Members, Recommendation, Settings, Workload, predict, recommend
from protocols.planning.recommending import GOAL, GRADIENT_GOAL, MOST_STEPS, steps_between
from protocols.planning.traffic import Line, group_traffic, lines_of, vector_bytes
from protocols.planning.values import MBIT_BYTES
from protocols.runspec import RunSpec

MEDIUM = Workload(parameters=85_000_000, flops_per_sample=6 * 85e6 * 128, tokens_per_sample=128, parts=12)
TWELVE = Members(peers=12)
SLOW_DEVICE = Machine(flops_per_s=0.35e12)


def link_of(mbit: float) -> Link:
    return Link(bytes_per_s=mbit * MBIT_BYTES)


def advised(mbit: float, machine: Machine = SLOW_DEVICE, members: Members = TWELVE) -> Recommendation:
    return recommend(members, machine, link_of(mbit), MEDIUM, Settings())


@pytest.mark.parametrize("codec", CODEC_NAMES)
@pytest.mark.parametrize("size_elems", [1, 100, 2**16, 2**16 + 1, 300_001])
def test_a_vector_takes_what_its_codec_makes_of_each_block(codec: str, size_elems: int) -> None:
    blocks = Blocks(size_elems, 2**14)
    known = codec_named(codec)
    by_block = [known.max_encoded_bytes(blocks.elems(BlockIndex(number))) for number in range(blocks.count)]
    assert vector_bytes(codec, blocks) == sum(by_block)


@pytest.mark.parametrize("members", [2, 3, 8, 16])
def test_equal_members_move_what_the_closed_form_says(members: int) -> None:
    """2 (n - 1) / n vectors each way, and the words beside them are few."""
    blocks = Blocks(members * 2**20, 2**20)
    found = group_traffic(Line(members, 0, members), "fp32", blocks, verify=False)
    least_bytes = least_time_s(vector_bytes("fp32", blocks), [1] * members)
    for moved_bytes in (*found.up_bytes, *found.down_bytes):
        assert least_bytes <= moved_bytes < 1.001 * least_bytes


def test_clients_move_one_vector_and_the_others_serve_them() -> None:
    blocks = Blocks(5 * 2**20, 2**20)
    vector = vector_bytes("int8", blocks)
    found = group_traffic(Line(5, 3, 8), "int8", blocks, verify=False)
    assert found.up_bytes[5:] == pytest.approx([vector] * 3, rel=1e-3)
    assert found.down_bytes[5:] == pytest.approx([vector] * 3, rel=1e-3)
    assert found.up_bytes[:5] == pytest.approx([vector * (4 / 5 + 7 / 5)] * 5, rel=2e-3)


def test_in_later_rounds_a_vector_that_several_hold_is_sent_once() -> None:
    rounds = lines_of(20, 0, 16)
    assert grid_for(20, 0, 16).sides == (2, 2)
    assert set(rounds[0]) == {Line(10, 0, 10)}
    assert set(rounds[1]) == {Line(10, 0, 2)}


@given(dialable=st.integers(1, 200), clients=st.integers(0, 50), max_group=st.integers(2, 64))
def test_every_member_is_in_one_group_of_each_round(dialable: int, clients: int, max_group: int) -> None:
    for groups in lines_of(dialable, clients, max_group):
        assert sum(line.members * number for line, number in groups.items()) == dialable + clients
        assert all(1 <= line.senders <= line.members for line in groups)
        assert all(line.dialable for line in groups), "nobody would reduce there"


def test_whoever_is_alone_waits_for_nobody() -> None:
    found = predict(Members(peers=1), SLOW_DEVICE, link_of(1), MEDIUM, Settings())
    assert found.rounds_s == ()
    assert found.up_bytes == found.down_bytes == 0
    assert found.epoch_s == found.compute_s + found.update_s


def test_time_of_an_epoch_adds_up() -> None:
    plain = predict(TWELVE, SLOW_DEVICE, link_of(50), MEDIUM, Settings())
    overlapped = predict(TWELVE, SLOW_DEVICE, link_of(50), MEDIUM, Settings(overlap=True))
    assert plain.utilisation == pytest.approx(plain.compute_s / plain.epoch_s)
    assert overlapped.epoch_s == max(overlapped.compute_s, overlapped.averaging_s) + overlapped.update_s
    assert overlapped.utilisation > plain.utilisation
    assert overlapped.epoch_s < plain.epoch_s


_machines = st.builds(Machine, flops_per_s=st.floats(1e9, 1e15), micro_batch_samples=st.integers(1, 64))
_settings = st.builds(
    Settings,
    rule=st.sampled_from(("gradient", "outer")),
    target_samples=st.integers(4, 10**5),
    codec=st.sampled_from(CODEC_NAMES),
    fragments=st.integers(1, 8),
    max_group=st.integers(4, 64),
    block_elems=st.sampled_from((2**14, 2**18, 2**20)),
    overlap=st.booleans(),
    verify=st.booleans(),
)
_members = st.integers(1, 60).flatmap(lambda peers: st.builds(Members, peers=st.just(peers), clients=st.integers(0, (peers - 1) // 2)))
_rates = st.floats(0.1, 1e5)


@given(members=_members, machine=_machines, settings=_settings, rates=st.tuples(_rates, _rates))
def test_a_faster_link_makes_nothing_slower(members: Members, machine: Machine, settings: Settings, rates: tuple[float, float]) -> None:
    slow, fast = (predict(members, machine, link_of(mbit), MEDIUM, settings) for mbit in sorted(rates))
    assert fast.averaging_s <= slow.averaging_s
    assert fast.epoch_s <= slow.epoch_s
    if not settings.overlap:  # with overlap, whoever has fewer updates in an hour computes a little more
        assert fast.samples_per_s >= slow.samples_per_s * (1 - 1e-9)
    assert (fast.up_bytes, fast.down_bytes) == (slow.up_bytes, slow.down_bytes)
    assert 0 < fast.utilisation <= 1


@given(members=_members, settings=_settings, rate=_rates, speeds=st.tuples(st.floats(1e9, 1e15), st.floats(1e9, 1e15)))
def test_a_faster_device_makes_nothing_slower(members: Members, settings: Settings, rate: float, speeds: tuple[float, float]) -> None:
    slow, fast = (predict(members, Machine(flops_per_s=speed), link_of(rate), MEDIUM, settings) for speed in sorted(speeds))
    assert fast.epoch_s <= slow.epoch_s
    assert fast.samples_per_s >= slow.samples_per_s * (1 - 1e-9)


@given(members=_members, machine=_machines, settings=_settings, rate=_rates)
def test_fewer_bytes_a_number_never_take_longer(members: Members, machine: Machine, settings: Settings, rate: float) -> None:
    rounds_s = [
        predict(members, machine, link_of(rate), MEDIUM, replace(settings, codec=codec)).averaging_s
        for codec in ("fp32", "fp16", "int8", "int4")
    ]
    assert rounds_s == sorted(rounds_s, reverse=True)


def test_slow_links_get_the_outer_rule_and_fast_ones_the_gradient_rule() -> None:
    slow, fast = advised(20), advised(10_000)
    assert slow.settings.rule == "outer"
    assert slow.settings.codec in ("int8", "int4")
    assert slow.settings.overlap
    assert slow.prediction.utilisation >= GOAL
    assert fast.settings.rule == "gradient"
    assert not fast.settings.overlap
    assert fast.prediction.utilisation >= GRADIENT_GOAL
    rates = (slow.prediction.up_bytes / slow.prediction.epoch_s, fast.prediction.up_bytes / fast.prediction.epoch_s)
    assert rates[0] < rates[1]


def test_a_link_that_cannot_do_it_is_said_to_be_too_slow() -> None:
    hopeless = advised(1, Machine(flops_per_s=7e12))
    assert hopeless.settings.codec == "int4"
    assert any("too slow even with int4" in warning and "% of the time" in warning for warning in hopeless.warnings)
    assert not any("too slow" in warning for warning in advised(20).warnings)


def test_a_model_that_does_not_fit_is_said_not_to() -> None:
    small = replace(SLOW_DEVICE, memory_bytes=2**28)
    assert any("does not fit" in warning for warning in advised(1000, small).warnings)
    assert not any("does not fit" in warning for warning in advised(1000, replace(small, memory_bytes=2**33)).warnings)


@given(
    members=st.integers(2, 100).map(lambda peers: Members(peers=peers)),
    flops_per_s=st.floats(1e10, 1e14),
    mbit=st.floats(2, 1e4),
    parameters=st.integers(10**5, 10**9),
)
def test_what_is_recommended_is_a_run_file_and_keeps_devices_computing(
    members: Members, flops_per_s: float, mbit: float, parameters: int
) -> None:
    workload = Workload(parameters=parameters, flops_per_sample=6.0 * parameters * 512, tokens_per_sample=512, parts=12)
    found = recommend(members, Machine(flops_per_s=flops_per_s), link_of(mbit), workload, Settings())
    sections: dict[str, dict[str, object]] = {"run": {"name": "x"}, "model": {"preset": "tiny"}}
    for advice in found.advice:
        sections.setdefault(advice.section, {})[advice.key] = advice.value
    if found.settings.target_samples <= 10**8:
        RunSpec.from_settings(sections)
    too_slow = any("too slow" in warning for warning in found.warnings)
    assert too_slow or found.prediction.utilisation >= GRADIENT_GOAL * 0.99
    assert too_slow or found.settings.rule == "gradient" or steps_between(found.prediction, found.settings) <= MOST_STEPS * 1.2


@pytest.mark.parametrize(
    "make",
    [
        lambda: Machine(flops_per_s=0.0),
        lambda: Machine(flops_per_s=1.0, micro_batch_samples=0),
        lambda: Link(bytes_per_s=0.0),
        lambda: Link(bytes_per_s=1e6, rtt_s=-1.0),
        lambda: Members(peers=0),
        lambda: Members(peers=3, clients=3),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]
