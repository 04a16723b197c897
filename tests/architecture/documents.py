"""Reading our own documents: the paths, the make targets and the commands they name.

A fenced block is run by the tests if the line above it is `<!-- tested -->`:

    console   every line that starts with `$ ` is a shell command, run in order in one empty folder with .venv/bin on the PATH
    python    a program, run in an empty folder
    toml      must parse
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "GLOSSARY.md", "DECISIONS.md", "CHANGELOG.md", "docs/exit-codes.md")

_BLOCK = re.compile(r"^<!-- tested -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
_MAKE = re.compile(r"\bmake ([a-z][a-z-]*)\b")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block that wants to be tested."""

    document: str
    language: str
    text: str


def marked_blocks() -> list[Block]:
    """All marked blocks of all documents, in order."""
    return [Block(name, *found) for name in DOCUMENTS for found in _BLOCK.findall((ROOT / name).read_text())]


def paths(name: str) -> Iterator[str]:
    """Paths of this repository that a document names, in `code` or as a link.

    A word is taken for a path if it starts with a top-level folder of ours, or is a file name with a suffix that occurs at the top.
    `{a,b}` stands for both; words with placeholders are left alone.
    """
    text = (ROOT / name).read_text()
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in {".git", ".venv"}}
    for word in _CODE.findall(text):
        candidate = word.split(":")[0].rstrip("/")
        inside = candidate.split("/")[0] in folders and "/" in word
        document = re.fullmatch(r"[A-Z]+\.md|pyproject\.toml|Makefile|\.pre-commit-config\.yaml", candidate) is not None
        if (inside or document) and not re.search(r"[*<>$\s]", candidate):
            yield from _braces(candidate)
    for link in _LINK.findall(text):
        if not re.match(r"[a-z]+:", link):
            yield ((ROOT / name).parent / link).resolve().relative_to(ROOT).as_posix()


def make_targets(name: str) -> set[str]:
    """Targets that a document tells people to make: in code or in indented and fenced lines that start with `make`."""
    text = (ROOT / name).read_text()
    in_code = " ".join(_CODE.findall(text))
    in_lines = " ".join(re.findall(r"^(?: {4}|\$ ?)?(make [a-z-]+)", text, re.MULTILINE))
    return set(_MAKE.findall(in_code)) | set(_MAKE.findall(in_lines))


def _braces(path: str) -> Iterator[str]:
    found = re.search(r"\{([^}]*)\}", path)
    if found is None:
        yield path
        return
    for choice in found.group(1).split(","):
        yield from _braces(path[: found.start()] + choice.strip() + path[found.end() :])
