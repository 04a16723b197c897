"""What a member measured when it joined, as a file for `swarm-peer status` and `plan`, and as a block for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocols.config_errors import sentences
from protocols.errors import ConfigError
from protocols.link_figures import LinkFigures
from swarm.monitoring.replacing import replace_text
from swarm.monitoring.table import human_bytes

_MAX_FILE_BYTES = 2**16
_MBIT_BYTES = 125_000
_HOUR_S = 3600.0

_Seconds = Annotated[float, Field(ge=0, le=1e15)]
_SecondsPerElem = Annotated[float, Field(ge=0, le=1e3)]
_Bytes = Annotated[float, Field(ge=0, le=1e24)]
_Rate = Annotated[float, Field(gt=0, le=1e15)]
"""Far beyond what any machine measures, and so that whatever is computed from them stays finite: the file may be damaged or made up."""


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Expected(_Figures):
    """What a member may expect of the run with what it measured; `protocols.planning.Prediction` says more.

    Args:
        epoch_s: from update to update.
        share_computing: of the time.
        up_bytes, down_bytes: of a member and epoch, mean over all.
        share_of_swarm: of all samples, that this member computes.
        verdict: one sentence: whether the run suits it.
    """

    epoch_s: float = Field(ge=1e-9, le=1e24)
    share_computing: float = Field(ge=0, le=2)
    up_bytes: _Bytes
    down_bytes: _Bytes
    share_of_swarm: float = Field(ge=0, le=2)
    verdict: str


class Survey(_Figures):
    """Everything that was measured; None where it was not.

    Args:
        run_name, run_id: of which run.
        measured_at: seconds since the Unix epoch, by our clock.
        role: "trainer", "client" or "helper".
        device: that computes.
        micro_batch_samples: in one pass.
        samples_per_s, flops_per_s: of real micro-batches of the run's model, inner steps included.
        processing_s_per_elem, update_s_per_elem: see `protocols.planning.values`.
        up_bytes_per_s, down_bytes_per_s, rtt_s, link_members, link_moved_bytes, link_note: see `protocols.link_figures`.
        peers, clients, helpers: members there at that time, this one included.
        others_samples_per_s: what all others said that they compute together.
        expected: None if something it takes was not measured.
    """

    run_name: str
    run_id: str
    measured_at: float
    role: str
    device: str
    micro_batch_samples: int | None = Field(default=None, ge=1, le=10**9)
    samples_per_s: _Rate | None = None
    flops_per_s: float | None = Field(default=None, ge=1, le=1e24)
    processing_s_per_elem: _SecondsPerElem | None = None
    update_s_per_elem: _SecondsPerElem | None = None
    up_bytes_per_s: _Rate | None = None
    down_bytes_per_s: _Rate | None = None
    rtt_s: _Seconds | None = None
    link_members: int = Field(default=0, ge=0)
    link_moved_bytes: int = Field(default=0, ge=0)
    link_note: str = ""
    peers: int = Field(default=1, ge=1, le=10**6)
    clients: int = Field(default=0, ge=0)
    helpers: int = Field(default=0, ge=0)
    others_samples_per_s: float | None = Field(default=None, ge=0, le=1e15)
    expected: Expected | None = None

    @property
    def slower_bytes_per_s(self) -> float | None:
        """Of the link, the direction that rounds wait for."""
        return LinkFigures(self.up_bytes_per_s, self.down_bytes_per_s).slower_bytes_per_s


def write_survey(path: Path, survey: Survey) -> None:
    """Replace the file in one step.

    Raises:
        StateDirError: the directory cannot be written or the disk is full.
    """
    replace_text(path, survey.model_dump_json(indent=1) + "\n")


def read_survey(path: Path) -> Survey | None:
    """What was measured, or None where nothing ever was.

    Raises:
        ConfigError: the file is unreadable, damaged or something else.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from None
    try:
        if len(raw) > _MAX_FILE_BYTES:
            raise ConfigError(f"{path} is far too long for what a member measured: name the measured.json of a state directory.")
        return Survey.model_validate_json(raw)
    except ValidationError as error:
        raise ConfigError(f"{path} does not hold what a member measured: {sentences(error, Survey, 'the file')}") from None


def survey_block(survey: Survey) -> str:
    """A few lines for people."""
    lines = [f"Your machine in the run {survey.run_name}:", f"  computing   {_computing(survey)}", f"  link        {_link(survey)}"]
    expected = survey.expected
    if expected is None:
        return "\n".join(lines)
    up, down = (human_bytes(round(moved_bytes * _HOUR_S / expected.epoch_s)) for moved_bytes in (expected.up_bytes, expected.down_bytes))
    times = f"{expected.share_computing:.0%} of the time computing, an epoch every {expected.epoch_s:.3g} s"
    lines += [
        f"  expected    {times}, {up} up and {down} down an hour",
        f"  your share  {expected.share_of_swarm:.0%} of what the {survey.peers} members compute",
        f"  {expected.verdict}",
    ]
    return "\n".join(lines)


def _computing(survey: Survey) -> str:
    if survey.role == "helper":
        return "none: a helper reduces, and serves the state"
    if survey.samples_per_s is None or survey.flops_per_s is None:
        return "not measured: too little was computed in time"
    speed = f"{survey.samples_per_s:.3g} samples/s in micro-batches of {survey.micro_batch_samples}"
    return f"{speed}, {survey.flops_per_s / 1e12:.3g} TFLOP/s on {survey.device}"


def _link(survey: Survey) -> str:
    rates = (("up", survey.up_bytes_per_s), ("down", survey.down_bytes_per_s))
    known = [f"{rate / _MBIT_BYTES:.3g} Mbit/s {name}" for name, rate in rates if rate is not None]
    if survey.rtt_s is not None:
        trip = f"{1e3 * survey.rtt_s:.3g} ms" if survey.rtt_s >= 1e-3 else "less than 1 ms"
        known.append(f"{trip} to the nearest of {survey.link_members} members")
    return ". ".join(part for part in (", ".join(known), survey.link_note) if part) or "not measured"
