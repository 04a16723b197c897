"""The simulated swarm: exact where nothing happens, never stuck where much does, and the same in every process."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from peers.testing import make_key
from protocols.ids import Epoch, PeerId
from protocols.trust.ledger import Ban, Ledger
from protocols.trust.offences import Offence
from scripts import simulate
from scripts.simulate import parse_arguments, scenario_of
from scripts.simulation.bans import Bans
from scripts.simulation.figures import EpochFigures, Figures, Trace
from scripts.simulation.scenario import Scenario

ROOT = Path(__file__).resolve().parents[3]
QUIET = Console(quiet=True)
CALM = Scenario(
    peers=20, rounds=2, crash_rate=0.0, loss=0.0, rtt_ms=(20.0, 200.0), mbit=(10.0, 1000.0), clients=0.0, max_group=8, elems=256, blocks=2,
    seed=7,
)  # fmt: skip
SMALL = [
    "--peers",
    "12",
    "--rounds",
    "2",
    "--max-group",
    "4",
    "--kib",
    "1",
    "--blocks",
    "2",
    "--crash-rate",
    "0.1",
    "--loss",
    "0.05",
    "--json",
]


def test_a_calm_swarm_is_exact_after_each_epoch() -> None:
    found = simulate.simulate(replace(CALM, rounds=4), QUIET)
    assert (found["d"], found["rounds"], found["member_rounds"]) == (2, 4, 80)
    assert (found["success"], found["stuck"], found["failures"], found["late"]) == (1.0, 0, {}, 0)
    assert max(found["rel_error"][1::2]) < 1e-6 < min(found["rel_error"][0::2])
    assert found["rel_error_last"] == found["rel_error"][-1]
    assert 0.1 < found["round_s_p50"] <= found["round_s_p99"] < 3.0


def test_members_that_die_hold_nobody_up() -> None:
    found = simulate.simulate(replace(CALM, rounds=6, crash_rate=0.1, loss=0.05), QUIET)
    assert found["crashed"] > 5
    assert found["stuck"] == 0
    assert found["success"] > 0.9


def test_members_that_nobody_can_dial_take_part() -> None:
    found = simulate.simulate(replace(CALM, clients=0.4), QUIET)
    assert (found["success"], found["stuck"]) == (1.0, 0)
    assert found["rel_error_last"] < 1e-6


def test_one_group_needs_one_round() -> None:
    found = simulate.simulate(replace(CALM, peers=6, rounds=1), QUIET)
    assert (found["d"], found["success"], found["rel_error_last"] < 1e-6) == (1, 1.0, True)


def test_a_seed_gives_one_digest_in_every_process_and_another_seed_another(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "scripts.simulate", *SMALL, "--seed", "3"]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}  # ours is another
    other = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=100)
    printed = [other.stdout]
    for seed in ("3", "4"):
        assert simulate.main([*SMALL, "--seed", seed]) == 0
        printed.append(capsys.readouterr().out)
    found = [json.loads(out.splitlines()[-1]) for out in printed]
    assert {"success", "stuck", "rel_error", "round_s_p50", "round_s_p99", "wall_s", "digest"} <= found[0].keys()
    assert found[0]["digest"] == found[1]["digest"] != found[2]["digest"]


def test_attackers_are_banned_and_nobody_else_whatever_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--peers", "18", "--max-group", "8", "--attackers", "0.17", "--attack", "sign_flip", "--attack", "equivocate", "--attack",
                 "withhold_coin", "--crash-rate", "0.03", "--kib", "1", "--seed", "2", "--json"]  # fmt: skip
    environment = {**os.environ, "PYTHONHASHSEED": "54321"}
    command = [sys.executable, "-m", "scripts.simulate", *arguments]
    other = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert simulate.main(arguments) == 0
    found, again = (json.loads(out.splitlines()[-1]) for out in (capsys.readouterr().out, other.stdout))
    assert (found["attackers"], found["attackers_left"], found["attacks_left"]) == (3, 0, {})
    assert (found["honest_banned"], found["stuck"]) == (0, 0)
    assert found["bans"] == {"contribution": 1, "equivocation": 1, "withheld-coin": 1}
    assert 1 <= found["epochs_to_last_ban"] == found["epochs"] - 1
    assert found["digest"] == again["digest"]


def test_honest_members_that_verify_ban_nobody() -> None:
    found = simulate.simulate(replace(CALM, rounds=4, crash_rate=0.05, auditors=3), QUIET)
    assert (found["honest_banned"], found["bans"], found["stuck"]) == (0, {}, 0)
    assert max(found["rel_error"][1::2]) < 1e-6


def test_bans_count_an_attacker_when_all_know_and_an_honest_member_when_one_does() -> None:
    peers = [make_key(number).public_key().public_bytes_raw() for number in range(4)]
    attacker, *honest = (PeerId(key) for key in peers)
    ledgers = {peer: Ledger() for peer in honest}
    bans = Bans({attacker: "replay"})
    for known, peer in enumerate(honest):
        assert bans.look(known, ledgers) == ()
        assert bans.summary()["attacks_left"] == {"replay": 1}
        ledgers[peer].add(Ban(attacker, Offence.CHECK, Epoch(0), b"proof"))
    ledgers[honest[0]].add(Ban(honest[1], Offence.REDUCTION, Epoch(0), b"false"))
    assert bans.look(7, ledgers) == (attacker,)
    summary = bans.summary()
    assert (summary["attackers_left"], summary["honest_banned"], summary["epochs_to_last_ban"]) == (0, 1, 8)
    assert summary["bans"] == {"check": 1, "honest: reduction": 1}


def test_attackers_are_a_share_or_a_number() -> None:
    counts = [scenario_of(parse_arguments(["--peers", "30", "--attackers", text])).attackers for text in ("0", "0.2", "1", "7")]
    assert counts == [0, 6, 1, 7]
    assert [scenario_of(parse_arguments(arguments)).auditors for arguments in ([], ["--verify"], ["--attackers", "2"])] == [0, 8, 8]


def test_links_are_drawn_from_their_ranges() -> None:
    links = replace(CALM, peers=500, loss=0.01).links()
    assert all(0.01 <= link.latency_s <= 0.1 and 10e6 / 8 - 1 <= link.bandwidth_bytes_per_s <= 1000e6 / 8 for link in links)
    slow = sum(link.bandwidth_bytes_per_s < 100e6 / 8 for link in links)
    assert 200 < slow < 300  # half of them: uniform in the logarithm
    assert {link.loss for link in links} == {0.01}


def test_dice_of_one_kind_do_not_depend_on_another() -> None:
    assert CALM.links() == replace(CALM, clients=0.5).links()
    assert CALM.links() != replace(CALM, seed=8).links()
    assert np.array_equal(CALM.contribution(1, 2), replace(CALM, peers=5).contribution(1, 2))
    assert not np.array_equal(CALM.contribution(1, 2), CALM.contribution(1, 3))


def test_rounds_are_made_up_to_whole_epochs() -> None:
    big = replace(CALM, peers=1000, rounds=20, max_group=16)
    assert (big.grid.sides, big.epochs) == ((8, 8, 8), 7)


def test_error_is_that_of_members_who_lived_as_a_share_of_where_they_began() -> None:
    epoch = EpochFigures(2)
    own = {number: np.array([float(number)], np.float32) for number in range(4)}
    for member, mean in ((0, 0.5), (1, 0.5), (2, 2.5), (3, 2.5)):
        epoch.hold(member, 0, np.array([mean], np.float32), weight=2.0)
    for member in range(3):
        epoch.hold(member, 1, np.array([1.5], np.float32), weight=4.0)
    first, last = epoch.relative_errors(own)
    assert first == pytest.approx(1.0 / np.sqrt(1.25))
    assert last == 0.0
    assert all(np.isnan(EpochFigures(2).relative_errors(own)))


def test_a_trace_tells_order_and_values_apart() -> None:
    def digest(*events: tuple[float, str, int, object]) -> str:
        trace = Trace()
        for event in events:
            trace.note(*event)
        return trace.digest

    one, other = (0.1, "round", 1, b"x"), (0.1, "round", 2, 0.5)
    assert len({digest(one, other), digest(other, one), digest(one), digest((math.nextafter(0.1, 1), "round", 1, b"x")), digest()}) == 5
    assert digest(one, other) == digest(one, other)


def test_dead_and_stuck_members_are_counted() -> None:
    figures = Figures()
    figures.member_died(1.0, 3, rounds_done=2)
    figures.member_stuck(2.0, 4, rounds=3)
    summary = figures.summary()
    assert (summary["crashed"], summary["stuck"], summary["success"]) == (1, 1, 0.4)


@pytest.mark.parametrize("arguments", [["--rtt-ms", "0-5"], ["--mbit", "9-3"], ["--peers", "0"], ["--loss", "1"], ["--max-group", "1"]])
def test_nonsense_on_the_command_line_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        simulate.parse_arguments(arguments)
    assert "error" in capsys.readouterr().err


def test_ranges_may_be_one_number() -> None:
    assert simulate.parse_arguments(["--rtt-ms", "50"]).rtt_ms == (50.0, 50.0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seed", "-5"],
        ["--kib", "999999999999"],
        ["--rtt-ms", "inf"],
        ["--mbit", "1e400"],
        ["--rtt-ms", "a-b"],
        ["--rtt-ms", "20-"],
        ["--rtt-ms", "200-20"],
        ["--max-group", "100"],
        ["--peers", "0"],
        ["--loss", "nan"],
    ],
    ids=" ".join,
)
def test_nonsense_is_refused_with_a_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err
