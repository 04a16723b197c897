"""What is installed is what we mean: the wheel's contents, the declared dependencies, and two libraries that must not meet."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("swarm", "peers", "protocols")
PROBE = "peers.probe.libp2p_probe"


def _modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _project() -> dict[str, list[str]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def _pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints" / "cpu.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_wheel_holds_exactly_the_three_packages(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests", "scripts", "docker"):
        (tree / name).mkdir()
        (tree / name / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(tree)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    expected = {path.relative_to(ROOT).as_posix() for _, path in _modules()} | {f"{package}/py.typed" for package in PACKAGES}
    assert expected - set(names) == set()


def test_imports_are_declared() -> None:
    declared = {canonicalize_name(Requirement(line).name) for group in ("", "libp2p", "8bit") for line in _project()[group]}
    distributions = importlib.metadata.packages_distributions()
    undeclared = set()
    for module, path in _modules():
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            for name in imported:
                top = name.split(".")[0]
                if top in PACKAGES or top in sys.stdlib_module_names or module == PROBE:
                    continue
                owners = {canonicalize_name(owner) for owner in distributions.get(top, [top])}
                if not owners & declared:
                    undeclared.add(f"{module} imports {top}")
    assert undeclared == set()


def test_pins_lie_in_the_declared_ranges() -> None:
    pins = _pins()
    requirements = [Requirement(line) for lines in _project().values() for line in lines]
    assert [str(r) for r in requirements if not r.specifier.contains(pins[canonicalize_name(r.name)])] == []


def test_libp2p_list_is_what_libp2p_requires() -> None:
    listed = {
        canonicalize_name(line) for line in (ROOT / "constraints" / "libp2p.txt").read_text().splitlines() if line[:1] not in {"", "#"}
    }
    required = [Requirement(line) for line in importlib.metadata.requires("libp2p") or []]
    wanted = {canonicalize_name(r.name) for r in required if r.marker is None or r.marker.evaluate({"extra": ""})}
    assert listed == wanted - {"fastecdsa"}
    assert listed <= _pins().keys()


def test_no_registry_is_named() -> None:
    files = [ROOT / "Makefile", ROOT / "pyproject.toml", *sorted((ROOT / "constraints").iterdir())]
    assert [file.name for file in files if re.search(r"https?://", file.read_text())] == []


def test_every_module_imports_and_none_brings_libp2p() -> None:
    names = [module for module, _ in _modules() if module != PROBE and not module.endswith("__main__")]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print([name for name in ('libp2p', 'trio') if name in sys.modules])"
    )
    assert _python(code, *names) == "[]"


def test_libp2p_works_with_the_fastecdsa_we_pin() -> None:
    code = (
        "from libp2p.crypto.key_exchange import create_ephemeral_key_pair as pair\n"
        "ours, mine = pair('P-256')\n"
        "theirs, their = pair('P-256')\n"
        "print(mine(theirs.to_bytes()) == their(ours.to_bytes()) != mine(ours.to_bytes()))"
    )
    assert _python(code) == "True"
