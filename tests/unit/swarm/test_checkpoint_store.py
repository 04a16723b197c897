"""Checkpoints: whole or not there, verified on load, and nothing lost when the disk is full."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
import torch

from peers.state_snapshot import StateSnapshot
from protocols.errors import ExitCode, StateDirError
from swarm.checkpoint.store import CheckpointStore, load_checkpoint


def state(epoch: int, value: float = 1.0) -> StateSnapshot:
    tensors = [("param/w", torch.full((300,), value + epoch)), ("optim/w/step", torch.tensor(float(epoch)))]
    return StateSnapshot.of(tensors, epoch=epoch, accepted_samples=epoch * 8, meta={"format": 1}, piece_bytes=256)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def damage(path: Path, offset: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path / "checkpoints").save(state(12))
    assert path == tmp_path / "checkpoints" / "epoch-000012"
    loaded = load_checkpoint(path)
    assert loaded.manifest == state(12).manifest
    assert bytes(loaded.data) == bytes(state(12).data)


def test_the_newest_is_found_by_number_and_only_so_many_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for epoch in (1, 2, 999_999, 1_000_000):
        store.save(state(epoch))
    assert names(tmp_path) == ["epoch-1000000", "epoch-999999"]
    newest = store.newest()
    assert newest is not None
    assert newest.epoch == 1_000_000


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "nothing").newest() is None
    assert CheckpointStore(tmp_path).newest() is None


@pytest.mark.parametrize("file", ["manifest.bin", "state.bin"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    tmp_path: Path, file: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(state(1))
    victim = store.save(state(2)) / file
    if harm == "flip":
        damage(victim)
    elif harm == "cut":
        victim.write_bytes(victim.read_bytes()[:-1])
    else:
        victim.unlink()
    newest = store.newest()
    assert newest is not None
    assert newest.epoch == 1
    assert [r.levelno for r in caplog.records if "epoch-000002" in r.getMessage()] == [logging.WARNING]
    with pytest.raises(StateDirError, match="epoch-000002"):
        load_checkpoint(tmp_path / "epoch-000002")


def test_every_flipped_byte_of_the_state_is_noticed(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save(state(1))
    for offset in range(0, (path / "state.bin").stat().st_size, 97):
        damage(path / "state.bin", offset)
        with pytest.raises(StateDirError, match="does not match its hash"):
            load_checkpoint(path)
        damage(path / "state.bin", offset)
    assert load_checkpoint(path).epoch == 1


def test_a_full_disk_is_one_clear_sentence_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(state(1))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StateDirError, match=r"no space left .* free at least .* MiB") as caught:
            store.save(state(2))
    assert caught.value.exit_code is ExitCode.STATE_DIR
    assert names(tmp_path) == ["epoch-000001"]
    newest = store.newest()
    assert newest is not None
    assert newest.epoch == 1
    store.save(state(2))
    assert names(tmp_path) == ["epoch-000002"]


def test_a_process_killed_while_saving_leaves_no_checkpoint_under_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    store.save(state(1))

    class Killed(BaseException):
        """Nothing catches it, as nothing catches SIGKILL."""

    def killed(self: Path, target: Path) -> Path:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(Killed):
            store.save(state(2))
    assert names(tmp_path) == ["epoch-000001", "unfinished-epoch-000002"]
    newest = store.newest()
    assert newest is not None
    assert newest.epoch == 1
    store.save(state(3))
    assert names(tmp_path) == ["epoch-000001", "epoch-000003"]


def test_the_same_epoch_with_another_state_is_replaced_and_with_the_same_left_alone(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(state(1, value=1.0))
    inode = (path / "state.bin").stat().st_ino
    store.save(state(1, value=1.0))
    assert (path / "state.bin").stat().st_ino == inode
    store.save(state(1, value=2.0))
    assert load_checkpoint(path).state_hash == state(1, value=2.0).state_hash
    assert names(tmp_path) == ["epoch-000001"]


def test_a_replacement_that_fails_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(state(1, value=1.0))
    rename = Path.rename

    def second_fails(self: Path, target: Path) -> Path:
        if self.name == "unfinished-epoch-000001":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", second_fails)
        with pytest.raises(StateDirError):
            store.save(state(1, value=2.0))
    assert load_checkpoint(path).state_hash == state(1, value=1.0).state_hash


def test_a_damaged_checkpoint_of_the_same_epoch_is_written_anew(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(state(1))
    damage(path / "state.bin")
    store.save(state(1))
    assert load_checkpoint(path).state_hash == state(1).state_hash


def test_a_directory_that_cannot_be_used_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateDirError, match="cannot write a checkpoint"):
        CheckpointStore(tmp_path / "file" / "below").save(state(1))
    with pytest.raises(StateDirError, match="cannot read the checkpoints"):
        CheckpointStore(tmp_path / "file").newest()
    with pytest.raises(ValueError, match="at least one"):
        CheckpointStore(tmp_path, keep=0)


@pytest.mark.parametrize("keep", [1, 3])
def test_what_was_just_saved_stays_although_later_epochs_lie_there_damaged_or_whole(tmp_path: Path, keep: int) -> None:
    store = CheckpointStore(tmp_path, keep)
    for epoch in (117, 120, 121):
        path = CheckpointStore(tmp_path, 3).save(state(epoch))
        if epoch < 121:
            os.truncate(path / "state.bin", 100)
    for epoch in (3, 6):
        assert load_checkpoint(store.save(state(epoch))).epoch == epoch
    assert "epoch-000006" in names(tmp_path)
    assert ("epoch-000121" in names(tmp_path)) == (keep > 1)
    assert {"epoch-000117", "epoch-000120"} <= set(names(tmp_path)), "damaged ones are the user's to look at, and take nobody's place"
