"""A run as files: made once, kept whole, refused when damaged."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from protocols.errors import ConfigError, DatasetError, ExitCode, InviteError, StateDirError, UserError
from protocols.ids import SwarmTime
from protocols.invite import read_invite
from protocols.runspec import RunSpec
from swarm.cli.invite import parse_duration_s
from swarm.runfile import create_run, load_run, load_spec, new_invite, open_dataset, open_run, preset_spec, read_spec, write_invite

NOW = SwarmTime(1_800_000_000.0)
ADDRESS = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWEyopopk7T6qT3gcSWPmmuZVEFX8HbHJ6MhHLpSKYGFEk"


def _spec(tmp_path: Path, mode: str = "open", name: str = "test") -> RunSpec:
    (tmp_path / "corpus.txt").write_text("to be or not to be, that is the question. " * 100, encoding="utf-8")
    return RunSpec.from_settings(
        {
            "run": {"name": name},
            "model": {"preset": "tiny"},
            "data": {"source": "files", "files": ["corpus.txt"], "sequence_length": 16},
            "admission": {"mode": mode},
        }
    )


def test_a_run_is_made_once_and_found_again(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    signed = create_run(state_dir, _spec(tmp_path), now=NOW, root=tmp_path)
    assert signed.spec.data.fingerprint is not None
    loaded, authority = load_run(state_dir)
    assert loaded == load_spec(state_dir) == signed
    assert authority.public_key == signed.authority_key
    assert stat.S_IMODE((state_dir / "run" / "authority.key").stat().st_mode) == 0o600
    assert sorted(path.name for path in (state_dir / "run").iterdir()) == ["authority.key", "ca.pem", "spec.json", "spec.signed"]
    with pytest.raises(StateDirError, match="already holds the run test"):
        create_run(state_dir, _spec(tmp_path), now=NOW, root=tmp_path)
    assert load_run(state_dir)[0] == signed, "nothing is lost by trying again"


def test_opening_goes_on_with_the_same_run_and_refuses_another(tmp_path: Path) -> None:
    first, _ = open_run(tmp_path / "state", _spec(tmp_path), now=NOW, root=tmp_path)
    again, _ = open_run(tmp_path / "state", _spec(tmp_path), now=SwarmTime(NOW + 9), root=tmp_path)
    assert again == first
    with pytest.raises(ConfigError, match="other settings"):
        open_run(tmp_path / "state", _spec(tmp_path, name="another"), now=NOW, root=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("spec.signed", b"garbage", ExitCode.STATE_DIR),
        ("spec.signed", b"x" * 10**6, ExitCode.STATE_DIR),
        ("authority.key", b"short", ExitCode.STATE_DIR),
        ("authority.key", b"k" * 32, ExitCode.STATE_DIR),
        ("authority.key", None, ExitCode.STATE_DIR),
        ("spec.signed", None, ExitCode.NO_STATE),
    ],
)
def test_a_damaged_run_is_one_sentence(tmp_path: Path, name: str, content: bytes | None, code: ExitCode) -> None:
    create_run(tmp_path / "state", _spec(tmp_path), now=NOW, root=tmp_path)
    path = tmp_path / "state" / "run" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(StateDirError) as caught:
        load_run(tmp_path / "state")
    assert caught.value.exit_code is code
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_the_specification_is_noticed(tmp_path: Path) -> None:
    create_run(tmp_path / "state", _spec(tmp_path), now=NOW, root=tmp_path)
    path = tmp_path / "state" / "run" / "spec.signed"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StateDirError, match="damaged"):
        load_spec(tmp_path / "state")


def test_more_fragments_than_the_model_has_parts_are_refused_when_the_run_is_made(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    optimizer, outer = spec.optimizer.model_copy(update={"rule": "outer"}), spec.outer.model_copy(update={"fragments": 1000})
    with pytest.raises(ConfigError, match=r"parts and cannot be averaged in 1000 fragments: lower outer\.fragments"):
        create_run(tmp_path / "state", spec.model_copy(update={"optimizer": optimizer, "outer": outer}), now=NOW, root=tmp_path)
    assert not (tmp_path / "state").exists()
    create_run(tmp_path / "state", spec.model_copy(update={"outer": outer}), now=NOW, root=tmp_path)  # the gradient rule has none


def test_the_data_must_be_there_and_be_the_runs(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    signed = create_run(tmp_path / "state", spec, now=NOW, root=tmp_path)
    assert open_dataset(signed.spec, tmp_path).fingerprint.hex() == signed.spec.data.fingerprint
    (tmp_path / "corpus.txt").write_text("something else. " * 500, encoding="utf-8")
    with pytest.raises(DatasetError, match="is not the run's"):
        open_dataset(signed.spec, tmp_path)
    (tmp_path / "corpus.txt").unlink()
    with pytest.raises(UserError, match=r"corpus\.txt"):
        open_dataset(signed.spec, tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[run", "not TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[run]\nname = 'x'\n[model]\npreset = 'tiny'\n[optimiser]\n", "optimiser"),
        (b"[run]\nname = 'x'\nsede = 1\n[model]\npreset = 'tiny'\n", "did you mean run.seed"),
        (b"#" * (2**20 + 1), "far too long"),
    ],
)
def test_a_wrong_run_file_is_a_config_error(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        read_spec(path)


def test_an_unknown_preset_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tinny"):
        create_run(tmp_path / "state", preset_spec("tinny", None), now=NOW)
    assert not (tmp_path / "state").exists()


def test_an_unwritable_state_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StateDirError, match="cannot be created"):
        create_run(tmp_path / "file" / "state", _spec(tmp_path), now=NOW, root=tmp_path)


@pytest.mark.parametrize("mode", ["open", "private"])
def test_an_invite_leads_to_this_run_until_it_expires(tmp_path: Path, mode: str) -> None:
    create_run(tmp_path / "state", _spec(tmp_path, mode), now=NOW, root=tmp_path)
    signed, authority = load_run(tmp_path / "state")
    link = new_invite(signed, authority, [ADDRESS], now=NOW, lifetime_s=3600, max_uses=3)
    invite = read_invite(link, SwarmTime(NOW + 3599))
    assert (invite.run, invite.addresses, invite.max_uses, invite.is_open) == (signed.run_id, (ADDRESS,), 3, mode == "open")
    with pytest.raises(InviteError, match="expired"):
        read_invite(link, SwarmTime(NOW + 3700))
    other = new_invite(signed, authority, [ADDRESS], now=NOW, lifetime_s=3600)
    assert read_invite(other, NOW).token != invite.token


def test_the_invite_file_is_private_and_whole(tmp_path: Path) -> None:
    write_invite(tmp_path / "invite.txt", "swarm://join/abc")
    assert (tmp_path / "invite.txt").read_text(encoding="ascii") == "swarm://join/abc\n"
    assert stat.S_IMODE((tmp_path / "invite.txt").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["invite.txt"]
    with pytest.raises(ConfigError, match="--invite-file"):
        write_invite(tmp_path / "nowhere" / "invite.txt", "x")


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("30m", 1800.0), ("24h", 86_400.0), ("7d", 604_800.0)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "24", "0h", "-1h", "1.5h", "2w", "99999d", "٣h"])
def test_not_durations(text: str) -> None:
    with pytest.raises(ConfigError, match="--expires cannot be"):
        parse_duration_s(text)
