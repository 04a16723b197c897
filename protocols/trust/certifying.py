"""Whether a group vouches for a result: what a member brings to a later round, and what a late member is given, must be certified.

Everybody who holds a round's result names it in its signed check, with the weight in it. Checks of more than half of those who were to
agree are its certificate: only the first round of an epoch can be lied in, and that one is audited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocols.errors import RemoteProtocolError, RemoteRefusal
from protocols.frames import MAX_MEMBERS
from protocols.ids import Epoch, PeerId
from protocols.trust.statements import CHECK, Check


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
    result: CertifiedResult,
    sealed: Sequence[bytes],
    opener: Callable[[str, bytes], tuple[PeerId, bytes]],
    group: frozenset[PeerId],
    by: PeerId,
) -> None:
    """Whether enough members vouch for a result: more than half of those who were to agree, as they say themselves, and half of the group
    as we see it, however few its leader counted. Anybody can say that it is a group of its own.

    What others have signed is not the fault of whoever shows it: it counts or it does not.

    Args:
        result: which.
        sealed: their checks.
        opener: (kind, sealed) -> (signer, payload), raises RemoteProtocolError.
        group: members of that group as we see the grid.
        by: who shows it.

    Raises:
        RemoteRefusal: too few: by another view of the grid they may be enough.
    """
    signers: dict[int, set[PeerId]] = {}
    for item in sealed[:MAX_MEMBERS]:
        try:
            signer, payload = opener(CHECK, item)
            check = Check.decode(payload, signer)
        except RemoteProtocolError:
            continue
        named = CertifiedResult(check.first_plan_digest, check.epoch, check.round_index, check.result_hash, check.weight)
        if named == result:
            signers.setdefault(check.electorate, set()).add(signer)
    if not any(2 * len(found) > electorate and 2 * len(found & group) >= len(group) > 0 for electorate, found in signers.items()):
        most = max(map(len, signers.values()), default=0)
        raise RemoteRefusal(by, "uncertified", f"a result that {most} members vouch for, of a group of {len(group)} as we see it")
