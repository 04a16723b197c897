"""How the host's package index reaches `pip` inside an image build, without being kept in the image.

The host's settings are read from pip itself, written to a file that becomes a build secret, and every local path they name is mounted
read-only at the same place for the time of the build.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from scripts.containers.commands import Commands

PASSED_ON = frozenset(
    {"index-url", "extra-index-url", "find-links", "cert", "trusted-host", "no-index", "proxy", "default-timeout", "timeout"}
)
"""Settings that say where packages come from; everything else is the host's own affair."""


@dataclass(frozen=True, slots=True)
class PipSettings:
    """Where packages come from on this machine.

    Args:
        values: setting name to its value; several entries are separated by spaces.
    """

    values: dict[str, str]

    @property
    def config_text(self) -> str:
        """The settings as a pip configuration file."""
        lines = [f"{name} = " + "\n    ".join(value.split()) for name, value in sorted(self.values.items())]
        return "\n".join(["[global]", *lines, ""])

    @property
    def local_paths(self) -> tuple[Path, ...]:
        """Existing files and directories the settings name.

        A local index keeps its files beside its `simple` directory and links to them relatively, hence the parent directory.
        """
        found: set[Path] = set()
        for name, value in self.values.items():
            for word in value.split():
                path = Path(unquote(urlsplit(word).path)) if word.startswith("file://") else Path(word)
                if path.is_absolute() and path.exists():
                    found.add(path.parent if name.endswith("index-url") else path)
        return tuple(sorted(found))

    def build_options(self, secret_file: Path) -> list[str]:
        """Options of `podman build` that make the settings work in it; writes `secret_file` (mode 0600)."""
        secret_file.touch(mode=0o600)
        secret_file.write_text(self.config_text, encoding="utf-8")
        mounts = [f"{path}:{path}:ro" for path in self.local_paths]
        return ["--secret", f"id=pipconf,src={secret_file}", *(word for mount in mounts for word in ("-v", mount))]


def parse(listing: str) -> PipSettings:
    """Read the output of `pip config list`: lines of `section.name='value'`, sections `global`, `install` and `:env:` in rising rank."""
    ranks = {"global": 0, "install": 1, ":env:": 2}
    chosen: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        key, separator, quoted = line.partition("=")
        section, _, name = key.strip().partition(".")
        name = name.strip(".")
        if not separator or section not in ranks or name not in PASSED_ON:
            continue
        rank = ranks[section]
        if name not in chosen or rank >= chosen[name][0]:
            chosen[name] = (rank, str(ast.literal_eval(quoted)))
    return PipSettings({name: value for name, (_, value) in chosen.items()})


def of_this_machine(commands: Commands) -> PipSettings:
    """The settings that `pip install` would use here."""
    return parse(commands.run(sys.executable, "-m", "pip", "config", "list"))
