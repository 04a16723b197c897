"""`PeerConfig`: everything about a peer that is its owner's business alone. What all members must share is in `protocols.runspec`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from protocols.errors import ConfigError
from swarm.environment import VARIABLES

DEFAULT_STATE_DIR = Path("~/.swarm-peer")

Role = Literal["trainer", "helper", "client"]
Device = Literal["auto", "cpu", "cuda"]


def split_host_port(text: str) -> tuple[str, int]:
    """Split "host:port" or "[v6 address]:port".

    Raises:
        ValueError: another form, or a port outside 0 to 65535.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("write host:port, for example 0.0.0.0:7001 (port 0: any free one)")
    return host, int(port)


class PeerConfig(BaseModel):
    """One peer's own settings. Frozen; unknown fields are refused.

    Args:
        state_dir: where identity, run file, checkpoints and status live; created when missing.
        listen: "host:port" of the gRPC server; port 0 takes any free one.
        data_port: where blocks come in, on the same host; 0 takes any free port. Over gRPC, slower, if others cannot reach it.
        announce: host name or address that others dial; found out from the machine's addresses when None.
        libp2p_listen: multiaddr of the libp2p daemon, TCP only.
        device: "auto" takes CUDA where there is one.
        threads: torch threads; torch's own choice when None.
        niceness: of the training thread only (0 to 19), so that the machine stays usable and the network thread quick.
        bandwidth_mbit: upper bound of what others may count on, in 10^6 bits per second; what the link carries when None.
        part_memory_mib: memory for others' parts of the blocks that this peer reduces; it is given fewer blocks if they would not fit.
            No limit when None.
        role: "trainer" computes and reduces, "helper" only reduces and serves, "client" computes and cannot be dialled.
        checkpoint_every_epochs: epochs between two checkpoints on disk.
        checkpoints_kept: newest checkpoints that stay on disk.
        micro_batch_samples: samples in one forward pass; found by probing the device's memory when None.
        optimizer_states: of the inner optimizer, in runs with the outer rule; "8bit" takes a quarter of the memory, and bitsandbytes.
        offload_optimizer: keep the inner optimizer's states in main memory and step on the CPU.
        recompute_activations: compute each layer again in the backward pass instead of keeping what it needs: less memory, more time.
        max_epochs: stop cleanly once the swarm's epoch reaches this; the run's own end when None.
        probe: on joining, measure how fast this machine computes the run's model and what its link carries.
        log_level: "debug", "info", "warning" or "error".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    state_dir: Path = DEFAULT_STATE_DIR
    listen: str = "0.0.0.0:0"
    data_port: Annotated[int, Field(ge=0, le=65535)] = 0
    announce: str | None = None
    libp2p_listen: str = "/ip4/0.0.0.0/tcp/0"
    device: Device = "auto"
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    niceness: Annotated[int, Field(ge=0, le=19)] = 10
    bandwidth_mbit: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    part_memory_mib: Annotated[int, Field(ge=1, le=2**30)] | None = None
    role: Role = "trainer"
    checkpoint_every_epochs: Annotated[int, Field(ge=1)] = 10
    checkpoints_kept: Annotated[int, Field(ge=1)] = 3
    micro_batch_samples: Annotated[int, Field(ge=1)] | None = None
    optimizer_states: Literal["fp32", "8bit"] = "fp32"
    offload_optimizer: bool = False
    recompute_activations: bool = False
    max_epochs: Annotated[int, Field(ge=1)] | None = None
    probe: bool = True
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        split_host_port(value)
        return value

    @field_validator("announce")
    @classmethod
    def _host_only(cls, value: str | None) -> str | None:
        if value is not None and (not value or "/" in value or " " in value or value.count(":") == 1):
            raise ValueError("write a host name or an address without a port, for example peer.example.org")
        return value

    @field_validator("libp2p_listen")
    @classmethod
    def _tcp_multiaddr(cls, value: str) -> str:
        parts = value.split("/")
        if (
            len(parts) != 5
            or parts[0]
            or parts[1] not in ("ip4", "ip6", "dns", "dns4", "dns6")
            or parts[3] != "tcp"
            or not parts[4].isdigit()
        ):
            raise ValueError("write a TCP multiaddr, for example /ip4/0.0.0.0/tcp/0")
        return value

    @property
    def bandwidth_cap_bytes_per_s(self) -> float | None:
        """`bandwidth_mbit` in bytes per second."""
        return None if self.bandwidth_mbit is None else self.bandwidth_mbit * 1e6 / 8

    @property
    def status_path(self) -> Path:
        """Where this peer reports what it is doing."""
        return self.state_dir / "status.json"

    @property
    def survey_path(self) -> Path:
        """Where it keeps what it measured when it joined."""
        return self.state_dir / "measured.json"

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoints are kept."""
        return self.state_dir / "checkpoints"


def peer_config(flags: Mapping[str, object], environment: Mapping[str, str], settings: Sequence[str] = ()) -> PeerConfig:
    """Put a configuration together: flags beat `--set`, which beats the environment, which beats the defaults.

    Args:
        flags: field -> value from the command line; None means not given.
        environment: field -> text, from `swarm.environment.settings`.
        settings: "field=value" texts from `--set`.

    Raises:
        ConfigError: names the first wrong setting, where it came from and what it should look like.
    """
    assigned = dict(_assignment(text) for text in settings)
    given = {field: value for field, value in flags.items() if value is not None}
    try:
        return PeerConfig.model_validate({**environment, **assigned, **given})
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        if field in given:
            source = "--" + field.replace("_", "-")
        elif field in assigned:
            source = f"--set {field}"
        else:
            source = next((name for name, target in VARIABLES.items() if target == field), field)
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{source} cannot be {str(first['input'])!r}: {reason[:1].lower()}{reason[1:]}.") from None


def _assignment(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    field = field.strip().replace("-", "_")
    if not equals:
        raise ConfigError(f"--set {text} says no value: write --set name=value, for example --set threads=2.")
    if field not in PeerConfig.model_fields:
        near = difflib.get_close_matches(field, PeerConfig.model_fields, n=1, cutoff=0.0)[0]
        raise ConfigError(f"--set {field} is not known: did you mean {near}?")
    return field, value.strip()
