"""The table of attacks: what is trained, what attackers do to it, and the command."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest
import torch

from peers.attacks.donors import POISON_DONOR
from peers.attacks.protocol import PROTOCOL_ATTACKS
from peers.averaging.context import AveragingRules
from peers.simulation import run_simulated
from peers.state_snapshot import StateSnapshot
from peers.training_peer import ReplayRequest
from protocols.codecs import codec_named
from protocols.errors import ConfigError, LocalProtocolError
from protocols.ids import RunId
from scripts.attacks import report, tiny_transformer
from scripts.attacks.newcomers import Newcomers
from scripts.attacks.plain_swarm import CleanRuns
from scripts.attacks.runners import DEFENCES, VERIFIED, runner_named
from scripts.attacks.scenario import ATTACKS, NO_ATTACK, Row, Scenario, finite
from scripts.attacks.simulated_members import SimulatedMembers
from scripts.attacks.workload import Learner, Workload, load_text
from scripts.bench import attacks

SMALL = Scenario(peers=5, attackers=2, epochs=12, attack_from=3, samples=2)
PEERS = SMALL.members()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in workers: tensors are small
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def clean() -> CleanRuns:
    return CleanRuns(SMALL)


@pytest.fixture(scope="module")
def workload(clean: CleanRuns) -> Workload:
    return clean.workload(3)


def row(clean: CleanRuns, attack: str, defence: str = "mean", seed: int = 3) -> Row:
    return runner_named(defence, clean).run(attack, seed, 1, lambda: None)


def excess(found: Row) -> float:
    assert found.loss is not None
    assert found.loss_clean is not None
    return found.loss - found.loss_clean


# What is trained


def test_gradients_are_those_of_the_loss(workload: Workload) -> None:
    params_D = workload.initial_params()
    inputs_NT = torch.randint(0, 256, (2, tiny_transformer.T), generator=torch.Generator().manual_seed(0))
    gradient_D = tiny_transformer.window_gradients(params_D.expand(1, -1), inputs_NT[:1], inputs_NT[1:])[0].double()
    direction_D = gradient_D / gradient_D.norm()
    step = 1e-2
    ahead_D, behind_D = params_D + step * direction_D.float(), params_D - step * direction_D.float()
    losses = [float(tiny_transformer.window_losses(at_D[None], inputs_NT[:1], inputs_NT[1:])) for at_D in (ahead_D, behind_D)]
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(gradient_D.norm().item(), rel=0.02)


def test_anybody_can_replay_anyone(workload: Workload) -> None:
    params_D = workload.initial_params()
    means_PD = workload.gradients(7, PEERS, params_D)
    again = Workload(load_text(), 3, 2)
    assert all(torch.equal(means_PD[number], again.gradient(7, peer, 0, 2, params_D)) for number, peer in enumerate(PEERS))
    rows_SD = workload.sample_gradients(7, PEERS[1], 0, 2, params_D)
    assert torch.equal(rows_SD[1], workload.gradient(7, PEERS[1], 1, 1, params_D))


def test_everybody_has_samples_of_its_own(workload: Workload) -> None:
    params_D = workload.initial_params()
    found = [*workload.gradients(0, PEERS, params_D), *workload.gradients(1, PEERS, params_D), workload.favourite_gradient(params_D)]
    assert len({gradient_D.numpy().tobytes() for gradient_D in found}) == 11
    assert len(workload.gradients(0, (), params_D)) == 0


def test_flipped_labels_have_another_gradient(workload: Workload) -> None:
    params_D = workload.initial_params()
    flipped_PD = workload.gradients(0, PEERS, params_D, flipped=True)
    assert torch.equal(flipped_PD[2], workload.gradient(0, PEERS[2], 0, 2, params_D, flipped=True))
    assert not torch.allclose(flipped_PD, workload.gradients(0, PEERS, params_D), atol=1e-2)


def test_honest_members_learn(clean: CleanRuns, workload: Workload) -> None:
    assert workload.loss(workload.initial_params()) == pytest.approx(5.5, abs=0.15)
    assert clean.loss(3) < 4.2
    assert clean.loss(3) == CleanRuns(SMALL).loss(3) != clean.loss(4)


def test_learner_does_not_step_on_what_is_not_finite(workload: Workload) -> None:
    learner, before_D = Learner(workload, 4), workload.initial_params()
    assert not learner.apply(torch.full_like(before_D, float("nan")), 0)
    assert torch.equal(learner.params, before_D)
    assert learner.apply(torch.ones_like(before_D), 0)
    assert not torch.equal(learner.params, before_D)


# Attacks without verification


def test_attackers_are_drawn_from_the_seed() -> None:
    scenario = Scenario()
    drawn = [scenario.attackers_of(seed) for seed in range(20)]
    assert {len(attackers) for attackers in drawn} == {7}
    assert scenario.attackers_of(3) == drawn[3]
    assert len({peer for attackers in drawn for peer in attackers}) == 16


PLAIN = [name for name in DEFENCES if name != VERIFIED]


@pytest.mark.parametrize("defence", PLAIN)
def test_no_attack_costs_little(clean: CleanRuns, defence: str) -> None:
    found = row(clean, NO_ATTACK, defence)
    assert abs(excess(found)) < 0.5
    assert (found.attackers_left, found.honest_banned, found.auditors, found.epochs_to_last_ban) == (0, 0, 0, None)


def test_mean_falls_to_a_loud_attack_and_the_median_does_not(clean: CleanRuns) -> None:
    mean, median = row(clean, "sign_flip"), row(clean, "sign_flip", "median")
    assert excess(mean) > 1.0
    assert excess(median) < 0.5
    assert (mean.attackers_left, mean.honest_banned) == (2, 0)


@pytest.mark.parametrize("defence", PLAIN)
def test_no_rule_helps_against_lying_reducers(clean: CleanRuns, defence: str) -> None:
    assert excess(row(clean, "lying_reducer", defence)) > 0.3
    assert excess(row(clean, "two_faced_reducer", defence)) > 0.1


@pytest.mark.parametrize("defence", PLAIN)
def test_what_is_not_finite_is_left_out(clean: CleanRuns, defence: str) -> None:
    assert abs(excess(row(clean, "nan", defence))) < 0.5


def test_verification_ends_a_lie_in_its_first_epoch(clean: CleanRuns) -> None:
    found = row(clean, "lying_reducer", VERIFIED)
    assert (found.attackers_left, found.honest_banned, found.epochs_to_last_ban) == (0, 0, 1)
    assert found.reasons == {"reduction": 2}
    assert found.loss == pytest.approx(found.loss_same_members, rel=0.005)  # blocks put right lack a part
    assert found.unequal_epochs == 0


def test_newcomers_never_take_over_poison(clean: CleanRuns) -> None:
    found, unharmed = row(clean, POISON_DONOR, VERIFIED), row(clean, NO_ATTACK, VERIFIED)
    assert found.loss == unharmed.loss
    assert (found.attackers_left, found.honest_banned, found.epochs_to_last_ban, found.unequal_epochs) == (2, 0, None, 0)
    assert found.reasons.keys() == {"donors dropped", "newcomers served"}
    assert found.reasons["newcomers served"] == SMALL.epochs - SMALL.attack_from
    assert 12 <= found.reasons["donors dropped"] <= 15  # two attackers in nine epochs, three of whose turns were silence


def test_a_newcomer_with_other_bytes_is_an_error() -> None:
    newcomers, rules = Newcomers(PEERS, ()), AveragingRules(RunId(bytes(32)), 1024, codec_named("fp32"), 64)
    truth_D = torch.arange(1024, dtype=torch.float32)

    async def nothing(_replay: ReplayRequest) -> None:
        return None

    async def live() -> None:
        beside = {peer: server.handlers() for peer, server in newcomers.servers.items()}
        async with SimulatedMembers(len(PEERS), rules, 0, {}, nothing, beside) as swarm:
            newcomers.publish(1, truth_D, poisoned=True)
            await newcomers.visit(swarm, 0)
            newcomers.check()
            other = StateSnapshot.of([("params", truth_D + 1)], epoch=1, accepted_samples=1, meta={})
            for server in newcomers.servers.values():
                server.announce(other.state_hash)
                server.publish(other)
            await newcomers.visit(swarm, 1)

    run_simulated(live(), limit_s=1e4)
    assert (newcomers.served, newcomers.misled) == (1, 1)
    with pytest.raises(LocalProtocolError, match="1 of 2 newcomers"):
        newcomers.check()


def test_same_seed_gives_the_same_row(clean: CleanRuns) -> None:
    assert row(clean, "constant_direction", "krum").loss == row(CleanRuns(SMALL), "constant_direction", "krum").loss


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name not in (*PROTOCOL_ATTACKS, POISON_DONOR)])
def test_every_attack_on_contributions_can_be_run(clean: CleanRuns, attack: str) -> None:
    runner, epochs = runner_named("mean", clean), [0]

    def progress() -> None:
        epochs[0] += 1

    assert runner.plays(attack)
    assert runner.run(attack, 3, 1, progress).loss != clean.loss(3)
    assert epochs[0] == runner.epochs(attack) == 12


def test_what_only_a_verified_swarm_knows_is_left_out(clean: CleanRuns) -> None:
    assert [attack for attack in PROTOCOL_ATTACKS if runner_named("krum", clean).plays(attack)] == ["lying_reducer", "two_faced_reducer"]
    with pytest.raises(ConfigError, match="mean, median"):
        runner_named("luck", clean)


# The command


def test_command_prints_rows_and_a_summary_last(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--peers", "4", "--attackers", "1", "--epochs", "4", "--attack-from", "1", "--workers", "1")
    assert attacks.main([*small, "--attack", "bit_flip", "--attack", "equivocate", "--defence", "mean", "--seed", "5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    (found,) = said["rows"]
    wanted = {"attack": "bit_flip", "defence": "mean", "auditors": 0, "seed": 5, "epochs_to_last_ban": None, "honest_banned": 0}
    assert found.items() >= wanted.items()
    assert found["attackers_left"] == 1
    assert found["loss"] == row(CleanRuns(Scenario(4, 1, 4, 1)), "bit_flip", seed=5).loss
    assert said["summary"]["cells"] == 1
    assert said["summary"]["defences"]["mean"]["worst_attack"] == "bit_flip"


def test_nothing_to_do_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert attacks.main(["--attack", "equivocate", "--defence", "mean"]) == 2
    assert "choose another defence" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--peers", "3"),
        ("--attackers", "8"),
        ("--attackers", "0"),
        ("--attack", "rudeness"),
        ("--defence", "luck"),
        ("--auditors", "3"),
        ("--seed", "-1"),
    ],
)
def test_odd_arguments_are_refused(arguments: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        attacks.parse_arguments(list(arguments))
    assert refused.value.code == 2


def test_all_attacks_are_accepted() -> None:
    assert len(ATTACKS) == len(set(ATTACKS)) == 31
    asked = [argument for attack in ATTACKS for argument in ("--attack", attack)]
    assert attacks.parse_arguments(asked).attack == list(ATTACKS) == attacks.parse_arguments([]).attack


def test_a_loss_beyond_all_numbers_is_the_worst() -> None:
    rows = [Row("a", "mean", 0, 0, 9.0, 2.0, None, 7, 0, 1.0), Row("b", "mean", 0, 0, finite(float("nan")), 2.0, None, 7, 0, 1.0)]
    assert report.summary(rows)["mean"]["worst_attack"] == "b"
    assert report.summary(rows)["mean"]["worst_excess"] is None
    assert report.table(rows, "title").row_count == 2
