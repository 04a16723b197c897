"""A run in about thirty lines: a small BLOOM on the text of Python's standard library, the same run as `tiny_bloom.toml`.

    python -m scripts.train_tiny_bloom ./coordinator

prints an invite; whoever runs `swarm-peer join <invite>` trains along.
"""

from __future__ import annotations

import sys
from pathlib import Path

from protocols.runspec import RunSpec
from swarm.config import PeerConfig
from swarm.coordination import coordinate

SPEC = RunSpec.from_settings(
    {
        "run": {"name": "tiny-bloom", "seed": 1},
        "model": {"preset": "tiny"},
        "data": {"source": "stdlib", "sequence_length": 128, "holdout_percent": 5},
        "optimizer": {
            "name": "adamw",
            "learning_rate": 0.007,
            "betas": [0.9, 0.95],
            "weight_decay": 0.1,
            "grad_clip_norm": 1.0,
            "target_batch_samples": 64,
        },
        "schedule": {"kind": "cosine", "warmup_epochs": 10, "total_epochs": 300, "final_fraction": 0.1},
        "averaging": {"block_elems": 32768, "codec": "fp16"},
        "admission": {"mode": "open"},
    }
)

if __name__ == "__main__":
    coordinate(SPEC, PeerConfig(state_dir=Path(sys.argv[1])), train=True, on_invite=print)
