"""Attacks on the protocol by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from peers.attacks.reducers import (
    Collude,
    LyingReducer,
    MuteReducer,
    ShiftingReducer0001,
    ShiftingReducer001,
    ShiftingReducer1,
    TwoFacedReducer,
    UnsignedTwoFacedReducer,
)
from peers.attacks.ring import Attacker, Ring, VectorAttacker
from peers.attacks.talkers import Equivocate, FalseAccuser, Forge, HugeEpoch, Replay, SelectiveSilence, WithholdCoin
from peers.attacks.vectors import VECTOR_ATTACKS
from protocols.errors import ConfigError
from protocols.ids import PeerId

PROTOCOL_ATTACKS: Mapping[str, type[Attacker]] = MappingProxyType(
    {
        attack.name: attack
        for attack in (
            LyingReducer, ShiftingReducer0001, ShiftingReducer001, ShiftingReducer1, MuteReducer, TwoFacedReducer, UnsignedTwoFacedReducer,
            Equivocate, WithholdCoin, FalseAccuser, Collude, SelectiveSilence, Replay, Forge, HugeEpoch,
        )
    }
)  # fmt: skip
"""What members say or do, not what they contribute, in the order of tables."""


def attacker_named(name: str, me: PeerId, ring: Ring) -> Attacker:
    """How one member of a ring behaves under an attack on contributions or on the protocol.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in VECTOR_ATTACKS:
        return VectorAttacker(me, ring)
    if name not in PROTOCOL_ATTACKS:
        raise ConfigError(f"there is no attack {name!r}: choose one of {', '.join([*VECTOR_ATTACKS, *PROTOCOL_ATTACKS])}")
    return PROTOCOL_ATTACKS[name](me, ring)
