"""Train one transformer together with strangers: the public interface.

    swarm.coordinate(spec, config, on_invite=print)      found a run and help it along
    swarm.join(invite, config)                           volunteer: our model, our loop
    with swarm.connect(invite, config) as peer:          your model, your loop:
        optimizer = swarm.CollaborativeOptimizer(model, torch_optimizer, peer=peer.handle, target_batch_samples=...)

Names are loaded when they are first used: importing torch costs seconds, and `swarm-peer --help` must not pay for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peers.local import LocalPeer
    from protocols.errors import UserError
    from protocols.runspec import RunSpec
    from swarm.config import PeerConfig
    from swarm.connection import Connection, connect
    from swarm.coordination import coordinate, join
    from swarm.optim.collaborative import CollaborativeOptimizer
    from swarm.optim.outcome import StepOutcome, StepStatus
    from swarm.optim.settings import GradientSettings, OuterSettings

_HOME = {
    "CollaborativeOptimizer": "swarm.optim.collaborative",
    "Connection": "swarm.connection",
    "GradientSettings": "swarm.optim.settings",
    "LocalPeer": "peers.local",
    "OuterSettings": "swarm.optim.settings",
    "PeerConfig": "swarm.config",
    "RunSpec": "protocols.runspec",
    "StepOutcome": "swarm.optim.outcome",
    "StepStatus": "swarm.optim.outcome",
    "UserError": "protocols.errors",
    "connect": "swarm.connection",
    "coordinate": "swarm.coordination",
    "join": "swarm.coordination",
}

__all__ = [
    "CollaborativeOptimizer",
    "Connection",
    "GradientSettings",
    "LocalPeer",
    "OuterSettings",
    "PeerConfig",
    "RunSpec",
    "StepOutcome",
    "StepStatus",
    "UserError",
    "connect",
    "coordinate",
    "join",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'swarm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
