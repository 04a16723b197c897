"""What a member can be banned for, and what proves it."""

from __future__ import annotations

from enum import StrEnum


class Offence(StrEnum):
    """Why a member is out. Names travel; never rename one."""

    EQUIVOCATION = "equivocation"
    """It signed two different statements where one is due, such as two commitments to one round. Proof: the two."""
    REDUCTION = "reduction"
    """A block that it reduced is not the aggregate of the parts committed to. Everybody in the group reduces it again."""
    CHECK = "check"
    """It reported projections or distances that do not belong to its committed part. Everybody in the group computes them again."""
    CONTRIBUTION = "contribution"
    """What it contributed is not what its samples give. Everybody in the group who can replays it."""
    INNER_STATE = "inner-state"
    """The inner state that it ended with is not what its samples make of the one it began with. Everybody who can replays it."""
    WITHHELD_STATE = "withheld-state"
    """It answers, as the process that committed to inner states, and showed them to none of more than half of its group."""
    MALFORMED = "malformed"
    """It broke the protocol towards most of its group: bytes that are no block or not those committed to, statements not its own."""
    WITHHELD_COIN = "withheld-coin"
    """It lives, and showed its share of the coin to none of more than half of its group."""
    ABSURD_CLAIM = "absurd-claim"
    """It signed a claim that no honest member can make, such as an epoch a million ahead."""
    FALSE_ACCUSATION = "false-accusation"
    """It accused somebody of what everybody else finds in order."""

    @property
    def sentence(self) -> str:
        """For people."""
        return _SENTENCES[self]


_SENTENCES = {
    Offence.EQUIVOCATION: "it signed two different statements where one is due",
    Offence.REDUCTION: "it returned a false mean of its blocks",
    Offence.CHECK: "it reported false figures of its own part",
    Offence.CONTRIBUTION: "its contribution is not what its samples give",
    Offence.INNER_STATE: "its inner state is not what its samples make of the one it began with",
    Offence.WITHHELD_STATE: "it kept back the inner state that it had committed to",
    Offence.MALFORMED: "it sent most of its group what breaks the protocol",
    Offence.WITHHELD_COIN: "it kept back its share of the coin",
    Offence.ABSURD_CLAIM: "it signed a claim that no honest member can make",
    Offence.FALSE_ACCUSATION: "it accused an honest member",
}
