"""Every reader of bytes from others. To add a message with `encode` and strict `decode(data, sender)`, add one line to a list:

message("my-message", MyMessage(...), MyMessage(...)),
"""

from __future__ import annotations

from scripts.fuzzing.target import Target
from scripts.fuzzing.targets.membership import MEMBERSHIP
from scripts.fuzzing.targets.rounds import ROUNDS
from scripts.fuzzing.targets.store import STORE
from scripts.fuzzing.targets.trust import TRUST
from scripts.fuzzing.targets.values import VALUES
from scripts.fuzzing.targets.wires import WIRES

TARGETS: dict[str, Target] = {target.name: target for target in (*VALUES, *ROUNDS, *TRUST, *MEMBERSHIP, *STORE, *WIRES)}

__all__ = ["TARGETS"]
