"""What planning starts from, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protocols.errors import ConfigError

MBIT_BYTES = 125_000
"""Bytes a second of one Mbit/s."""

PROCESSING_S_PER_ELEM = 1.2e-8
"""Encoding, decoding, hashing, encrypting and averaging, per element of the vector and round: a round of 64 MiB without links
(docs/benchmarks.md, "One averaging round" and "What verification costs"), of one of four members on two cores."""

UPDATE_S_PER_ELEM = 1.5e-8
"""One update of the shared state on a CPU: optimizer, copies, and the hash that names the state. An estimate: `--probe` measures it."""

MEASURED_LINK_SHARE = 0.94
"""The same of a rate that was measured as payload, headers left out already: timed streams fill so much of a link
(`protocols.bandwidth.FILLED`)."""

LINK_SHARE = 0.9
"""How much of the least time's rate a round reaches on shaped links (docs/benchmarks.md, "Links of stated speeds": 0.905 and 0.867)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One member's machine.

    Args:
        flops_per_s: that training really gets out of the device.
        micro_batch_samples: in one forward and backward pass.
        processing_s_per_elem, update_s_per_elem: see the constants of this module.
        memory_bytes: of the device; None: not known, not checked.
        bf16: whether it computes in bf16, as CUDA devices do.

    Raises:
        ConfigError: a number that makes no sense.
    """

    flops_per_s: float
    micro_batch_samples: int = 8
    processing_s_per_elem: float = PROCESSING_S_PER_ELEM
    update_s_per_elem: float = UPDATE_S_PER_ELEM
    memory_bytes: int | None = None
    bf16: bool = True

    def __post_init__(self) -> None:
        if not self.flops_per_s > 0 or self.micro_batch_samples < 1:
            raise ConfigError("The device's speed must be above 0, and its micro-batch at least one sample.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A member's link, the same in both directions.

    Args:
        bytes_per_s: stated rate of the slower direction.
        rtt_s: round trip between members.
        share: how much of the rate rounds get.

    Raises:
        ConfigError: a number that makes no sense.
    """

    bytes_per_s: float
    rtt_s: float = 0.05
    share: float = LINK_SHARE

    def __post_init__(self) -> None:
        if not self.bytes_per_s >= 1 or not self.rtt_s >= 0 or not 0 < self.share <= 1:
            raise ConfigError("A link's rate must be above 0, and its round trip not negative.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """Who takes part: all on links alike.

    Args:
        peers: how many.
        clients: of these, how many nobody can dial: they reduce nothing.
        helpers: of these, how many compute nothing; all of them can be dialled.
        others_samples_per_s: what all but one compute together; None: everybody who computes is as fast as that one.

    Raises:
        ConfigError: nobody who computes, or nobody who can be dialled.
    """

    peers: int
    clients: int = 0
    helpers: int = 0
    others_samples_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.peers < 1 or not 0 <= self.clients < self.peers:
            raise ConfigError(f"Of {self.peers} peers, {self.clients} cannot be clients: at least one must be dialable.")
        if self.helpers < 0 or self.helpers + self.clients > self.peers or self.helpers == self.peers:
            raise ConfigError(f"Of {self.peers} peers, {self.helpers} cannot be helpers: at least one must compute.")
        if self.others_samples_per_s is not None and not self.others_samples_per_s >= 0:
            raise ConfigError("What the others compute must not be negative.")

    def computing(self, sample_s: float) -> float:
        """As how many members the swarm computes that take `sample_s` seconds for a sample."""
        return self.peers - self.helpers if self.others_samples_per_s is None else 1 + self.others_samples_per_s * sample_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is trained.

    Args:
        parameters: of the model; all are trained.
        flops_per_sample: forward and backward, of one sample.
        tokens_per_sample: T.
        activation_bytes_per_sample: that a pass holds for each sample.
        activation_bytes: that it holds however many there are.
        moments, outer_moments: numbers that the optimizers keep of each parameter, see `protocols.planning.memory`.
        parts: into how many fragments the model could be cut: its blocks.
    """

    parameters: int
    flops_per_sample: float
    tokens_per_sample: int
    activation_bytes_per_sample: float = 0.0
    activation_bytes: float = 0.0
    moments: int = 2
    outer_moments: int = 1
    parts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run file says and planning can change; see `protocols.runspec`. `auditors` only counts where contributions can be replayed."""

    rule: Literal["gradient", "outer"] = "gradient"
    target_samples: int = 256
    inner_batch_samples: int = 32
    fragments: int = 1
    codec: str = "fp32"
    error_feedback: float = 0.0
    step_ahead: float = 0.0
    block_elems: int = 2**20
    max_group: int = 16
    overlap: bool = False
    verify: bool = True
    auditors: int = 0

    @property
    def auditing(self) -> int:
        """How many members of a group replay another's contribution: by the gradient rule, as members compute on what all hold."""
        return self.auditors if self.verify and self.rule == "gradient" and not self.overlap and not self.error_feedback else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a member sees in one epoch.

    Args:
        sample_s, step_s: of one sample; of one micro-batch (gradient rule) or inner step (outer rule).
        inner_steps: of those that one member makes in an epoch.
        compute_s: until the epoch is closed: the target, and the second in which members hear of it.
        rounds_s: of each round, by axis of the grid.
        update_s: applying the result; nothing is computed meanwhile.
        epoch_s: from update to update.
        utilisation: share of that in which the device computes.
        up_bytes, down_bytes: of a member, mean over all.
        busiest_bytes: of the member that moves most, in the direction in which it does.
        group: members of the largest group.
        epoch_samples, samples_per_s: of the whole swarm.
        device_bytes, host_bytes: memory of a member: on the device, with a pass of one sample; and beside it, on the CPU.
    """

    sample_s: float
    step_s: float
    inner_steps: float
    compute_s: float
    rounds_s: tuple[float, ...]
    update_s: float
    epoch_s: float
    utilisation: float
    up_bytes: float
    down_bytes: float
    busiest_bytes: float
    group: int
    epoch_samples: float
    samples_per_s: float
    device_bytes: float
    host_bytes: float

    @property
    def averaging_s(self) -> float:
        """All rounds of an epoch."""
        return sum(self.rounds_s)


@dataclass(frozen=True, slots=True)
class Advice:
    """One key of a run file.

    Args:
        section, key: of the run file.
        value: recommended.
        why: one sentence.
    """

    section: str
    key: str
    value: str | int | float | bool
    why: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A codec for the outer rule that was looked at.

    Args:
        codec: its name.
        round_s: how long all rounds of an epoch take.
        up_bytes: of a member and epoch.
        steps: inner steps between two averages of the same parameter with which nobody waits.
        utilisation: share of the time that devices compute if they wait after the most steps that were ever tried.
        quality: what is known of the loss, in a few words.
        usable: the run does not refuse it.
    """

    codec: str
    round_s: float
    up_bytes: float
    steps: float
    utilisation: float
    quality: str
    usable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """Settings that fit, and why; and what else was looked at, where the outer rule is recommended."""

    settings: Settings
    prediction: Prediction
    advice: tuple[Advice, ...]
    warnings: tuple[str, ...]
    candidates: tuple[Candidate, ...] = ()
