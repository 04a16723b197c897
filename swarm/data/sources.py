"""Where text comes from: a sorted list of documents, each with a name that is the same on every machine."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from protocols.errors import DatasetError

STDLIB_SKIPPED = frozenset(
    {
        # Installed separately by some distributions, so not the same everywhere.
        *("distutils", "ensurepip", "idlelib", "lib2to3", "test", "tkinter", "turtle", "turtledemo"),
        # Generated tables: a tenth of all bytes, and no text.
        *("encodings", "pydoc_data", "__phello__"),
        # Carry paths and choices of the machine that built or configured this Python.
        *("sitecustomize", "usercustomize"),
    }
)
"""Top-level modules of the standard library that are left out."""

_PRUNED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "test", "tests"})


@dataclass(frozen=True, slots=True, order=True)
class Document:
    """One file of a dataset.

    Args:
        name: path below the dataset's root with forward slashes; what members compare.
        path: where it lies on this machine.
    """

    name: str
    path: Path


def stdlib_documents() -> list[Document]:
    """Python sources of the running interpreter's standard library, sorted by name; see `STDLIB_SKIPPED` for what is left out.

    Raises:
        DatasetError: this Python has no sources on disk.
    """
    root = Path(sysconfig.get_path("stdlib"))
    documents = sorted(Document(path.relative_to(root).as_posix(), path) for path in _stdlib_files(root))
    if not documents:
        raise DatasetError(f"No Python sources were found in {root}: use a Python that is installed with its standard library's sources.")
    return documents


def file_documents(patterns: Sequence[str], root: Path) -> list[Document]:
    """Files below `root` that match any of the patterns, sorted by name.

    Args:
        patterns: globs relative to `root`, "**" included. They come from the run, so they may not lead out of `root`: a stranger must not
            be able to make a member train on its owner's private files.
        root: folder that the owner of this machine chose.

    Raises:
        DatasetError: names the pattern that leaves `root` or matches nothing, or the root that is no folder.
    """
    if not patterns:
        raise DatasetError("The run names no data files: add at least one, such as texts/*.txt.")
    if not root.is_dir():
        raise DatasetError(f"The data folder {root} does not exist: create it or choose another.")
    found: dict[str, Path] = {}
    for pattern in patterns:
        parts = PurePosixPath(pattern)
        if parts.is_absolute() or ".." in parts.parts or not parts.parts:
            raise DatasetError(f"The data pattern {pattern!r} leaves the data folder: write it relative to the folder, without '..'.")
        try:
            matches = [path for path in root.glob(pattern) if path.is_file()]
        except (ValueError, NotImplementedError):
            raise DatasetError(f"The data pattern {pattern!r} is not a valid glob: write one such as texts/*.txt.") from None
        if not matches:
            raise DatasetError(f"The data pattern {pattern!r} matches no file in {root}: put the run's files there.")
        found.update((path.relative_to(root).as_posix(), path) for path in matches)
    return sorted(Document(name, path) for name, path in found.items())


def _stdlib_files(root: Path) -> Iterator[Path]:
    for entry in root.iterdir():
        module = entry.name.removesuffix(".py")
        if module not in sys.stdlib_module_names or module in STDLIB_SKIPPED:
            continue
        if entry.is_dir():
            yield from _python_files(entry)
        elif entry.suffix == ".py" and entry.is_file():
            yield entry


def _python_files(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.is_dir():
            if entry.name not in _PRUNED_FOLDERS:
                yield from _python_files(entry)
        elif entry.suffix == ".py":
            yield entry
