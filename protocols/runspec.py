"""`RunSpec`: everything that all members of a run must agree on, its fingerprint, and the authority's signature over it.

Written by people as TOML (`from_toml`), exchanged as canonical JSON (`canonical_bytes`). Unknown keys are refused in both: two versions
that understand different keys would train different models.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError, model_validator

from protocols.canonical import canonical_json, digest, pack_fields, read_json, unpack_fields
from protocols.config_errors import sentences
from protocols.errors import ConfigError, RemoteProtocolError
from protocols.frames import MAX_MEMBERS
from protocols.ids import PUBLIC_KEY_BYTES, Epoch, RunId
from protocols.signing import SIGNATURE_BYTES, Signer, verify_signature

MAX_SPEC_BYTES = 64 * 1024
MAX_TARGET_SAMPLES = 10**8
"""Most samples that close an epoch."""

_SPEC_DOMAIN = b"swarm.v1.run-spec"
_RUN_DOMAIN = b"swarm.v1.run-id"

Aggregator = Literal["mean", "centered_clip", "trimmed_mean", "coordinate_median", "geometric_median", "krum", "multi_krum"]
"""Names of the ways to aggregate."""

_Positive = Annotated[float, Field(gt=0)]
_Fraction = Annotated[float, Field(ge=0, lt=1)]
_FileName = Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f]+$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class RunSection(_Section):
    """Which run it is.

    Args:
        name: for people; letters, digits, ".", "_" and "-", at most 63.
        seed: all that is random in a run follows from it; two runs that differ in nothing else are different runs.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0


class ModelSection(_Section):
    """What is trained: exactly one of the two.

    Args:
        preset: name of a built-in model, see `swarm.models`.
        config: a Hugging Face causal-LM configuration; needs at least "model_type".
    """

    preset: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] | None = None
    config: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> ModelSection:
        if (self.preset is None) == (self.config is None):
            raise ValueError('give either preset, for example preset = "tiny", or a [model.config] table')
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError('a [model.config] table needs model_type, for example model_type = "bloom"')
        return self


class DataSection(_Section):
    """What it is trained on.

    Args:
        source: "stdlib": the text of Python's own standard library; "files": these files.
        files: paths as each member finds them, for "files" only.
        sequence_length: tokens in one sample.
        holdout_percent: percent of the data that nobody trains on.
        fingerprint: 64 hex digits that name the exact data; None until it is known, then members refuse to join with other data.
    """

    source: Literal["stdlib", "files"] = "stdlib"
    files: Annotated[tuple[_FileName, ...], Field(strict=False, max_length=1000)] = ()
    sequence_length: Annotated[int, Field(ge=2, le=2**20)] = 128
    holdout_percent: Annotated[int, Field(ge=1, le=50)] = 5
    fingerprint: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _files_fit_source(self) -> DataSection:
        if self.source == "files" and not self.files:
            raise ValueError('source = "files" needs files, for example files = ["corpus.txt"]')
        if self.source == "stdlib" and self.files:
            raise ValueError('files are only read with source = "files"')
        if len(set(self.files)) != len(self.files):
            raise ValueError("a file is listed twice")
        return self


