"""Something small and real to learn: a BLOOM of about a hundred thousand parameters on the sources of Python's standard library."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from scripts.learning.swarm import Learning
from swarm.data.dataset import Dataset, build_dataset, stdlib_description
from swarm.data.sources import stdlib_documents
from swarm.models.vocabulary import BYTE_VOCABULARY
from swarm.optim import OuterSettings

SEQUENCE_LENGTH = 32
HOLDOUT_PERCENT = 5
MODEL: dict[str, object] = {"config": {"model_type": "bloom", "vocab_size": BYTE_VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4}}
LEARNING_RATE = 4e-3
STEP_S = 2.0
"""Virtual seconds of an inner step: volunteers' machines, with a model that fills them. An epoch is half a minute then."""

OUTER = OuterSettings(inner_batch_samples=4, grad_clip_norm=1.0, overlap=True)


@lru_cache(maxsize=1)
def _text() -> Dataset:
    return build_dataset(stdlib_documents(), stdlib_description(), SEQUENCE_LENGTH, HOLDOUT_PERCENT)


def _adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)


def small_task(*, target_samples: int, until_samples: int, codec: str = "fp32", rule: OuterSettings = OUTER) -> Learning:
    """The task, by the outer rule.

    Args:
        target_samples: that close an epoch.
        until_samples: accepted samples at which the run ends.
        codec: how blocks travel.
        rule: the outer rule's settings.

    Raises:
        DatasetError: this Python has no sources.
    """
    learning = Learning(_text(), MODEL, rule, _adamw, codec, target_samples, until_samples)
    return replace(learning, step_s=STEP_S)
