"""What a member measures when it joins: from steps that count, in a file that survives, in lines that people understand."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peers.training_peer import MemberView, PeerStopped, SwarmView
from protocols.errors import ConfigError, StateDirError
from protocols.ids import Epoch, PeerId
from protocols.link_figures import LinkFigures
from protocols.planning.values import MEASURED_LINK_SHARE, UPDATE_S_PER_ELEM
from protocols.runspec import RunSpec
from swarm import surveying
from swarm.config import PeerConfig
from swarm.monitoring.survey import Survey, read_survey, survey_block, write_survey
from swarm.surveying import Companions, expected_of, link_of, machine_of, members_of
from swarm.training.pace import WARM_UP_TURNS, Computed, Pace

ME, OTHER, THIRD = (PeerId(bytes([number]) * 32) for number in (1, 2, 3))
SPEC = RunSpec.from_settings({"run": {"name": "measured"}, "model": {"preset": "tiny"}, "data": {"sequence_length": 16}})
LINK = LinkFigures(1e6, 2e6, 0.03, 2, 4_000_000)


def a_survey(**changes: Any) -> Survey:
    """A trainer beside two others."""
    fields: dict[str, Any] = {
        "run_name": "measured",
        "run_id": "ab" * 32,
        "measured_at": 1_800_000_000.0,
        "role": "trainer",
        "device": "cpu",
        "micro_batch_samples": 8,
        "samples_per_s": 50.0,
        "flops_per_s": 1e10,
        "up_bytes_per_s": 1e6,
        "down_bytes_per_s": 2e6,
        "rtt_s": 0.03,
        "link_members": 2,
        "peers": 3,
        "helpers": 1,
        "others_samples_per_s": 150.0,
    }
    return Survey(**{**fields, **changes})


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_pace_counts_what_counts_and_leaves_the_first_passes_out() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.computed.samples_per_s is None
    for number in range(WARM_UP_TURNS + 3):
        with pace.turn() as turn:
            clock.now_s += 100.0 if number < WARM_UP_TURNS else 0.5
            turn.samples = 4
        with pace.turn():
            clock.now_s += 1000.0  # a round, or somebody else's replay
    assert pace.computed == Computed(12, 1.5, 3)
    assert pace.computed.samples_per_s == 8.0


def test_a_survey_survives_the_file(tmp_path: Path) -> None:
    survey = a_survey()
    survey = survey.model_copy(update={"expected": expected_of(survey, SPEC)})
    assert survey.expected is not None
    write_survey(tmp_path / "measured.json", survey)
    assert read_survey(tmp_path / "measured.json") == survey
    assert read_survey(tmp_path / "nowhere" / "measured.json") is None
    assert [path.name for path in tmp_path.iterdir()] == ["measured.json"]
    with pytest.raises(StateDirError, match="Cannot write"):
        write_survey(tmp_path / "nowhere" / "measured.json", survey)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "nonsense", json.dumps({**a_survey().model_dump(), "samples_per_s": -1.0}), '{"unknown": 1}', "x" * 100_000]
)
def test_a_damaged_file_is_the_users_to_mend(tmp_path: Path, text: str) -> None:
    path = tmp_path / "measured.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"measured\.json"):
        read_survey(path)


@pytest.mark.parametrize("text", ["", "nonsense", '{"run_name'])
def test_a_file_that_is_no_json_is_not_called_a_run_spec(tmp_path: Path, text: str) -> None:
    (tmp_path / "measured.json").write_text(text)
    with pytest.raises(ConfigError, match=r"measured: the file is no JSON\.$"):
        read_survey(tmp_path / "measured.json")


@pytest.mark.parametrize(
    ("key", "figure"),
    [
        ("flops_per_s", 1e-300),
        ("micro_batch_samples", 10**29),
        ("processing_s_per_elem", 1e308),
        ("update_s_per_elem", 1e308),
        ("rtt_s", 1e308),
        ("epoch_s", 0.0),
        ("epoch_s", 1e-320),
        ("up_bytes", 1e308),
        ("down_bytes", 1e308),
    ],
)
def test_figures_that_no_machine_has_are_refused_not_computed_with(tmp_path: Path, key: str, figure: float) -> None:
    survey = a_survey()
    fields = survey.model_copy(update={"expected": expected_of(survey, SPEC)}).model_dump()
    (fields if key in fields else fields["expected"])[key] = figure
    (tmp_path / "measured.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=key):
        read_survey(tmp_path / "measured.json")


def test_planning_starts_from_what_was_measured() -> None:
    machine, link, members = machine_of(a_survey()), link_of(a_survey()), members_of(a_survey())
    assert machine is not None
    assert link is not None
    assert (machine.flops_per_s, machine.micro_batch_samples, machine.update_s_per_elem) == (1e10, 8, UPDATE_S_PER_ELEM)
    assert (link.bytes_per_s, link.rtt_s, link.share) == (1e6, 0.03, MEASURED_LINK_SHARE)
    assert (members.peers, members.helpers, members.others_samples_per_s) == (3, 1, 150.0)
    assert machine_of(a_survey(flops_per_s=None)) is None
    assert link_of(a_survey(up_bytes_per_s=None)) is None
    assert link_of(a_survey(rtt_s=None)) is not None


def test_expectations_follow_from_it_or_there_are_none() -> None:
    found = expected_of(a_survey(), SPEC)
    assert found is not None
    slower = expected_of(a_survey(up_bytes_per_s=1e4), SPEC)
    assert slower is not None
    assert slower.epoch_s > found.epoch_s
    assert slower.share_computing < found.share_computing
    assert "The link holds this machine up" in slower.verdict
    assert 0 < found.share_of_swarm < 1
    for missing in ({"flops_per_s": None}, {"down_bytes_per_s": None}, {"peers": 2, "clients": 2, "helpers": 0}):
        assert expected_of(a_survey(**missing), SPEC) is None


def test_people_read_what_it_means() -> None:
    survey = a_survey()
    text = survey_block(survey.model_copy(update={"expected": expected_of(survey, SPEC)}))
    speed, link = "50 samples/s in micro-batches of 8", "8 Mbit/s up, 16 Mbit/s down"
    for words in (speed, link, "30 ms", "% of the time computing", "an hour", "3 members"):
        assert words in text
    bare = survey_block(a_survey(samples_per_s=None, up_bytes_per_s=None, down_bytes_per_s=None, rtt_s=None, link_note="Nobody answered."))
    assert "too little was computed" in bare
    assert "Nobody answered." in bare
    assert "a helper reduces" in survey_block(a_survey(role="helper", samples_per_s=None))
    assert "less than 1 ms" in survey_block(a_survey(rtt_s=0.0))


def member(peer: PeerId, samples_per_s: float, role: str = "trainer", phase: str = "training") -> MemberView:
    return MemberView(peer, role, phase, Epoch(1), 0, samples_per_s, 0, 0, None, b"")


class Scene:
    """A connection and a trainer as far as measuring sees them."""

    def __init__(self, directory: Path, role: str = "trainer") -> None:
        self.link: Future[LinkFigures] = Future()
        self.shown: list[str] = []
        self.trainer: Any = SimpleNamespace(
            pace=SimpleNamespace(computed=Computed()), device_type="cpu", micro_batch_samples=8, update_s=0.01
        )
        view = SwarmView(members=(member(ME, 5.0), member(OTHER, 30.0), member(THIRD, 0.0, "helper"), member(THIRD, 9.0, phase="leaving")))
        self.config = PeerConfig(state_dir=directory, role=role)  # type: ignore[arg-type]
        self.connection: Any = SimpleNamespace(
            config=self.config,
            peer=ME,
            spec=SPEC,
            signed_spec=SimpleNamespace(run_id="ab" * 32),
            network=SimpleNamespace(link=self.link),
            handle=SimpleNamespace(view=lambda: view),
        )

    @contextmanager
    def running(self) -> Iterator[threading.Thread]:
        """Measuring beside a trainer; gives its thread."""
        with surveying.surveying(self.connection, self.trainer, self.shown.append):
            yield next(thread for thread in threading.enumerate() if thread.name == "survey")


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(surveying, "_CODEC_ELEMS", 2**10)
    monkeypatch.setattr(surveying, "_LOOK_EVERY_S", 0.001)
    return Scene(tmp_path)


def test_companions_are_as_fast_as_they_mostly_say() -> None:
    companions = Companions(ME)
    for speed in (0.0, 10.0, 10.0, 1.0, 12.0):
        companions.note(SwarmView(members=(member(ME, 5.0), member(OTHER, speed), member(THIRD, 0.0, "client"))))
    assert companions.members() == (3, 1, 0, None), "one has not said it"
    companions.note(SwarmView(members=(member(ME, 5.0), member(OTHER, 11.0), member(THIRD, 4.0, "client"))))
    assert companions.members() == (3, 1, 0, 10.5 + 4.0)
    companions.note(SwarmView(members=(member(ME, 5.0), member(OTHER, 11.0, phase="leaving"))))
    assert companions.members() == (1, 0, 0, 0)


def test_measuring_ends_when_both_are_known_and_is_written_and_shown(scene: Scene) -> None:
    with scene.running() as thread:
        scene.link.set_result(LINK)
        scene.trainer.pace.computed = Computed(300, surveying.ENOUGH_S, 40)
        thread.join(10)
        assert not thread.is_alive()
    found = read_survey(scene.config.survey_path)
    assert found is not None
    assert (found.samples_per_s, found.up_bytes_per_s, found.down_bytes_per_s) == (30.0, 1e6, 2e6)
    assert (found.peers, found.helpers, found.clients, found.others_samples_per_s) == (3, 1, 0, 30.0)
    assert found.expected is not None
    assert found.expected.share_of_swarm == pytest.approx(0.5)
    assert scene.shown == [survey_block(found)]


def test_what_is_not_known_in_time_is_left_out(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying, "WITHIN_S", 0.0)
    with scene.running() as thread:
        scene.trainer.pace.computed = Computed(30, 1.0, 4)
        thread.join(10)
    found = read_survey(scene.config.survey_path)
    assert found is not None
    assert found.samples_per_s == 30.0
    assert found.up_bytes_per_s is None
    assert found.expected is None
    assert "not measured in time" in scene.shown[0]


def test_a_helper_measures_its_link_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying, "_CODEC_ELEMS", 2**10)
    scene = Scene(tmp_path, "helper")
    with scene.running() as thread:
        scene.link.set_result(LINK)
        thread.join(10)
    assert "a helper reduces" in scene.shown[0]


def test_leaving_ends_it_at_once_and_nothing_is_kept(scene: Scene) -> None:
    with scene.running() as thread:
        pass
    assert not thread.is_alive()
    assert read_survey(scene.config.survey_path) is None
    assert scene.shown == []


@pytest.mark.parametrize(
    ("failure", "level", "words"),
    [
        (ZeroDivisionError(), logging.ERROR, "a bug of ours"),
        (PeerStopped("the peer is stopping"), logging.INFO, "stopping"),
        (StateDirError("the disk is full"), logging.WARNING, "the disk is full"),
    ],
)
def test_whatever_fails_ends_in_the_log_with_whose_fault_it_is(
    scene: Scene, failure: Exception, level: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "swarm.surveying")

    def fail() -> SwarmView:
        raise failure

    with scene.running() as thread:
        scene.connection.handle.view = fail
        scene.link.set_result(LINK)
        scene.trainer.pace.computed = Computed(300, surveying.ENOUGH_S, 40)
        thread.join(10)
    assert [(record.levelno, words in record.getMessage()) for record in caplog.records] == [(level, True)]
