"""Start the probe as a process of its own and wait for its report."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from peers.probe.report import CHECKS, ProbeReport, ProbeRequest
from protocols.errors import ConfigError, LocalProtocolError

START_UP_S = 30.0
"""Allowance for starting Python and importing py-libp2p on a busy machine."""


def run_probe(request: ProbeRequest) -> ProbeReport:
    """Look at one libp2p address from outside.

    Blocks for at most `START_UP_S` plus `request.timeout_s` for each check; the probe is killed after that.

    Raises:
        ConfigError: py-libp2p is not installed.
        LocalProtocolError: the probe crashed or did not answer: our bug.
    """
    if importlib.util.find_spec("libp2p") is None:
        raise ConfigError("py-libp2p is not installed, so nobody can look at the node from outside: install the extra 'libp2p'.")
    limit_s = START_UP_S + request.timeout_s * len(CHECKS)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "peers.probe.libp2p_probe"],
            input=request.to_json() + "\n",
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LocalProtocolError(f"the libp2p probe gave no report within {limit_s:.0f} s and was stopped") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise LocalProtocolError(f"the libp2p probe failed: {last[:300]}")
    return ProbeReport.from_json(done.stdout)
