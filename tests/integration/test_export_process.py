"""An exported folder in a process that knows nothing of us."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from swarm.checkpoint.export import ExportCard, export_model
from swarm.models.build import build_model
from swarm.models.presets import PRESETS

SMALL = {"config": {**PRESETS["tiny"].huggingface(), "hidden_size": 16, "n_head": 2, "n_layer": 1}}
CARD = ExportCard("a-run", "ab" * 32, 12, 3456, "cd" * 32, "standard library of Python 3.11.7", 2.25)

LOAD = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
import torch
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer("caf\\u00e9 <|endoftext|>", return_tensors="pt").input_ids
with torch.no_grad():
    print(json.dumps([ids[0].tolist(), model(input_ids=ids).logits[0, -1].tolist(), "swarm" in sys.modules]))
"""


def test_a_fresh_process_loads_model_and_tokenizer(tmp_path: Path) -> None:
    model = build_model(SMALL, 3)
    folder = export_model(model, tmp_path / "deep" / "out", CARD)
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, timeout=100, check=True, cwd=tmp_path
    )
    ids, logits_V, knows_us = json.loads(result.stdout)
    assert ids == list("café <|endoftext|>".encode())
    assert not knows_us
    with torch.no_grad():
        expected_V = model(input_ids=torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(torch.tensor(logits_V), expected_V)
