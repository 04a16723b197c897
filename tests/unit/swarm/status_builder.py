"""A complete status, of which tests change what they are about."""

from __future__ import annotations

import os
from typing import Any

from swarm.monitoring.status import EpochHash, MemberStatus, PeerStatus

PEER = "12D3KooWEyopopk7T6qT3gcSWPmmuZVEFX8HbHJ6MhHLpSKYGFEk"


def a_member(**changes: Any) -> MemberStatus:
    """One member that trains."""
    fields: dict[str, Any] = {
        "peer": PEER,
        "role": "trainer",
        "state": "training",
        "epoch": 7,
        "samples": 12,
        "samples_per_s": 3.5,
        "sent_bytes": 2_500_000,
        "received_bytes": 999,
        "loss": 3.25,
        "state_hash": "ab" * 32,
    }
    return MemberStatus(**{**fields, **changes})


def a_status(**changes: Any) -> PeerStatus:
    """A running peer at epoch 7 that sees itself."""
    fields: dict[str, Any] = {
        "run_name": "tiny-bloom",
        "run_id": "0123456789abcdef" * 4,
        "peer": PEER,
        "pid": os.getpid(),
        "role": "trainer",
        "state": "training",
        "epoch": 7,
        "samples": 12,
        "samples_total": 400,
        "samples_per_s": 3.5,
        "sent_bytes": 2_500_000,
        "received_bytes": 999,
        "loss": 3.25,
        "eval_loss": 3.5,
        "state_hash": "ab" * 32,
        "target_samples": 128,
        "swarm_samples": 64,
        "addresses": (f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}",),
        "members": (a_member(),),
        "updated_at": 1_800_000_000.0,
        "hashes": (EpochHash(6, "cd" * 32), EpochHash(7, "ab" * 32)),
    }
    return PeerStatus(**{**fields, **changes})
