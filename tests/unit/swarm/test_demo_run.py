"""The runs that are written down more than once are the same runs."""

from __future__ import annotations

from pathlib import Path

from scripts import train_tiny_bloom
from swarm.demo.show import RUN_FILE
from swarm.runfile import read_spec

TOML = Path(train_tiny_bloom.__file__).with_name("tiny_bloom.toml")


def test_the_script_and_the_run_file_say_the_same() -> None:
    assert read_spec(TOML) == train_tiny_bloom.SPEC


def test_the_demonstration_trains_that_run() -> None:
    assert read_spec(RUN_FILE) == train_tiny_bloom.SPEC
