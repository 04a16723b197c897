from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peers.identity import state_dir_lock
from protocols.errors import ExitCode, StateDirError


def test_a_state_directory_is_used_by_one_process(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom peers.identity import state_dir_lock\n"
        "with state_dir_lock(Path(sys.argv[1])):\n print('locked', flush=True)\n sys.stdin.read()\n"
    )
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(StateDirError, match=rf"another peer \(process {holder.pid}\)") as caught, state_dir_lock(tmp_path):
            pass
        assert caught.value.exit_code is ExitCode.IDENTITY_IN_USE
        holder.kill()
    with state_dir_lock(tmp_path):  # a killed process holds nothing
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
