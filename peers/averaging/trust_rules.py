"""How a run guards against its own members, as its rounds go by it."""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3

from protocols.aggregation import Aggregator, aggregator_named
from protocols.aggregation.clipping import CenteredClip
from protocols.aggregation.coordinatewise import TrimmedMean
from protocols.aggregation.krum import Krum, MultiKrum
from protocols.errors import ConfigError
from protocols.runspec import TrustSection

_BUCKET_DOMAIN = b"swarm.v1.buckets"
_LEAST_FOR_KRUM = 3


@dataclass(frozen=True, slots=True)
class TrustRules:
    """`RunSpec.trust`, which says what each means."""

    aggregator: str = "centered_clip"
    bucket: int = 1
    auditors: int = 1
    audit_tolerance: float = 0.02
    weight_cap: float = 4.0
    probation_epochs: int = 2
    byzantine_fraction: float = 0.45
    most_samples: float = 0.0
    """That a member can honestly claim for an epoch; 0 for no limit."""

    def aggregator_of(self, parts: int, first_plan_digest: bytes) -> Aggregator:
        """The rule for a block of so many parts in a round; the same on every member.

        The rule sees buckets, and each liar may spoil one. Where they are too few for the rule, it assumes fewer liars among them, and of
        one or two parts or buckets krum makes the mean. Multi-krum averages as many as its guarantee allows.
        """
        settings: dict[str, int] = {}
        bucket = min(self.bucket, parts)
        seen, liars = -(-parts // bucket), int(self.byzantine_fraction * parts)
        if self.aggregator in (Krum.name, MultiKrum.name):
            if seen < _LEAST_FOR_KRUM:
                return aggregator_named("mean")
            settings["byzantine"] = min(liars, (seen - _LEAST_FOR_KRUM) // 2)
        if self.aggregator == MultiKrum.name:
            settings["keep"] = seen - settings["byzantine"] - 2
        if self.aggregator == TrimmedMean.name:
            settings["trim"] = min(liars, (seen - 1) // 2)
        seed = blake3(_BUCKET_DOMAIN + first_plan_digest).digest()
        return aggregator_named(self.aggregator, bucket=bucket, seed=seed, **settings)

    @property
    def clips(self) -> bool:
        """Whether reducers state a radius that they have observed."""
        return self.aggregator == CenteredClip.name

    @property
    def vanishing(self) -> bool:
        """Whether clipped differences from the aggregate cancel, so that sums of projections can be checked (`Aggregator.vanishing`)."""
        return self.aggregator_of(_LEAST_FOR_KRUM * self.bucket, b"").vanishing


EPOCHS_WORTH = 4
"""Nobody's contribution stands for more samples than so many targets. Where a round fails again and again members compute more and leave it
out; so whoever claims more lies."""


def trust_rules(section: TrustSection, target_samples: int) -> TrustRules | None:
    """The rules of a run; None if its members believe each other.

    Args:
        section: of the spec.
        target_samples: that close an epoch.

    Raises:
        ConfigError: an aggregator that cannot be had so.
    """
    if not section.verify:
        return None
    rules = TrustRules(
        section.aggregator,
        section.bucket,
        section.auditors,
        section.audit_tolerance,
        section.weight_cap,
        section.probation_epochs,
        section.byzantine_fraction,
        EPOCHS_WORTH * target_samples,
    )
    try:
        rules.aggregator_of(2 * _LEAST_FOR_KRUM, b"")
    except ConfigError as error:
        raise ConfigError(f"trust.aggregator: {error}") from error
    return rules
