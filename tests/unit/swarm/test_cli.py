"""The command line: what it offers (frozen), what it says when something is wrong, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from protocols.errors import (
    ConfigError,
    ExitCode,
    InviteError,
    NetworkSetupError,
    RemoteRefusal,
    RemoteTimeout,
    RoundError,
    StateDirError,
)
from swarm.cli import app, common
from swarm.cli.join import read_link
from swarm.monitoring.status import STOPPED, write_status
from swarm.monitoring.survey import write_survey
from tests.unit.swarm.status_builder import a_status
from tests.unit.swarm.test_survey import a_survey

SAVINGS = ("--optimizer-states", "--offload-optimizer", "--recompute-activations")
FROZEN = {
    "init": {"RUN_FILE", "--preset", "--name", "--state-dir", "--json"},
    "plan": {
        "RUN_FILE",
        "--peers",
        "--mbit",
        "--clients",
        "--rtt-ms",
        "--device-tflops",
        "--utilisation-of-device",
        "--memory-gib",
        "--device-gb",
        "--micro-batch",
        "--probe",
        "--device",
        "--measured",
        "--json",
    },
    "coordinate": {"--state-dir", "--train", "--invite-file", "--listen", "--announce", "--device", *SAVINGS, "--set"},
    "invite": {"--expires", "--uses", "--state-dir", "--json"},
    "join": {"INVITE", "--state-dir", "--listen", "--announce", "--device", "--role", *SAVINGS, "--set", "--no-probe", "--attack"},
    "status": {"--state-dir", "--json", "--watch"},
    "doctor": {"--state-dir", "--address", "--json"},
    "export": {"FOLDER", "--state-dir", "--epoch", "--json"},
    "generate": {"FOLDER", "--prompt", "--bytes", "--temperature", "--seed", "--json"},
    "demo": {"--json", "--seconds", "--goal", "--state-dir", "--keep", "--attackers", "--attack"},
}
"""Commands and flags that people's scripts rely on. Adding is fine, with an entry in the change log; removing or renaming breaks them."""


def _run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app.app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})
    return result.exit_code, result.stdout, result.stderr


def test_the_command_line_is_frozen() -> None:
    group = typer.main.get_command(app.app)
    found = {
        name: {
            option
            for parameter in command.params
            for option in (parameter.opts if parameter.param_type_name == "option" else [str(parameter.metavar).strip("[]")])
            if option != "--help"
        }
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }
    assert found == FROZEN


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_every_help_says_how_by_an_example(name: str) -> None:
    code, text, _ = _run(name, "--help")
    assert code == 0
    assert "Example:" in text
    assert f"swarm-peer {name}" in text


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, swarm.cli.app; "
        "heavy = {'torch', 'numpy', 'transformers', 'hivemind', 'grpc', 'pydantic', 'libp2p', 'cryptography'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_wrong_usage_ends_with_2_and_no_traceback() -> None:
    for arguments in (
        ["nonsense"],
        ["join"],
        ["status", "--colour"],
        ["demo", "--seconds", "many"],
        ["init", "run.toml", "--preset", "tiny"],
    ):
        code, _, complaint = _run(*arguments)
        assert code == ExitCode.USAGE
        assert "Traceback" not in complaint


def test_an_error_becomes_one_sentence_and_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    cases: list[tuple[Exception, ExitCode, str]] = [
        (ConfigError("Write it so."), ExitCode.CONFIG, "Write it so."),
        (StateDirError("Somebody is in there.", ExitCode.IDENTITY_IN_USE), ExitCode.IDENTITY_IN_USE, "Somebody is in there."),
        (NetworkSetupError("Taken.", ExitCode.PORT_IN_USE), ExitCode.PORT_IN_USE, "Taken."),
        (RemoteRefusal(None, "used-up", "the invite is used up"), ExitCode.REFUSED, "A member of the swarm refused: the invite is used up"),
        (RemoteRefusal(None, "wrong-run", "another run"), ExitCode.WRONG_RUN, "A member of the swarm refused: another run"),
        (RemoteTimeout(None, "silence"), ExitCode.NETWORK, "No member of the swarm could be talked to: peer unknown: silence"),
        (ExceptionGroup("tasks", [RemoteTimeout(None, "x"), ConfigError("Mine first.")]), ExitCode.CONFIG, "Mine first."),
        (ConfigError("[bold]not markup[/bold]"), ExitCode.CONFIG, "[bold]not markup[/bold]"),
    ]
    for error, code, sentence in cases:
        assert common.explain(error) is code
        assert capsys.readouterr().err.strip() == sentence


