"""Whether a group vouches for a result: what a member brings to a later round, and what a late member is given, must be certified.

Everybody who holds a round's result names it in its signed check, with the weight in it. Checks of more than half of those who were to
agree are its certificate: only the first round of an epoch can be lied in, and that one is audited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocols.errors import RemoteRefusal
from protocols.ids import Epoch, PeerId
from protocols.messages import require
from protocols.trust.statements import CHECK, Check

_LEAST_SHARE = 4
"""Signers are at least so many-th of the group as we see it, however few their leader counted: no coalition is a group of its own."""


@dataclass(frozen=True, slots=True)
class CertifiedResult:
    """What a certificate must be about.

    Args:
        first_plan_digest, epoch, round_index: the round.
        result_hash: `content.input_hash` of the result.
        weight: samples in it.
    """

    first_plan_digest: bytes
    epoch: Epoch
    round_index: int
    result_hash: bytes
    weight: float


def check_certificate(
    result: CertifiedResult, sealed: Sequence[bytes], opener: Callable[[str, bytes], tuple[PeerId, bytes]], group_size: int, by: PeerId
) -> None:
    """Whether enough members vouch for a result.

    Args:
        result: which.
        sealed: their checks.
        opener: (kind, sealed) -> (signer, payload), raises RemoteProtocolError.
        group_size: members of that group as we see the grid; 0 if we do not.
        by: who shows it.

    Raises:
        RemoteRefusal: too few: by another view of the grid they may be enough.
        RemoteProtocolError: of another result.
    """
    signers, electorate = set(), 0
    for item in sealed:
        signer, payload = opener(CHECK, item)
        check = Check.decode(payload, by)
        named = CertifiedResult(check.first_plan_digest, check.epoch, check.round_index, check.result_hash, check.weight)
        require(named == result, by, "a certificate of another result")
        signers.add(signer)
        electorate = max(electorate, check.electorate)
    if not (2 * len(signers) > electorate and _LEAST_SHARE * len(signers) >= group_size):
        raise RemoteRefusal(by, "uncertified", f"a result that {len(signers)} of {max(electorate, group_size)} members vouch for")
