"""Generate the Python code of the wire messages: `python -m scripts.generate_protos [--check]`.

Sources and results lie together in `protocols/proto/swarm/v1`. In the descriptor pool, which all protobuf users of a process share,
our files are called `swarm/v1/*.proto` and our package `swarm.v1`, so they collide with nobody's; in Python the modules are
`protocols.proto.swarm.v1.*_pb2`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "protocols" / "proto"
_IMPORT = re.compile(r"^(from|import) swarm\.v1\b", re.MULTILINE)


def generate(into: Path) -> dict[str, str]:
    """Run the protobuf compiler over every file of ours.

    Args:
        into: an empty folder to work in.

    Returns:
        Generated text by path relative to `protocols/proto`.

    Raises:
        subprocess.CalledProcessError: a file has an error; the compiler has printed it.
    """
    sources = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.proto"))
    compiler = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT}"]
    subprocess.run([*compiler, f"--python_out={into}", f"--pyi_out={into}", *sources], check=True)
    results = sorted(path for path in into.rglob("*_pb2.py*") if path.suffix in {".py", ".pyi"})
    # The compiler takes the folder of a .proto file for a Python package, but `swarm` is another package of ours.
    return {path.relative_to(into).as_posix(): _IMPORT.sub(r"\1 protocols.proto.swarm.v1", path.read_text()) for path in results}


def stale(generated: dict[str, str]) -> list[str]:
    """Which files on disk differ from what was generated, are missing, or have no source any more."""
    on_disk = {path.relative_to(ROOT).as_posix(): path.read_text() for pattern in ("*_pb2.py", "*_pb2.pyi") for path in ROOT.rglob(pattern)}
    return sorted(name for name in on_disk.keys() | generated.keys() if on_disk.get(name) != generated.get(name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the generated files, or with `--check` only say which would change (exit code 1)."""
    parser = argparse.ArgumentParser(description="Generate Python code from protocols/proto/**/*.proto.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a file is not what would be generated")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        generated = generate(Path(folder))
    changed = stale(generated)
    if options.check:
        for name in changed:
            print(f"protocols/proto/{name} is not what its source generates: run python -m scripts.generate_protos")
        return 1 if changed else 0
    for name in changed:
        if name in generated:
            (ROOT / name).write_text(generated[name])
        else:
            (ROOT / name).unlink()
        print(f"protocols/proto/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
