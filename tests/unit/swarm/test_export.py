"""Exported folders: loaded by transformers, atomic, and never over somebody's files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from protocols.errors import ConfigError, StateDirError
from swarm.checkpoint import export
from swarm.checkpoint.export import MARKER, ExportCard, export_model, load_exported
from swarm.models.build import build_model
from swarm.models.presets import PRESETS

SMALL = {"config": {**PRESETS["tiny"].huggingface(), "hidden_size": 16, "n_head": 2, "n_layer": 1}}
CARD = ExportCard("a | run\nname", "ab" * 32, 12, 3456, "cd" * 32, "standard library of Python 3.11.7", 2.25)


@pytest.fixture
def model() -> nn.Module:
    return build_model(SMALL, 3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(export_model(build_model(SMALL, 3), tmp_path_factory.mktemp("export") / "out", CARD)))


@settings(max_examples=40, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_becomes_its_bytes_and_comes_back(tokenizer: object, text: str) -> None:
    ids = tokenizer(text)["input_ids"]  # type: ignore[operator]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text  # type: ignore[attr-defined]


def test_every_byte_has_its_own_token(tokenizer: object) -> None:
    inner = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    assert len({inner.id_to_token(byte) for byte in range(256)}) == 256
    assert len(tokenizer) == 258  # type: ignore[arg-type]


def test_the_folder_says_what_it_is(model: nn.Module, tmp_path: Path) -> None:
    folder = export_model(model, tmp_path / "out", CARD)
    marker, readme = json.loads((folder / MARKER).read_text()), (folder / "README.md").read_text()
    assert marker["state_hash"] == CARD.state_hash
    assert marker["epoch"] == 12
    assert "# a / run name\n" in readme
    assert CARD.state_hash in readme
    assert "2.250 nats per byte" in readme
    assert (folder / "model.safetensors").is_file()


def test_an_earlier_export_is_replaced_and_nothing_else_stays(model: nn.Module, tmp_path: Path) -> None:
    folder = export_model(model, tmp_path / "out", CARD)
    (folder / "stray").touch()
    export_model(build_model(SMALL, 4), folder, replace(CARD, epoch=13))
    assert json.loads((folder / MARKER).read_text())["epoch"] == 13
    assert not (folder / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert torch.equal(next(load_exported(folder).parameters()), next(build_model(SMALL, 4).parameters()))


def test_weights_come_back_bit_for_bit(model: nn.Module, tmp_path: Path) -> None:
    loaded = load_exported(export_model(model, tmp_path / "out", CARD))
    assert not loaded.training
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_an_empty_folder_is_filled(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert (export_model(model, tmp_path / "out", CARD) / "config.json").is_file()


def test_somebodys_files_are_left_alone(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(ConfigError, match="is no earlier export"):
        export_model(model, tmp_path, CARD)
    with pytest.raises(ConfigError, match="is a file"):
        export_model(model, tmp_path / "letter", CARD)
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]
    assert (tmp_path / "letter").read_text() == "dear"


def test_a_failure_half_way_leaves_the_old_export(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export_model(model, tmp_path / "out", CARD)

    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_write_tokenizer", fail)
    with pytest.raises(StateDirError, match="No space left on device"):
        export_model(model, folder, replace(CARD, epoch=13))
    assert json.loads((folder / MARKER).read_text())["epoch"] == 12
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_without_a_model_is_refused(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        load_exported(tmp_path)
    folder = export_model(model, tmp_path / "out", CARD)
    (folder / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_exported(folder)
