from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from peers.identity import Identity, state_dir_lock
from peers.private_files import read_bounded, write_atomic
from protocols.errors import ExitCode, StateDirError
from protocols.signing import verify_signature


def test_the_same_directory_is_the_same_peer(tmp_path: Path) -> None:
    first = Identity.load_or_create(tmp_path / "a" / "b")
    again = Identity.load_or_create(tmp_path / "a" / "b")
    assert first.peer == again.peer
    assert Identity.load_or_create(tmp_path / "c").peer != first.peer
    assert verify_signature(first.public_key, again.sign(b"m"), b"m")
    assert first.seed.hex() not in repr(first)


def test_the_key_is_its_owners_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        Identity.load_or_create(tmp_path / "state")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "state" / "identity.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert os.listdir(tmp_path / "state") == ["identity.key"], "no temporary file is left"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_key_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    Identity.load_or_create(tmp_path)
    (tmp_path / "identity.key").chmod(mode)
    with pytest.raises(StateDirError, match=rf"mode 0{mode:o}\): run chmod 600") as caught:
        Identity.load_or_create(tmp_path)
    assert caught.value.exit_code is ExitCode.STATE_DIR


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_damaged_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    write_atomic(tmp_path / "identity.key", content)
    with pytest.raises(StateDirError, match="damaged"):
        Identity.load_or_create(tmp_path)
    assert (tmp_path / "identity.key").read_bytes() == content


def test_a_directory_that_cannot_be_made_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateDirError, match="choose another --state-dir"):
            Identity.load_or_create(path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, whom no mode keeps out
    with pytest.raises(StateDirError, match="cannot be written"):
        Identity.load_or_create(tmp_path / "readonly")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateDirError, match="No space left on device"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept"]


def test_files_are_read_within_bounds(tmp_path: Path) -> None:
    assert read_bounded(tmp_path / "none", 10, private=True) is None
    (tmp_path / "long").write_bytes(bytes(11))
    with pytest.raises(StateDirError, match="too long"):
        read_bounded(tmp_path / "long", 10, private=False)
    with pytest.raises(StateDirError, match="cannot be read"):
        read_bounded(tmp_path, 10, private=False)


def test_the_lock_ends_with_its_context(tmp_path: Path) -> None:
    for _ in range(2):
        with state_dir_lock(tmp_path), pytest.raises(StateDirError, match="is used by another peer"), state_dir_lock(tmp_path):
            pass
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    (tmp_path / "other").mkdir()
    with state_dir_lock(tmp_path), state_dir_lock(tmp_path / "other"):
        pass


def test_a_lock_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(StateDirError, match="cannot be opened"), state_dir_lock(tmp_path):
        pass
