"""Datasets: the same everywhere, split by rule, sampled as anyone can recompute, refused in one sentence."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import DatasetError, ExitCode
from protocols.runspec import DataSection
from swarm.data import dataset as dataset_module
from swarm.data.assignment import window_offset, window_offsets
from swarm.data.dataset import Dataset, check_fingerprint, load_dataset
from swarm.data.sources import STDLIB_SKIPPED, file_documents, stdlib_documents
from swarm.data.windows import ByteSequence

KEY = bytes(range(32))


def _write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def _texts(root: Path) -> Path:
    return _write(root, {"b.txt": b"bravo " * 50, "a.txt": b"alpha " * 40, "more/deep/c.txt": b"charlie " * 60, "more/d.md": b"not taken"})


def _load(root: Path, *files: str, holdout_percent: int = 5) -> Dataset:
    files = files or ("*.txt", "more/**/*.txt")
    return load_dataset(DataSection(source="files", files=files, sequence_length=16, holdout_percent=holdout_percent), root)


def _all(part: ByteSequence) -> bytes:
    return bytes(part.windows([0], len(part))[0].tolist())


def test_the_standard_library_is_text_of_this_python() -> None:
    names = [document.name for document in stdlib_documents()]
    assert names == sorted(set(names))
    assert {"argparse.py", "asyncio/tasks.py"} <= set(names)
    assert not [name for name in names if name.split("/")[0].removesuffix(".py") in STDLIB_SKIPPED or "site-packages" in name]
    data = load_dataset(DataSection(sequence_length=128), Path())
    assert platform.python_version() in data.description
    assert len(data.training) > 2**22
    assert len(data.held_out) > 2**17
    assert data.fingerprint == load_dataset(DataSection(sequence_length=64), Path()).fingerprint


def test_files_are_found_by_pattern_in_the_order_of_their_names(tmp_path: Path) -> None:
    documents = file_documents(["*.txt", "more/**/*.txt", "a.*"], _texts(tmp_path))
    assert [document.name for document in documents] == ["a.txt", "b.txt", "more/deep/c.txt"]


@pytest.mark.parametrize("pattern", ["../*.txt", "/etc/passwd", "more/../../x", ""])
def test_a_run_cannot_reach_outside_the_data_folder(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(DatasetError, match="leaves the data folder"):
        file_documents([pattern], tmp_path)


def test_the_fingerprint_follows_names_and_contents_and_not_the_place(tmp_path: Path) -> None:
    here, there = _texts(tmp_path / "here"), _texts(tmp_path / "there")
    assert _load(here).fingerprint == _load(there).fingerprint
    (there / "a.txt").write_bytes(b"alpha " * 39 + b"alphA ")
    changed = _load(there).fingerprint
    (there / "a.txt").write_bytes(b"alpha " * 40)
    (there / "b.txt").rename(there / "bb.txt")
    renamed = _load(there).fingerprint
    assert len({_load(here).fingerprint, changed, renamed}) == 3


def test_the_fingerprint_is_the_documented_listing(tmp_path: Path) -> None:
    _write(tmp_path, {"a.txt": b"alpha " * 40, "b.txt": b"bravo " * 40})
    listing = b""
    for name, content in ((b"a.txt", b"alpha " * 40), (b"b.txt", b"bravo " * 40)):
        listing += len(name).to_bytes(4, "big") + name + len(content).to_bytes(8, "big") + blake3(content).digest()
    expected = blake3(listing, derive_key_context="swarm.v1 dataset fingerprint").digest()
    assert _load(tmp_path, "*.txt").fingerprint == expected


def test_training_and_held_out_text_share_no_file_and_lose_none(tmp_path: Path) -> None:
    contents = {f"{number:02}.txt": bytes([number]) * (20 + number) for number in range(40)}
    data = _load(_write(tmp_path, {**contents, "more/x.txt": bytes([200]) * 50}), holdout_percent=13)
    training, held_out = _all(data.training), _all(data.held_out)
    assert not set(training) & set(held_out)
    assert sorted(training + held_out) == sorted(b"".join([*contents.values(), bytes([200]) * 50]))
    assert len(set(held_out)) == 6  # 13 % of 41, rounded up


def test_one_file_holds_out_its_tail(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4
    data = _load(_write(tmp_path, {"x": content}), "x", holdout_percent=25)
    assert (_all(data.training), _all(data.held_out)) == (content[:768], content[768:])


def test_mapped_files_give_the_same_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = _load(_texts(tmp_path))
    monkeypatch.setattr(dataset_module, "MAPPED_FROM_BYTES", 1)
    mapped = _load(tmp_path)
    assert mapped.fingerprint == read.fingerprint
    assert torch.equal(mapped.sample([0, 7]), read.sample([0, 7]))


def test_a_sample_is_the_text_at_its_offsets(tmp_path: Path) -> None:
    data = _load(_texts(tmp_path))
    training = _all(data.training)
    tokens_BT = data.sample([0, 5, data.positions - 1])
    assert tokens_BT.dtype == torch.int64
    assert [bytes(row.tolist()) for row in tokens_BT] == [training[at : at + 17] for at in (0, 5, len(training) - 17)]
    with pytest.raises(IndexError):
        data.sample([data.positions])
    with pytest.raises(IndexError):
        data.sample([-1])


def test_held_out_windows_are_fixed_and_distinct(tmp_path: Path) -> None:
    data = _load(_texts(tmp_path))
    assert torch.equal(data.held_out_sample(4), data.held_out_sample(4))
    assert data.held_out_sample(4).shape == (4, 17)
    assert len(data.held_out_sample(10**9)) == len(data.held_out) - 16


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=8), st.data())
def test_windows_equal_slices_of_the_joined_bytes(parts: list[bytes], draw: st.DataObject) -> None:
    joined = b"".join(parts)
    sequence = ByteSequence([np.frombuffer(part, dtype=np.uint8) for part in parts])
    assert len(sequence) == len(joined)
    length = draw.draw(st.integers(0, len(joined)))
    offset = draw.draw(st.integers(0, len(joined) - length))
    assert bytes(sequence.windows([offset], length)[0].tolist()) == joined[offset : offset + length]


def test_an_assignment_is_what_its_documentation_says() -> None:
    message = (5).to_bytes(8, "big") + (6).to_bytes(8, "big") + KEY + (7).to_bytes(8, "big")
    digest = blake3(message, derive_key_context="swarm.v1 sample assignment").digest(length=16)
    assert window_offset(5, 6, KEY, 7, 1000) == int.from_bytes(digest, "big") % 1000
    assert window_offsets(5, 6, KEY, range(7, 9), 1000) == [window_offset(5, 6, KEY, 7, 1000), window_offset(5, 6, KEY, 8, 1000)]


def test_assignments_are_uniform_and_differ_in_every_argument() -> None:
    offsets = window_offsets(1, 2, KEY, range(8000), 8)
    counts = [offsets.count(position) for position in range(8)]
    assert all(850 < count < 1150 for count in counts)  # 1000 expected, standard deviation 30
    wide = 2**60
    variants = {(1, 2, KEY, 3), (2, 2, KEY, 3), (1, 3, KEY, 3), (1, 2, KEY[::-1], 3), (1, 2, KEY, 4)}
    assert len({window_offset(*variant, wide) for variant in variants}) == len(variants)


@pytest.mark.parametrize("wrong", [(-1, 0, KEY, 0, 9), (0, 2**64, KEY, 0, 9), (0, 0, KEY[:31], 0, 9), (0, 0, KEY, 0, 0)])
def test_an_impossible_assignment_is_refused(wrong: tuple[int, int, bytes, int, int]) -> None:
    with pytest.raises(ValueError, match=r"64|32|window"):
        window_offset(*wrong)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'\*\.txt' matches no file in") as caught:
        _load(tmp_path)
    assert caught.value.exit_code is ExitCode.DATASET
    with pytest.raises(DatasetError, match="does not exist"):
        _load(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="names no data files"):
        file_documents([], tmp_path)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _texts(tmp_path)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # a superuser could read it whatever its mode
    with pytest.raises(DatasetError, match=r"a\.txt cannot be read \(Permission denied\)"):
        _load(tmp_path)


def test_a_short_file_is_named(tmp_path: Path) -> None:
    _write(tmp_path, {"short.txt": b"x" * 100})
    with pytest.raises(DatasetError, match=r"short\.txt is too short: its smaller part has 5 bytes and one window needs 17"):
        _load(tmp_path, "*.txt")
    _write(tmp_path, {"short.txt": b""})
    with pytest.raises(DatasetError, match=r"short\.txt is too short"):
        _load(tmp_path, "*.txt")


def test_equal_fingerprints_pass() -> None:
    check_fingerprint(KEY, KEY, "here", "there")


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ("standard library of Python 3.11.2", "standard library of Python 3.11.7", "Python 3.11.2.*run this peer with Python 3.11.7"),
        ("standard library of Python 3.11.7", "standard library of Python 3.11.7", "same build of Python"),
        ("standard library of Python 3.11.7", None, "the version of Python that the run's founder used"),
        ("3 files", "4 files", "fetch the files"),
        ("3 files", None, "fetch the files"),
    ],
)
def test_other_data_than_the_runs_is_refused_with_advice(ours: str, theirs: str | None, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        check_fingerprint(KEY, KEY[::-1], ours, theirs)
