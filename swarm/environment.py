"""The only file that touches the environment: what people may set (`SWARM_*`), and what libraries must find before their import."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping

from protocols.errors import ConfigError

PREFIX = "SWARM_"

VARIABLES: Mapping[str, str] = {
    "SWARM_STATE_DIR": "state_dir",
    "SWARM_LISTEN": "listen",
    "SWARM_DATA_PORT": "data_port",
    "SWARM_ANNOUNCE": "announce",
    "SWARM_LIBP2P_LISTEN": "libp2p_listen",
    "SWARM_DEVICE": "device",
    "SWARM_THREADS": "threads",
    "SWARM_NICENESS": "niceness",
    "SWARM_BANDWIDTH_MBIT": "bandwidth_mbit",
    "SWARM_PART_MEMORY_MIB": "part_memory_mib",
    "SWARM_ROLE": "role",
    "SWARM_CHECKPOINT_EVERY": "checkpoint_every_epochs",
    "SWARM_CHECKPOINTS_KEPT": "checkpoints_kept",
    "SWARM_MICRO_BATCH": "micro_batch_samples",
    "SWARM_OPTIMIZER_STATES": "optimizer_states",
    "SWARM_OFFLOAD_OPTIMIZER": "offload_optimizer",
    "SWARM_RECOMPUTE_ACTIVATIONS": "recompute_activations",
    "SWARM_MAX_EPOCHS": "max_epochs",
    "SWARM_PROBE": "probe",
    "SWARM_LOG_LEVEL": "log_level",
}
"""Environment variable -> field of `swarm.config.PeerConfig`. A flag on the command line beats its variable."""

_LIBRARY_DEFAULTS: Mapping[str, str] = {
    "GRPC_VERBOSITY": "NONE",  # its C core writes refused connections to stderr; we report them ourselves
    "GRPC_ENABLE_FORK_SUPPORT": "0",  # we never fork, and the handlers can hang a process that starts the libp2p daemon
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",  # models are built from a configuration: nothing is ever fetched behind the user's back
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HIVEMIND_LOGLEVEL": "CRITICAL",
}


def prepare_libraries() -> None:
    """Set what gRPC, transformers and hivemind read when they are imported; call it before importing them. What a user has set stays."""
    for name, value in _LIBRARY_DEFAULTS.items():
        os.environ.setdefault(name, value)


def settings(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the user has set, by field of `PeerConfig`, as text.

    Args:
        environ: variables to read; the process's own by default.

    Raises:
        ConfigError: a variable that starts like ours and is none of ours.
    """
    environ = os.environ if environ is None else environ
    found: dict[str, str] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX):
            continue
        if name not in VARIABLES:
            near = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.0)[0]
            raise ConfigError(f"The environment variable {name} is not known: did you mean {near}? Correct or unset it.")
        if environ[name] != "":
            found[VARIABLES[name]] = environ[name]
    return found


def for_children(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment for processes of ours: this one's without the user's `SWARM_*` settings, plus `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return {**kept, **(extra or {})}