@pytest.mark.parametrize(
    "error",
    [RoundError("lost"), ValueError("odd"), ExceptionGroup("tasks", [ConfigError("fine"), ExceptionGroup("in", [KeyError("bug")])])],
)
def test_our_own_bug_is_admitted_and_its_traceback_kept(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert common.explain(error) is ExitCode.INTERNAL
    (kept,) = tmp_path.iterdir()
    complaint = capsys.readouterr().err
    assert str(kept) in complaint
    assert "Traceback" not in complaint
    assert type(error).__name__ in kept.read_text()


def test_a_models_text_cannot_steer_the_terminal() -> None:
    assert common.printable("def f():\n\tx\x1b[2J\x07\ufffd é") == "def f():\n\tx·[2J·\ufffd é"


def test_guard_turns_interrupts_into_130_and_lets_exits_through(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    def leaves() -> None:
        raise typer.Exit(ExitCode.UNHEALTHY)

    for command, code in ((interrupted, ExitCode.INTERRUPTED), (leaves, ExitCode.UNHEALTHY)):
        with pytest.raises(typer.Exit) as caught:
            common.guarded(command)()
        assert caught.value.exit_code == code
    assert "Traceback" not in capsys.readouterr().err


def test_an_unknown_variable_stops_every_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "swarm.cli.main", "status"],
        env={"SWARM_STATEDIR": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.CONFIG
    assert "did you mean SWARM_STATE_DIR?" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_status_tells_running_stopped_and_never(tmp_path: Path) -> None:
    code, _, complaint = _run("status", "--state-dir", str(tmp_path))
    assert code == ExitCode.NO_STATE
    assert str(tmp_path) in complaint.replace("\n", "")
    write_status(tmp_path / "status.json", a_status(updated_at=time.time()))
    code, text, _ = _run("status", "--state-dir", str(tmp_path), "--json")
    assert code == 0
    assert json.loads(text)["liveness"] == "running"
    assert json.loads(text)["epoch"] == 7
    code, text, _ = _run("status", "--state-dir", str(tmp_path))
    assert code == 0
    assert "epoch 7" in text
    write_status(tmp_path / "status.json", a_status(state=STOPPED))
    code, text, _ = _run("status", "--state-dir", str(tmp_path))
    assert code == ExitCode.UNHEALTHY
    assert "not running: stopped" in text


def test_status_shows_what_was_measured_on_joining(tmp_path: Path) -> None:
    write_status(tmp_path / "status.json", a_status(updated_at=time.time()))
    assert json.loads(_run("status", "--state-dir", str(tmp_path), "--json")[1])["measured"] is None
    write_survey(tmp_path / "measured.json", a_survey(run_id=a_status().run_id))
    assert json.loads(_run("status", "--state-dir", str(tmp_path), "--json")[1])["measured"]["samples_per_s"] == 50.0
    assert "50 samples/s" in _run("status", "--state-dir", str(tmp_path))[1]
    write_survey(tmp_path / "measured.json", a_survey(run_id="cd" * 32))
    assert "50 samples/s" not in _run("status", "--state-dir", str(tmp_path))[1], "that was in another run"
    (tmp_path / "measured.json").write_text("damaged")
    code, text, complaint = _run("status", "--state-dir", str(tmp_path))
    assert (code, "epoch 7" in text, "measured.json" in complaint.replace("\n", "")) == (0, True, True)


def test_doctor_says_that_nothing_runs(tmp_path: Path) -> None:
    code, text, _ = _run("doctor", "--state-dir", str(tmp_path), "--json")
    report = json.loads(text)
    assert code == ExitCode.UNHEALTHY
    assert not report["healthy"]
    assert [check["name"] for check in report["checks"]][-1] == "peer"


@pytest.mark.parametrize("spoil", [lambda text: "", lambda text: " \n", lambda text: text * 2_000])
def test_an_invite_is_read_from_a_file_or_refused(tmp_path: Path, spoil: Callable[[str], str]) -> None:
    path = tmp_path / "invite.txt"
    path.write_text("swarm://abc\n", encoding="utf-8")
    assert read_link(f"@{path}") == read_link(" swarm://abc ") == "swarm://abc"
    with pytest.raises(InviteError, match="paste the whole link"):
        read_link(spoil("swarm://abc"))


def test_an_unreadable_invite_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InviteError, match="No such file"):
        read_link(f"@{tmp_path / 'nothing'}")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InviteError, match="something else than a link"):
        read_link(f"@{tmp_path / 'binary'}")
