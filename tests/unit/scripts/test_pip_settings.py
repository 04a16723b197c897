"""The host's package index on its way into an image build: what `pip config list` says, what the build gets, what it must not get."""

from __future__ import annotations

import configparser
import stat
from pathlib import Path

from scripts.containers.pip_settings import PipSettings, parse


def test_the_environment_beats_the_install_section_which_beats_global() -> None:
    lines = {
        "global": "global.index-url='https://global.example/simple'",
        "install": "install.index-url='https://install.example/simple'",
        "env": ":env:.index-url='https://env.example/simple'",
    }
    assert parse("\n".join(lines.values())).values == {"index-url": "https://env.example/simple"}
    assert parse("\n".join(reversed(lines.values()))).values == {"index-url": "https://env.example/simple"}, "whatever the order"
    assert parse(lines["install"] + "\n" + lines["global"]).values == {"index-url": "https://install.example/simple"}


def test_only_what_says_where_packages_come_from_is_passed_on() -> None:
    listing = """\
global.index-url='https://packages.example/simple'
global.require-virtualenv='true'
global.target='/somewhere'
list.index-url='https://other.example/simple'
:env:.disable-pip-version-check='1'
not a setting
"""
    assert parse(listing).values == {"index-url": "https://packages.example/simple"}


def test_nothing_set_is_nothing_passed_on() -> None:
    settings = parse("")
    assert settings.values == {}
    assert settings.local_paths == ()


def test_a_quoted_value_keeps_its_equals_signs_and_quotes() -> None:
    assert parse("""global.proxy="http://a.example:3128/?q=it's" """).values == {"proxy": "http://a.example:3128/?q=it's"}


def test_several_entries_of_one_setting_survive_the_way_through_a_file() -> None:
    settings = parse(r"global.extra-index-url='\nhttps://one.example/simple\nhttps://two.example/simple'")
    read_back = configparser.RawConfigParser()
    read_back.read_string(settings.config_text)
    assert read_back["global"]["extra-index-url"].split() == ["https://one.example/simple", "https://two.example/simple"]


def test_local_paths_are_the_existing_ones_and_an_index_brings_its_files_along(tmp_path: Path) -> None:
    index = tmp_path / "a mirror" / "simple"
    wheels = tmp_path / "wheels"
    for folder in (index, wheels):
        folder.mkdir(parents=True)
    settings = PipSettings(
        {
            "extra-index-url": f"{index.as_uri()} https://packages.example/simple",
            "find-links": f"{wheels} {tmp_path / 'missing'} relative/wheels",
        }
    )
    assert settings.local_paths == (index.parent, wheels), "the space in the address is decoded"


def test_a_build_gets_a_secret_nobody_else_can_read_and_read_only_mounts(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    settings = PipSettings({"find-links": str(wheels), "index-url": "https://user:secret@packages.example/simple"})
    secret = tmp_path / "pip.conf"
    options = settings.build_options(secret)
    assert options == ["--secret", f"id=pipconf,src={secret}", "-v", f"{wheels}:{wheels}:ro"]
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.read_text(encoding="utf-8") == settings.config_text
    assert "user:secret" not in " ".join(options)
