"""Presets against the published parameter counts, builds against their seed, and foreign configurations against their refusals."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from protocols.errors import ConfigError, ExitCode, UserError
from swarm.models import build
from swarm.models.build import build_model, configuration, count_parameters
from swarm.models.config import read_config_file, resolve_config
from swarm.models.imports import import_libraries, paused_garbage_collection
from swarm.models.memory import available_memory_bytes
from swarm.models.presets import PRESETS

GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 300,
    "n_layer": 1,
    "n_embd": 16,
    "n_head": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

TINY = PRESETS["tiny"].huggingface()

PUBLISHED = {
    "560m": 559_214_592,
    "1b1": 1_065_314_304,
    "1b7": 1_722_408_960,
    "3b": 3_002_557_440,
    "7b1": 7_069_016_064,
    "176b": 176_247_271_424,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_released_sizes_have_the_published_number_of_parameters(name: str) -> None:
    assert PRESETS[name].parameters() == PUBLISHED[name]
    assert count_parameters({"preset": name}) == PUBLISHED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_divides_its_width_among_its_heads_and_counts_by_the_closed_form(name: str) -> None:
    preset = PRESETS[name]
    assert preset.hidden % preset.heads == 0
    assert count_parameters({"preset": name}) == preset.parameters()


def test_presets_grow_in_order() -> None:
    sizes = [preset.parameters() for preset in PRESETS.values()]
    assert sizes == sorted(sizes)
    assert 300_000 < sizes[0] < 1_000_000


def test_a_model_depends_on_its_seed_alone_and_leaves_the_random_state() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_model({"preset": "tiny"}, 7).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = build_model({"preset": "tiny"}, 7).state_dict(), build_model({"preset": "tiny"}, 8).state_dict()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["transformer.word_embeddings.weight"], other["transformer.word_embeddings.weight"])


def test_any_causal_language_model_builds_without_dropout() -> None:
    model = build_model({"config": {**GPT2, "resid_pdrop": 0.3, "dtype": "float16"}}, 1)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    tokens_BT = torch.arange(20)[None]
    assert model.training
    assert torch.equal(model(input_ids=tokens_BT).logits, model(input_ids=tokens_BT).logits)
    assert configuration({"config": GPT2})["attn_pdrop"] == 0.0


def test_a_changed_bloom_builds_from_its_config() -> None:
    changed = {**TINY, "n_layer": 1}
    assert count_parameters({"config": changed, "preset": None}) < count_parameters({"preset": "tiny"})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"preset": "tiniy"}, "did you mean tiny"),
        ({"preset": 3}, "no model preset 3"),
        ({}, "either a preset or a Hugging Face config"),
        ({"preset": "tiny", "config": GPT2}, "and nothing else"),
        ({"preset": "tiny", "layers": 3}, "and nothing else"),
        ({"config": {**TINY, "vocab_size": 255}}, "needs at least 256"),
        ({"config": {**TINY, "vocab_size": True}}, "needs at least 256"),
        ({"config": {**TINY, "n_head": 7}}, "makes no model"),
        ({"config": {**TINY, "n_layer": "two"}}, "not valid for bloom"),
        ({"config": "gpt2"}, "table with a model_type"),
        ({"config": {"vocab_size": 300}}, "model_type"),
        ({"config": {"model_type": "no-such-model"}}, "knows no model type"),
        ({"config": {"model_type": "vit"}}, "no causal language model"),
        ({"config": {**GPT2, "auto_map": {"AutoModelForCausalLM": "somebody/thing--code.Model"}}}, "auto_map"),
        ({"config": {**GPT2, "text_config": {"_attn_implementation": "kernels-community/x"}}}, "_attn_implementation"),
        ({"config": {**GPT2, "quantization_config": {"quant_method": "gptq"}}}, "quantization_config"),
    ],
)
def test_a_wrong_model_section_gets_one_sentence(model: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        count_parameters(model)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code is ExitCode.CONFIG


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match="seed"):
        build_model({"preset": "tiny"}, seed)


def test_a_model_larger_than_the_memory_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "available_memory_bytes", lambda: 1_000_000)
    with pytest.raises(UserError, match="choose a smaller preset") as caught:
        build_model({"preset": "tiny"}, 1)
    assert caught.value.exit_code is ExitCode.DEVICE


def test_the_free_memory_is_a_plausible_number() -> None:
    assert 10 * 2**20 < available_memory_bytes() < 2**50


def test_a_config_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GPT2))
    assert resolve_config({"config": read_config_file(path)}) == GPT2


@pytest.mark.parametrize(
    ("content", "words"), [(b"{", "not valid JSON"), (b"[1]", "not a JSON object"), (b" " * (2**20 + 1), "larger than")]
)
def test_a_wrong_config_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_config_file(path)
    assert str(path) in str(caught.value)


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json cannot be read"):
        read_config_file(tmp_path / "nowhere.json")


def test_the_garbage_collector_pauses_and_goes_on() -> None:
    def fail() -> None:
        with paused_garbage_collection():
            assert not gc.isenabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gc.isenabled()
    import_libraries()
    assert gc.isenabled()