class OptimizerSection(_Section):
    """The optimizer, and when it steps.

    Args:
        name: a torch optimizer.
        learning_rate: its peak; `learning_rate()` gives each epoch's.
        betas, eps: of the Adam family.
        weight_decay: decoupled for adamw, L2 otherwise, as torch has it.
        momentum: of sgd.
        grad_clip_norm: the gradient of a step is scaled down to this L2 norm; None: never.
        target_batch_samples: samples, from all members together, that close an epoch.
        rule: "gradient": members contribute mean gradients, and the swarm takes one step an epoch; "outer": members take steps of their
            own and contribute how far they led, see [outer].
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: _Positive = 1e-3
    betas: Annotated[tuple[_Fraction, _Fraction], Field(strict=False)] = (0.9, 0.95)
    eps: _Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    momentum: _Fraction = 0.0
    grad_clip_norm: _Positive | None = 1.0
    target_batch_samples: Annotated[int, Field(ge=1, le=MAX_TARGET_SAMPLES)] = 256
    rule: Literal["gradient", "outer"] = "gradient"

    @model_validator(mode="after")
    def _momentum_fits_name(self) -> OptimizerSection:
        if self.momentum and self.name != "sgd":
            raise ValueError(f'momentum belongs to name = "sgd"; {self.name} has betas instead')
        return self


class OuterSection(_Section):
    """How the outer rule works (`swarm.optim.outer_rule`); without meaning for the gradient rule.

    Args:
        inner_batch_samples: of one step of one member.
        optimizer: of the outer step.
        learning_rate, momentum: of the outer step; for the adaptive optimizers momentum is beta 1.
        beta2, eps: of the adaptive ones; eps is what the paper calls tau.
        fragments: the model is averaged a part at a time, in so many epochs.
        mixing: weight of what a member has locally when an average is applied to its model.
    """

    inner_batch_samples: Annotated[int, Field(ge=1, le=10**6)] = 32
    optimizer: Literal["nesterov", "fedavgm", "fedadam", "fedyogi", "fedadagrad"] = "nesterov"
    learning_rate: _Positive = 0.7
    momentum: _Fraction = 0.9
    beta2: _Fraction = 0.99
    eps: _Positive = 1e-3
    fragments: Annotated[int, Field(ge=1, le=1024)] = 1
    mixing: _Fraction = 0.0


class ScheduleSection(_Section):
    """How the learning rate changes, by epoch.

    Args:
        warmup_epochs: epochs of linear rise; 0: none.
        total_epochs: where the run ends.
        kind: what follows the warm-up.
        final_fraction: of the peak, where "linear" and "cosine" end.
        ramp_epochs: epochs in which the samples that close an epoch rise to their target; 0: none.
        ramp_start: fraction of the target that they rise from.
    """

    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    total_epochs: Annotated[int, Field(ge=1, le=10**9)] = 1000
    kind: Literal["constant", "linear", "cosine"] = "cosine"
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    ramp_epochs: Annotated[int, Field(ge=0, le=10**9)] = 0
    ramp_start: Annotated[float, Field(gt=0, le=1)] = 0.125

    @model_validator(mode="after")
    def _warmup_ends(self) -> ScheduleSection:
        if self.warmup_epochs >= self.total_epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be smaller than total_epochs ({self.total_epochs})")
        return self


class AveragingSection(_Section):
    """How members average.

    Args:
        block_elems: elements of the flat vector in one block.
        codec: how a block travels, see `protocols.codecs`.
        max_group: most members that average together in one round; a larger swarm averages in several rounds along a grid.
        overlap: members go on computing while a round runs, and apply its result when it is there.
        error_feedback: how much of what the codec leaves out of a contribution comes with the next one; 0: it is lost.
        step_ahead: by the outer rule, how much of what is kept so a member's own model holds; 0: nothing.
    """

    block_elems: Annotated[int, Field(ge=16, le=2**26)] = 2**20
    codec: Literal[
        "fp32", "fp16", "bf16", "int8", "int4", "e3m0", "adaptive-int8", "topk64", "topk128", "topk32-152", "rd20", "rd50", "rd100"
    ] = "fp32"
    max_group: Annotated[int, Field(ge=2, le=MAX_MEMBERS)] = 16
    overlap: bool = False
    error_feedback: Annotated[float, Field(ge=0, le=1)] = 0.0
    step_ahead: Annotated[float, Field(ge=0, le=1)] = 0.0


class AdmissionSection(_Section):
    """Who gets in.

    Args:
        mode: "open": whoever has the link; "private": whoever a member that may admit lets in, as often as the invite allows.
    """

    mode: Literal["open", "private"] = "open"


class TrustSection(_Section):
    """How members guard against each other.

    Args:
        verify: commit to every block, check every reduction and audit contributions, in every round; False: believe everybody.
        aggregator: what a reducer makes of the members' blocks, see `protocols.aggregation`.
        bucket: contributions averaged at random into one before they are aggregated; 1: each stands for itself.
        auditors: members drawn in each group and epoch, each of which replays the contribution of one other.
        audit_tolerance: largest relative distance ||replayed - contributed|| / ||replayed|| that different hardware may explain.
        weight_cap: nobody's samples count for more than this many times the group's median.
        probation_epochs: epochs in which a newcomer's work is audited and counts nothing.
        byzantine_fraction: of a group that trimmed mean and krum withstand; they leave out accordingly many.
    """

    verify: bool = True
    aggregator: Aggregator = "centered_clip"
    bucket: Annotated[int, Field(ge=1)] = 1
    auditors: Annotated[int, Field(ge=0, le=32)] = 1
    audit_tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.02
    weight_cap: Annotated[float, Field(ge=1)] = 4.0
    probation_epochs: Annotated[int, Field(ge=0, le=1000)] = 2
    byzantine_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.45


class RunSpec(_Section):
    """All that members of a run share. Frozen; unknown keys are refused."""

    run: RunSection
    model: ModelSection
    data: DataSection = DataSection()
    optimizer: OptimizerSection = OptimizerSection()
    outer: OuterSection = OuterSection()
    schedule: ScheduleSection = ScheduleSection()
    averaging: AveragingSection = AveragingSection()
    admission: AdmissionSection = AdmissionSection()
    trust: TrustSection = TrustSection()

    @model_validator(mode="after")
    def _parts_fit(self) -> RunSpec:
        sparse, feedback = self.averaging.codec.startswith(("topk", "rd")), self.averaging.error_feedback > 0
        if self.trust.verify and sparse:
            raise ValueError("what a sparse codec leaves out hides lies: set verify = false in [trust], or choose another averaging.codec")
        if sparse and not feedback:
            raise ValueError("a sparse codec loses nearly everything without averaging.error_feedback: set it, for example to 0.9")
        if self.averaging.step_ahead and (not feedback or self.optimizer.rule != "outer" or self.outer.mixing):
            raise ValueError('averaging.step_ahead needs averaging.error_feedback, optimizer.rule = "outer" and outer.mixing = 0')
        return self

    @classmethod
    def from_toml(cls, text: str) -> RunSpec:
        """Read a run file.

        Raises:
            ConfigError: one sentence for each mistake, with the dotted path of the key.
        """
        try:
            settings = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError(f"The run file is not TOML: {error}.") from error
        return cls.from_settings(settings)

    @classmethod
    def from_settings(cls, settings: Mapping[str, object]) -> RunSpec:
        """Read nested dictionaries as a run file holds them.

        Raises:
            ConfigError: one sentence for each mistake, with the dotted path of the key.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise ConfigError(sentences(error, cls)) from None

    def canonical_bytes(self) -> bytes:
        """The same bytes for the same spec, wherever: JSON with sorted keys and nothing left to defaults."""
        return canonical_json(self.model_dump(mode="python"))

    @classmethod
    def from_canonical_bytes(cls, data: bytes) -> RunSpec:
        """Read what `canonical_bytes` wrote, and nothing else.

        Raises:
            RemoteProtocolError: other bytes.
        """
        if len(data) > MAX_SPEC_BYTES:
            raise RemoteProtocolError(None, f"a run spec of {len(data)} bytes is too large")
        try:
            spec = cls.model_validate(read_json(data))
            canonical = spec.canonical_bytes()
        except ValidationError as error:
            raise RemoteProtocolError(None, f"a run spec that this version cannot use: {sentences(error, cls)}") from error
        except (ValueError, RecursionError) as error:
            raise RemoteProtocolError(None, f"a run spec that is not canonical JSON: {error}") from error
        if canonical != data:
            raise RemoteProtocolError(None, "a run spec that is not in canonical form")
        return spec


