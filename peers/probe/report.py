"""What is asked of the probe and what it answers: plain values with a JSON form for standard input and output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from protocols.errors import LocalProtocolError

CHECKS = ("dial", "identify", "ping", "clock", "refuses plaintext", "refuses wrong identity")
"""Names of all checks, in the order in which they are made."""

MAX_CLOCK_SKEW_S = 3.0
"""Largest acceptable difference between two members' clocks; hivemind's DHT refuses more (`MAX_DHT_TIME_DISCREPANCY_SECONDS`)."""


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """What to look at.

    Args:
        address: multiaddr ending in "/p2p/<peer id>".
        timeout_s: limit of each single check.
        pings: round trips to measure.
    """

    address: str
    timeout_s: float = 5.0
    pings: int = 3

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ProbeRequest:
        """Read `to_json`'s line.

        Raises:
            LocalProtocolError: not such a line.
        """
        raw = _object(text)
        try:
            return cls(address=str(raw["address"]), timeout_s=float(str(raw["timeout_s"])), pings=int(str(raw["pings"])))
        except (KeyError, ValueError) as error:
            raise LocalProtocolError(f"the probe was asked in a wrong form: {error!r}") from None


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Args:
        name: what was looked at.
        ok: whether it is as it should be.
        detail: one sentence for people.
        value: the measured number, if there is one; its unit is in `unit`.
        unit: "s" or "".
    """

    name: str
    ok: bool
    detail: str
    value: float | None = None
    unit: str = ""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """Everything the probe found.

    Args:
        checks: in the order of `CHECKS`; the later ones are missing if the node could not be dialled.
        agent: what the node calls itself.
        protocols: libp2p protocols it serves.
        observed_address: where it saw us come from.
        listen_addresses: where it says it can be reached.
    """

    checks: tuple[Check, ...]
    agent: str = ""
    protocols: tuple[str, ...] = ()
    observed_address: str = ""
    listen_addresses: tuple[str, ...] = field(default=())

    @property
    def healthy(self) -> bool:
        """Every check was made and is as it should be."""
        return tuple(check.name for check in self.checks) == CHECKS and all(check.ok for check in self.checks)

    def check(self, name: str) -> Check:
        """One finding by its name.

        Raises:
            KeyError: it was not made.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ProbeReport:
        """Read `to_json`'s line.

        Raises:
            LocalProtocolError: not such a line.
        """
        raw = _object(text)
        try:
            checks = raw["checks"]
            if not isinstance(checks, list):
                raise TypeError("checks is not a list")
            return cls(
                checks=tuple(Check(**check) for check in checks),
                agent=str(raw["agent"]),
                protocols=_strings(raw["protocols"]),
                observed_address=str(raw["observed_address"]),
                listen_addresses=_strings(raw["listen_addresses"]),
            )
        except (KeyError, TypeError) as error:
            raise LocalProtocolError(f"the probe answered in a wrong form: {error!r}") from None


def _object(text: str) -> Mapping[str, object]:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise LocalProtocolError("the probe's line is not JSON") from None
    if not isinstance(raw, dict):
        raise LocalProtocolError("the probe's line is not a JSON object")
    return raw


def _strings(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list):
        raise TypeError("not a list")
    return tuple(str(item) for item in raw)
