"""Settings of a peer: where they may come from, and what is said when one is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from protocols.errors import ConfigError, ExitCode
from swarm import environment
from swarm.config import PeerConfig, peer_config, split_host_port


def test_defaults_are_those_of_a_considerate_volunteer() -> None:
    config = PeerConfig()
    assert config.state_dir.is_absolute()
    assert (config.role, config.device, config.niceness, config.bandwidth_cap_bytes_per_s) == ("trainer", "auto", 10, None)


def test_a_config_is_frozen_and_closed() -> None:
    with pytest.raises(ValidationError):
        PeerConfig().threads = 3
    with pytest.raises(ValidationError):
        PeerConfig.model_validate({"thread": 3})


def test_flags_beat_set_beats_environment() -> None:
    environ = {"role": "helper", "threads": "1", "niceness": "5"}
    config = peer_config({"role": "client", "device": None}, environ, ["threads=2"])
    assert (config.role, config.threads, config.niceness, config.device) == ("client", 2, 5, "auto")


@pytest.mark.parametrize(
    ("flags", "environ", "settings", "sentence"),
    [
        ({"listen": "nowhere"}, {}, [], r"--listen cannot be 'nowhere': write host:port, for example 0\.0\.0\.0:7001"),
        ({"listen": "host:70000"}, {}, [], "--listen cannot be 'host:70000'"),
        ({}, {"threads": "many"}, [], "SWARM_THREADS cannot be 'many'"),
        ({}, {"checkpoint_every_epochs": "0"}, [], "SWARM_CHECKPOINT_EVERY cannot be '0'"),
        ({}, {}, ["niceness=40"], "--set niceness cannot be '40'"),
        ({}, {}, ["nicenes=1"], r"--set nicenes is not known: did you mean niceness\?"),
        ({}, {}, ["threads"], "--set threads says no value"),
        ({"device": "tpu"}, {}, [], "--device cannot be 'tpu'"),
        ({"announce": "http://x/"}, {}, [], "--announce cannot be"),
        ({"announce": "host:99"}, {}, [], "without a port"),
        ({}, {}, ["libp2p_listen=/ip4/0.0.0.0/udp/1/quic"], "TCP multiaddr"),
        ({}, {}, ["bandwidth_mbit=nan"], "--set bandwidth_mbit cannot be 'nan'"),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_its_source(
    flags: dict[str, object], environ: dict[str, str], settings: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        peer_config(flags, environ, settings)
    assert caught.value.exit_code is ExitCode.CONFIG
    assert "\n" not in str(caught.value)


def test_bandwidth_is_given_in_bits_and_used_in_bytes() -> None:
    assert peer_config({}, {}, ["bandwidth_mbit=100"]).bandwidth_cap_bytes_per_s == 12.5e6


def test_paths_are_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = peer_config({"state_dir": "~/peer"}, {})
    assert config.status_path == tmp_path / "peer" / "status.json"


@pytest.mark.parametrize(
    ("text", "split"),
    [("0.0.0.0:0", ("0.0.0.0", 0)), ("[::1]:65535", ("::1", 65535)), ("peer.example.org:7001", ("peer.example.org", 7001))],
)
def test_host_and_port(text: str, split: tuple[str, int]) -> None:
    assert split_host_port(text) == split


@pytest.mark.parametrize("text", ["", ":", "host", "host:", ":80", "host:-1", "host:65536", "host:٣"])
def test_not_host_and_port(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_host_port(text)


def test_settings_read_only_our_variables() -> None:
    assert environment.settings({"SWARM_STATE_DIR": "/x", "PATH": "/bin", "SWARM_ROLE": ""}) == {"state_dir": "/x"}


def test_an_unknown_variable_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"SWARM_STATEDIR is not known: did you mean SWARM_STATE_DIR\?"):
        environment.settings({"SWARM_STATEDIR": "/x"})


def test_every_variable_sets_a_field_and_every_field_has_a_variable() -> None:
    assert set(environment.VARIABLES.values()) == set(PeerConfig.model_fields)


def test_libraries_are_prepared_but_the_users_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"TRANSFORMERS_VERBOSITY": "info", "SWARM_ROLE": "helper"})
    environment.prepare_libraries()
    child = environment.for_children({"EXTRA": "1"})
    assert (child["TRANSFORMERS_VERBOSITY"], child["GRPC_ENABLE_FORK_SUPPORT"], child["EXTRA"]) == ("info", "0", "1")
    assert "SWARM_ROLE" not in child, "a peer that we start must not inherit our own settings"


def test_importing_the_settings_is_cheap() -> None:
    code = "import sys, swarm.config; print([m for m in ('torch', 'transformers', 'hivemind', 'grpc') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