@dataclass(frozen=True, slots=True)
class SignedRunSpec:
    """A spec and the authority that vouches for it. Build it with `sign` or `from_bytes`, which verify.

    Args:
        spec: what all members share.
        authority_key: 32 raw bytes, the authority's Ed25519 public key.
        signature: 64 bytes over the canonical spec.
    """

    spec: RunSpec
    authority_key: bytes
    signature: bytes

    @property
    def run_id(self) -> RunId:
        """Fingerprint: BLAKE3 of the domain, the canonical spec and the authority's key."""
        return RunId(digest(_RUN_DOMAIN, self.spec.canonical_bytes(), self.authority_key))

    @classmethod
    def sign(cls, spec: RunSpec, authority: Signer) -> SignedRunSpec:
        """Vouch for a spec.

        Raises:
            ConfigError: it is too large to be exchanged.
        """
        canonical = spec.canonical_bytes()
        if len(canonical) > MAX_SPEC_BYTES:
            raise ConfigError(f"The run's settings take {len(canonical)} bytes and may take {MAX_SPEC_BYTES}: shorten the list of files.")
        return cls(spec, authority.public_key, authority.sign(pack_fields(_SPEC_DOMAIN, canonical)))

    def to_bytes(self) -> bytes:
        """For the network and the disk."""
        return pack_fields(_SPEC_DOMAIN, self.spec.canonical_bytes(), self.authority_key, self.signature)

    @classmethod
    def from_bytes(cls, data: bytes) -> SignedRunSpec:
        """Read and verify.

        Raises:
            RemoteProtocolError: not a spec, or not signed by the authority it names.
        """
        if len(data) > MAX_SPEC_BYTES + 256:
            raise RemoteProtocolError(None, f"a signed run spec of {len(data)} bytes is too large")
        try:
            domain, canonical, authority_key, signature = unpack_fields(data, 4)
        except ValueError as error:
            raise RemoteProtocolError(None, f"these bytes are not a signed run spec: {error}") from error
        if domain != _SPEC_DOMAIN or len(authority_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
            raise RemoteProtocolError(None, "these bytes are not a signed run spec")
        if not verify_signature(authority_key, signature, pack_fields(_SPEC_DOMAIN, canonical)):
            raise RemoteProtocolError(None, "a run spec that its authority did not sign")
        return cls(RunSpec.from_canonical_bytes(canonical), authority_key, signature)


def learning_rate(spec: RunSpec, epoch: Epoch) -> float:
    """Learning rate of the step that leads from `epoch` to the next.

    Rises linearly to the peak in the last warm-up epoch, then follows `schedule.kind` down to `final_fraction` of it at `total_epochs`,
    and stays there.
    """
    schedule, peak = spec.schedule, spec.optimizer.learning_rate
    if epoch < schedule.warmup_epochs:
        return _rounded(peak * (epoch + 1) / schedule.warmup_epochs)
    done = min((epoch - schedule.warmup_epochs) / (schedule.total_epochs - schedule.warmup_epochs), 1.0)
    remaining = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule.kind]
    if schedule.kind == "constant":
        return _rounded(peak)
    return _rounded(peak * (schedule.final_fraction + (1 - schedule.final_fraction) * remaining))


def target_samples(spec: RunSpec, epoch: Epoch) -> int:
    """Samples of the whole swarm that close an epoch: the target, or on the way to it in a straight line, at least 1."""
    schedule, target = spec.schedule, spec.optimizer.target_batch_samples
    if epoch >= schedule.ramp_epochs:
        return target
    return max(1, round(target * _rounded(schedule.ramp_start + (1 - schedule.ramp_start) * epoch / schedule.ramp_epochs)))


def _rounded(rate: float) -> float:
    """Twelve significant digits: cosines differ in their last bits between C libraries, and members must step by the very same rate."""
    return float(f"{rate:.12g}")
